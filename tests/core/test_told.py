"""Of a rank's waits the one is told that says most: not that a server waits for a worker beside it which itself waits for another rank."""

from mpidml.core.role import Waiting, told

SERVER = Waiting(1.0, "the server here waits for worker 3", (3,))
WORKER = Waiting(1.5, "worker 3 waits for a server elsewhere")
HERE = {0, 3}


def test_a_wait_for_a_role_of_this_rank_gives_way_to_what_that_one_waits_for():
    assert told([SERVER, WORKER], HERE) is WORKER
    assert min([SERVER, WORKER]) is SERVER, "the broken variant: the oldest"


def test_it_is_told_where_there_is_nothing_better():
    assert told([SERVER], HERE) is SERVER


def test_of_others_the_oldest_is_told():
    other = Waiting(0.5, "the server here waits for worker 7", (7, 3))
    assert told([SERVER, WORKER, other], HERE) is other
    assert told([SERVER, WORKER], {0}) is SERVER, "worker 3 is on another rank"
