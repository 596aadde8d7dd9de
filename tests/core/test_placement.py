"""Every role has one rank, and every rank has a role."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidml.core.errors import UserError
from mpidml.core.placement import place


@given(st.integers(1, 60), st.one_of(st.just("colocated"), st.integers(1, 60).map(str)))
def test_every_rank_has_a_role_and_every_role_one_rank(n_ranks, servers):
    if servers != "colocated" and 1 < n_ranks <= int(servers):
        with pytest.raises(UserError, match=f"start at least {int(servers) + 1} ranks"):
            place(n_ranks, servers)
        return
    placement = place(n_ranks, servers)
    names = placement.names()
    n_servers = n_ranks if servers == "colocated" else int(servers)
    n_workers = n_ranks if servers == "colocated" else max(1, n_ranks - n_servers)
    assert len(names) == n_ranks and all(names)
    assert sorted(chain(*names)) == sorted([f"server {k}" for k in range(n_servers)] + [f"worker {w}" for w in range(n_workers)])
    assert all(f"worker {w}" in names[rank] for w, rank in enumerate(placement.worker_ranks))


def test_servers_of_their_own_serve_only():
    assert place(5, "2").names() == [["server 0"], ["server 1"], ["worker 0"], ["worker 1"], ["worker 2"]]
    assert place(3, "colocated").names() == [[f"server {i}", f"worker {i}"] for i in range(3)]


def test_one_rank_hosts_everything():
    assert place(1, "colocated").names() == [["server 0", "worker 0"]]
    assert place(1, "2").names() == [["server 0", "server 1", "worker 0"]]


@pytest.mark.parametrize("servers", ["0", "-1", "", "two", "1.5", "²", "Colocated"])
@pytest.mark.parametrize("n_ranks", [1, 4])
def test_what_is_no_number_of_servers_is_one_line(n_ranks, servers):
    with pytest.raises(UserError, match=r"--servers .*: not a number of servers; give"):
        place(n_ranks, servers)
