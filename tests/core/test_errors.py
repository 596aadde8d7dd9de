"""A wrong name is answered with the known ones and the nearest."""

import pytest

from mpidml.core.errors import UserError, WaitTimeout, nearest


@pytest.mark.parametrize(
    ("name", "known", "says"),
    [
        ("bps", ["ssp", "bsp", "asp"], "known: asp, bsp, ssp; did you mean 'bsp'?"),
        ("momentun", ["momentum", "adam"], "known: adam, momentum; did you mean 'momentum'?"),
        ("zzz", ["bsp"], "known: bsp"),
        ("", ["bsp"], "known: bsp"),
        ("x", [], "known: "),
    ],
)
def test_nearest_lists_all_in_order_and_guesses_only_what_is_close(name, known, says):
    assert nearest(name, iter(known)) == says


def test_a_failed_run_is_never_taken_for_bad_input():
    assert not issubclass(WaitTimeout, UserError) and not issubclass(UserError, RuntimeError)
