"""Hold the replay to its word: what cannot run is refused by name, what can is timed as the longest path through it, in time proportional to its length."""

import random

import pytest

from mpidml.core import plugins
from mpidml.core.action import Action, parse
from mpidml.core.checking import check
from mpidml.core.errors import UserError
from mpidml.core.lowering import lower
from mpidml.core.program import program, read
from mpidml.core.replay import Fault, Seconds, replay

NAMES = plugins.names("mpidml.schedules")
SOUND = """
rank 0: 0F0 0SF0 0F1 0SF1 0RB0 0B0 0RB1 0B1 0U
rank 1: 1RF0 1F0 1B0 1SB0 1RF1 1F1 1B1 1SB1 1U
"""


def lowered(name, n_ranks=3, n=4, sums=False):
    return lower(plugins.make("mpidml.schedules", name), n_ranks, n, sums)


def changed(whole, rank, actions):
    """Return a program with another list on one rank."""
    return whole._replace(lists=tuple(tuple(actions) if r == rank else of for r, of in enumerate(whole.lists)))


def places(whole):
    return [(rank, position) for rank, actions in enumerate(whole.lists) for position in range(len(actions))]


def fault(whole):
    with pytest.raises(Fault) as error:
        replay(whole)
    return error.value


@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize("name", [*NAMES, "interleaved:3", "pipedream:true"])
def test_a_program_that_lacks_any_one_action_is_refused_by_its_name(name, sums):
    whole = lowered(name, 3, 4, sums)
    replay(whole)
    for rank, position in places(whole):
        actions = whole.lists[rank]
        gone = actions[position]
        found = fault(changed(whole, rank, actions[:position] + actions[position + 1 :]))
        said = str(found)
        if gone.op == "X":
            assert "waits for ever for " in said and f", which rank {rank} does not come to" in said
        elif "since the last" in said:
            assert gone.op in ("B", "W"), "the gradient that a sum or an update was for"
        elif "of the weights is not there yet" in said:
            assert gone.op == "U" and found.rank == rank
        else:
            assert str(gone).partition("@")[0] in said


@pytest.mark.parametrize("name", [*NAMES, "interleaved:3", "pipedream:true"])
def test_a_program_that_does_any_one_action_twice_is_refused(name):
    whole = lowered(name, 3, 4, sums=True)
    for rank, position in places(whole):
        actions = whole.lists[rank]
        found = fault(changed(whole, rank, actions[: position + 1] + actions[position:]))
        assert "a second time" in str(found) or "since the last" in str(found) or "waits for ever for" in str(found)
        assert found.rank == rank
        assert actions[position].op == "X" or found.position == position + 1


