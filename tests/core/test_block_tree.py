"""The tree over blocks adds the same to the same, whoever holds them."""

import numpy as np
import pytest

from mpidml.core.block_tree import BlockTree, Node, children, nodes


def expression(node):
    """Write the sum of a node's blocks with all its brackets."""
    if node.level == 0:
        return str(node.place)
    left, right = children(node)
    return f"({expression(left)}+{expression(right)})"


def whole(tree):
    """Return the expression that the ranks' nodes and the additions above them make."""
    rows = [expression(node) for node in tree.rows]
    for into, row in tree.adds:
        rows[into] = f"({rows[into]}+{rows[row]})"
    return rows[0]


@pytest.mark.parametrize("n_blocks", [1, 2, 4, 8, 16, 64])
def test_any_number_of_ranks_makes_the_same_additions(n_blocks):
    trees = [BlockTree(n_blocks, n_ranks) for n_ranks in range(1, min(n_blocks, 20) + 1)]
    assert {whole(tree) for tree in trees} == {expression(Node(n_blocks.bit_length() - 1, 0))}
    for tree in trees:
        assert sorted(b for node in tree.rows for b in range(node.place << node.level, (node.place + 1) << node.level)) == list(range(n_blocks))
        assert max(len(tree.of(rank)) for rank in range(tree.n_ranks)) <= max(1, 2 * n_blocks.bit_length() - 2)


def test_the_drawing():
    tree = BlockTree(8, 3)
    assert [tree.of(rank) for rank in range(3)] == [[Node(1, 0)], [Node(1, 1), Node(0, 4)], [Node(0, 5), Node(1, 3)]]
    assert whole(tree) == "(((0+1)+(2+3))+((4+5)+(6+7)))"


def test_a_plain_sum_of_the_ranks_parts_has_other_bits():
    values = np.random.default_rng(0).standard_normal((8, 10_000)).astype(np.float32)

    def by_rank(n_ranks):
        parts = [sum(values[8 * r // n_ranks + 1 : 8 * (r + 1) // n_ranks], values[8 * r // n_ranks].copy()) for r in range(n_ranks)]
        return sum(parts[1:], parts[0]).tobytes()

    assert len({by_rank(n_ranks) for n_ranks in (1, 2, 3)}) == 3


def test_blocks_that_make_no_tree_are_refused():
    with pytest.raises(ValueError, match="12 blocks are no power of two"):
        BlockTree(12, 3)
    assert nodes(3, 3) == []
