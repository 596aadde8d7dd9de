"""A cut gives each row one server, each server as much as the others, and no shard two parts."""

from bisect import bisect_right
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidml.core.partition import Shard, cut, merge_parts, shards, weighted_cut

SIZES = st.tuples(st.integers(0, 3000), st.integers(1, 40), st.sampled_from([1, 4, 16]))


def check_cut(edges, n_rows, n_servers, align):
    align = align if n_rows >= n_servers * align else 1
    assert len(edges) == n_servers + 1 and edges[0] == 0 and edges[-1] == n_rows
    sizes = [hi - lo for lo, hi in pairwise(edges)]
    assert min(sizes) >= 0 and max(sizes) - min(sizes) <= align
    assert all(edge % align == 0 for edge in edges[:-1])


@given(SIZES)
def test_ranges_tile_the_rows_and_differ_by_at_most_the_alignment(sizes):
    check_cut(cut(*sizes), *sizes)


def rest_to_the_last(n_rows, n_servers, align):
    return [i * (n_rows // n_servers // align * align) for i in range(n_servers)] + [n_rows]


def rounded_down(n_rows, n_servers, align):
    return [i * n_rows // n_servers // align * align for i in range(n_servers)] + [n_rows]


@pytest.mark.parametrize(("broken", "sizes"), [(rest_to_the_last, (107, 10, 1)), (rounded_down, (3 * 32 - 1, 3, 16))])
def test_the_check_catches_an_uneven_cut(broken, sizes):
    with pytest.raises(AssertionError):
        check_cut(broken(*sizes), *sizes)


@pytest.mark.parametrize("n_rows", [8_970, 109_386, 1_000_003, 25_600_000])
@pytest.mark.parametrize("n_servers", [1, 2, 3, 7, 16, 48])
def test_real_models_are_shared_out_evenly(n_rows, n_servers):
    sizes = [hi - lo for lo, hi in pairwise(cut(n_rows, n_servers, 16))]
    assert max(sizes) / (n_rows / n_servers) <= 1.1


def tiling(edges):
    return [(lo, hi) for lo, hi in pairwise(sorted({*edges}))][::-1]


@st.composite
def rows_and_parts(draw):
    n_rows = draw(st.integers(1, 2000))
    return n_rows, tiling([0, n_rows, *draw(st.lists(st.integers(0, n_rows), max_size=8))])


def check_shards(found, n_rows, n_servers, parts, align):
    assert found[0].lo == 0 and found[-1].hi == n_rows and all(a.hi == b.lo for a, b in pairwise(found)) and all(s.lo < s.hi for s in found)
    edges = cut(n_rows, n_servers, align)
    for shard in found:
        assert edges[shard.server] <= shard.lo and shard.hi <= edges[shard.server + 1], "crosses a server"
        assert any(lo <= shard.lo and shard.hi <= hi for lo, hi in parts), "crosses a part"


@given(rows_and_parts(), st.integers(1, 12), st.sampled_from([1, 16]))
def test_shards_tile_the_rows_and_cross_neither_parts_nor_servers(rows, n_servers, align):
    n_rows, parts = rows
    found = shards(n_rows, n_servers, parts, align)
    check_shards(found, n_rows, n_servers, parts, align)
    los = [s.lo for s in found]
    assert all(found[bisect_right(los, row) - 1].lo <= row < found[bisect_right(los, row) - 1].hi for row in range(0, n_rows, 7))


@pytest.mark.parametrize(
    "broken",
    [
        [Shard(0, 10, 0), Shard(10, 20, 1)],
        [Shard(0, 4, 0), Shard(4, 20, 0)],
        [Shard(0, 4, 0), Shard(4, 10, 0), Shard(12, 20, 1)],
    ],
)
def test_the_check_catches_shards_that_cross_or_leave_a_gap(broken):
    with pytest.raises(AssertionError):
        check_shards(broken, 20, 2, [(4, 20), (0, 4)], 1)


def test_without_parts_each_server_has_one_shard():
    assert shards(100, 3) == [Shard(0, 33, 0), Shard(33, 66, 1), Shard(66, 100, 2)]
    assert shards(2, 4) == [Shard(0, 1, 1), Shard(1, 2, 3)], "servers without rows have none"


@given(rows_and_parts(), st.integers(0, 2000))
def test_merged_parts_tile_the_same_rows_and_only_the_last_may_be_small(rows, n_least):
    n_rows, parts = rows
    merged = merge_parts(parts, n_least)
    assert merged[0][1] == n_rows and merged[-1][0] == 0 and all(a[0] == b[1] for a, b in pairwise(merged))
    assert {e for part in merged for e in part} <= {e for part in parts for e in part}
    assert all(hi - lo >= n_least for lo, hi in merged[:-1])


def test_parts_that_are_not_neighbours_stay_apart():
    assert merge_parts([(8, 10), (2, 4), (0, 2)], 5) == [(8, 10), (0, 4)]


@given(st.integers(0, 3000), st.lists(st.sampled_from([0, 0.1, 1, 2.5, 1000]), min_size=1, max_size=9).filter(any))
def test_a_weighted_cut_tiles_a_width_in_proportion_and_gives_nothing_to_a_weight_of_zero(n, weights):
    edges = weighted_cut(n, weights)
    sizes = [hi - lo for lo, hi in pairwise(edges)]
    assert edges[0] == 0 and edges[-1] == n and len(sizes) == len(weights) and min(sizes) >= 0
    for size, weight in zip(sizes, weights, strict=True):
        assert abs(size - n * weight / sum(weights)) <= 1 and (weight or not size)


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [float("nan"), 1], [float("inf"), 1]])
def test_weights_that_cut_nothing_are_named(weights):
    with pytest.raises(ValueError, match="cut nothing; give numbers from 0 up"):
        weighted_cut(10, weights)