WRONG = {
    # what is put in place of what, and what the fault says: where, and what is missing
    "a receive is missing": ("1RF0 1F0", "1F0", (1, 0), "its input is not here, 0F0 or 1RF0 comes first"),
    "a send is missing": ("0F1 0SF1", "0F1", (1, 4), "waits for ever for 0SF1, which rank 0 does not come to"),
    "a gradient is not sent": ("1B1 1SB1", "1B1", (0, 6), "waits for ever for 1SB1, which rank 1 does not come to"),
    "a gradient is not received": ("0RB0 0B0", "0B0", (0, 4), "its output's gradient is not here, 1B0 or 0RB0 comes first"),
    "two actions are swapped": ("1F0 1B0", "1B0 1F0", (1, 1), "its forward 1F0 is not done"),
    "a send before its forward": ("0F0 0SF0", "0SF0 0F0", (0, 0), "0F0 comes first"),
    "a gradient sent before it is there": ("1B0 1SB0", "1SB0 1B0", (1, 2), "1B0 or 1I0 comes first"),
    "a forward twice": ("0F1", "0F0", (0, 2), "is done a second time"),
    "a backward in two ways": ("1B0", "1B0 1I0", (1, 3), "its backward is done a second time"),
    "backwards in descending order": ("0RB0 0B0 0RB1 0B1", "0RB0 0RB1 0B1 0B0", (0, 7), "summed in the order of microbatches, and that of 1 is there before"),
    "forwards in descending order": ("0F0 0SF0 0F1 0SF1", "0F1 0SF1 0F0 0SF0", (0, 2), "arrives in the order of microbatches, and 0F1 was there before"),
    "an action on a wrong rank": ("1F0", "0F0", (1, 1), "stage 0 lives on rank 0, not here"),
    "a receive on a wrong rank": ("0F0", "1RF0", (0, 0), "stage 1 lives on rank 1, not here"),
    "a stage that is not there": ("0F0 0SF0", "2F0 0SF0", (0, 0), "there is no stage 2"),
    "a microbatch that is not there": ("0F1", "0F2", (0, 2), "there is no microbatch 2"),
    "a receive of the first stage": ("0F0", "0RF0 0F0", (0, 0), "there is no stage before it"),
    "a send of the last stage": ("1F0", "1F0 1SF0", (1, 2), "there is no stage after it"),
    "weight gradient without the other": ("1B0", "1W0", (1, 2), "1I0 comes first"),
    "half a backward": ("1B1", "1I1", (1, 9), "1W1 is never done"),
    "a sent gradient is not wanted": ("0RB1 0B1 0U", "0U 0RB1", (0, 8), "0B1 is never done"),
    "no update": ("1SB1 1U", "1SB1", (1, 8), "1U is never done, the gradient of 1B1 changes no weights"),
    "an update too early": ("0RB1 0B1 0U", "0U 0RB1 0B1", (0, 9), "0U is never done, the gradient of 0B1 changes no weights"),
    "an update too many": ("1SB1 1U", "1SB1 1U 1U", (1, 9), "there is no gradient since the last update"),
    "a sum on one stage alone": ("0B1 0U", "0B1 0G 0U", (1, 8), "the gradient is not summed over the replicas, 1G comes first"),
    "a version not there": ("0F1", "0V1@1 0F1", (0, 0), "which version of the weights it reads is not said, 0V0 comes first"),
    "a wait for all of one": ("0F1", "0X0 0F1", (0, 2), "waits for ever for 0X0, which rank 1 does not come to"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_done_is_named_with_its_place_and_what_is_missing(name):
    old, new, where, why = WRONG[name]
    assert SOUND.count(f" {old}") == 1
    found = fault(read(SOUND.replace(f" {old}", f" {new}"), 2, 2))
    assert ((found.rank, found.position), why in str(found)) == (where, True), (found.rank, found.position, str(found))


def test_the_program_that_is_spoilt_here_is_sound():
    assert replay(read(SOUND, 2, 2)).seconds > 0


def test_ranks_that_wait_in_a_circle_are_all_named():
    text = SOUND.replace("1B0 1SB0 1RF1 1F1", "1RF1 1F1 1B0 1SB0").replace("0F1 0SF1 0RB0 0B0", "0RB0 0B0 0F1 0SF1")
    assert "waits for ever, in a circle: rank 0 at 0RB0 waits for 1SB0 of rank 1, rank 1 at 1RF1 waits for 0SF1 of rank 0" in str(fault(read(text, 2, 2)))
    barrier = program([[Action(0, "X"), Action(0, "F", 0), Action(0, "SF", 0)], [Action(1, "RF", 0), Action(1, "X"), Action(1, "F", 0)]], 2, 1, trains=False)
    assert "rank 0 at 0X waits for 0X of rank 1, rank 1 at 1RF0 waits for 0SF0 of rank 0" in str(fault(barrier))


def test_too_small_a_warm_up_waits_for_ever_and_says_who_waits_for_whom():
    """Rank 0 wants its first gradient after one forward; rank 2 gives one after its third."""
    from mpidml.schedules.base import Schedule, pairs

    class Short(Schedule):
        def order(self, rank, n_ranks, n):
            return pairs(rank, rank, n)

    assert str(fault(lower(Short(), 3, 4))).startswith("waits for ever, in a circle: rank 0 at 0RB0 waits for 1SB0 of rank 1, rank 1 at 1RF1 waits for 0SF1")


def test_a_version_that_is_not_there_yet_is_refused():
    text = "rank 0: 0V0@0 0F0 0B0 0U 0V1@{} 0F1 0B1 0U"
    assert replay(read(text.format(1), 1, 2)).versions == [1] and replay(read(text.format(0), 1, 2)).versions == [2]
    found = fault(read(text.format(2), 1, 2))
    assert (found.position, str(found)) == (4, "version 2 of the weights is not there yet, the newest is 1")


def test_the_user_sees_the_table_with_the_action_marked():
    with pytest.raises(UserError) as error:
        check(read(SOUND.replace("1F0 1B0", "1B0 1F0"), 2, 2), "mine")
    assert str(error.value).splitlines() == [
        "mine: rank 1, action 1 (1B0): its forward 1F0 is not done; correct the order of the schedule",
        "rank 0: 0F0 0SF0 0F1 0SF1 0RB0 0B0 0RB1 0B1 0U",
        "rank 1: 1RF0 >>1B0<< 1F0 1SB0 1RF1 1F1 1B1 1SB1 1U",
    ]
    with pytest.raises(UserError) as error:
        check(read(SOUND.replace("1SB1 1U", "1SB1"), 2, 2))
    assert str(error.value).startswith("program: rank 1, at its end: 1U is never done, ") and str(error.value).endswith(" 1B1 1SB1 >>end<<")


def test_of_long_lists_only_what_is_near_is_shown():
    whole = lowered("gpipe", 64, 100)
    spoilt = changed(whole, 20, [action for action in whole.lists[20] if action != Action(20, "RB", 50)])
    with pytest.raises(UserError) as error:
        check(spoilt)
    first, *table = str(error.value).splitlines()
    assert "(20B50): its output's gradient is not here, 21B50 or 20RB50 comes first" in first
    assert table[0] == "... 12 ranks" and table[-1] == "... 35 ranks" and len(table) == 19 and max(map(len, table)) < 150
    (marked,) = [line for line in table if ">>" in line]
    assert marked == (
        "rank 20: ... 20B47 20SB47 20RB48 20B48 20SB48 20RB49 20B49 20SB49 >>20B50<< 20SB50 20RB51 20B51 20SB51 20RB52 20B52 20SB52 20RB53 ..."
    )
    (above,) = [line for line in table if line.startswith("rank 19:")]
    assert above.startswith("rank 19: ... ") and " 19RB0 19B0 " in above, "of the others what they had come to, which is to wait"


@pytest.mark.parametrize("text", ["0F0", "12SB7", "3V4@2", "0U", "1G", "2X5", "0X", "7I10", "7W10", "1RF0", "1RB3"])
def test_an_action_is_what_it_prints(text):
    assert str(parse(text)) == text


@pytest.mark.parametrize("text", ["", "F0", "0Q0", "0F0 ", "0F-1", "-1F0", "0f0", "0V1@"])
def test_what_is_no_action_says_how_to_write_one(text):
    with pytest.raises(ValueError, match="write stage, operation and microbatch, as 1F0"):
        parse(text)


def longest_path(whole, seconds):
    """Return when each action ends: moved later until nothing moves, as all that it waits for asks."""
    ends = dict.fromkeys(places(whole), 0.0)
    at = {action: (r, p) for r, actions in enumerate(whole.lists) for p, action in enumerate(actions) if action.op in ("SF", "SB")}
    waits = [[p for p, action in enumerate(actions) if action.op == "X"] for actions in whole.lists]

    def end(rank, position):
        action = whole.lists[rank][position]
        begin = ends[rank, position - 1] if position else 0.0
        if action.op == "X":
            turn = waits[rank].index(position)
            return max(ends[r, of[turn] - 1] if of[turn] else 0.0 for r, of in enumerate(waits))
        if action.op in ("RF", "RB"):
            sender = action.stage + (1 if action.op == "RB" else -1)
            sent = ends[at[Action(sender, "S" + action.op[1], action.item)]]
            begin = max(begin, sent + seconds.travel(sender, action.op == "RF"))
        if action.op == "U":
            sums = [p for p in range(position) if whole.lists[rank][p] == Action(action.stage, "G")]
            if sums:
                begin = max(begin, (ends[rank, sums[-1] - 1] if sums[-1] else 0.0) + seconds.of(Action(action.stage, "G")))
        return begin + (seconds.of(action) if action.op in ("F", "B", "I", "W", "U") else 0.0) + seconds.overhead

    moved = True
    while moved:
        moved = False
        for rank, position in ends:
            later = end(rank, position)
            if later > ends[rank, position]:
                ends[rank, position], moved = later, True
    return ends


def shuffled(whole, draws):
    """Return a program some of whose neighbours have changed places, where it can run so."""
    for _ in range(10):
        rank = draws.randrange(whole.n_ranks)
        actions = list(whole.lists[rank])
        i = draws.randrange(max(1, len(actions) - 1))
        actions[i : i + 2] = reversed(actions[i : i + 2])
        try:
            replay(changed(whole, rank, actions))
        except Fault:
            continue
        whole = changed(whole, rank, actions)
    return whole


@pytest.mark.parametrize("part", range(4))
def test_each_action_ends_when_the_longest_path_to_it_does(part):
    draws = random.Random(part)
    for _ in range(50):
        whole = shuffled(lowered(draws.choice(NAMES), draws.randint(1, 4), draws.randint(1, 6), draws.random() < 0.5), draws)
        cost = {(s, op): draws.choice([0.0, draws.random(), 3 * draws.random()]) for s in range(whole.n_stages) for op in "FBIWGU"}
        way = {(s, forward): draws.choice([0.0, draws.random()]) for s in range(whole.n_stages) for forward in (True, False)}
        seconds = Seconds(
            lambda action, cost=cost: cost[action.stage, action.op], lambda s, forward, way=way: way[s, forward], draws.choice([0.0, 0.01])
        )
        run, ends = replay(whole, seconds), longest_path(whole, seconds)
        position = [0] * whole.n_ranks
        for event in run.events:
            assert event.action == whole.lists[event.rank][position[event.rank]], "events come in the order of their rank"
            assert event.end == pytest.approx(ends[event.rank, position[event.rank]], abs=1e-12)
            position[event.rank] += 1
        assert position == [len(actions) for actions in whole.lists] and run.seconds == pytest.approx(max(ends.values()), abs=1e-12)


def test_a_replay_that_forgot_what_travels_would_not_be_the_longest_path():
    whole, slow = lowered("one_f_one_b"), Seconds(lambda action: 1.0, lambda s, forward: 0.5)
    assert max(longest_path(whole, slow).values()) > replay(whole, Seconds(slow.of)).seconds + 1


class Counted(int):
    """A microbatch that counts how often it is looked at."""

    looks = 0

    def _count(name):
        of = getattr(int, name)

        def counted(self, *others):
            Counted.looks += 1
            return of(self, *others)

        return counted

    __lt__, __le__, __gt__, __ge__, __eq__, __ne__, __hash__ = map(_count, ("__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__", "__hash__"))


def looks_an_action(name, n_ranks, n):
    whole = lowered(name, n_ranks, n, sums=True)
    counted = whole._replace(
        lists=tuple(tuple(action._replace(item=Counted(action.item), version=Counted(action.version)) for action in of) for of in whole.lists)
    )
    Counted.looks = 0
    replay(counted)
    return Counted.looks / len(places(whole))


@pytest.mark.parametrize("name", NAMES)
def test_an_action_is_looked_at_a_constant_number_of_times(name):
    few, many = looks_an_action(name, 4, 32), looks_an_action(name, 4, 256)
    more = looks_an_action(name, 16, 64)
    assert 0 < few < 60 and many < 1.05 * few and more < 1.3 * few


def test_the_count_would_see_a_look_at_all_that_was_done_before():
    def at_all_before(n):
        Counted.looks = 0
        items = [Counted(i) for i in range(n)]
        return sum(any(before > item for before in items[:i]) for i, item in enumerate(items)) + Counted.looks / n

    assert at_all_before(256) > 5 * at_all_before(32)
