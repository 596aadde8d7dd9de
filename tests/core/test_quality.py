"""Hold what is told of predictions to plain oracles: pairs counted one by one for the AUC, loops for the counts, identities between them."""

import numpy as np
import pytest

from mpidml.core import quality


def problem(seed, n=200, k=4, ties=True):
    """Return labels, what rows were called, and scores (n, k), many of them equal."""
    random = np.random.default_rng(seed)
    y = random.integers(0, k, n)
    scores = random.standard_normal((n, k)) + 1.5 * np.eye(k)[y]
    scores = np.round(scores, 1) if ties else scores
    return y, scores.argmax(axis=1), scores


def pairs(is_class, scores):
    """Count the pairs in which the row of the class has the larger score; a tie is half a pair."""
    wins = [(a > b) + 0.5 * (a == b) for a in scores[is_class] for b in scores[~is_class]]
    return sum(wins) / len(wins)


def without_ties(is_class, scores):
    """The broken variant: ranks by sorting alone, so that equal scores are put in order by chance."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, len(scores) + 1)
    n = int(is_class.sum())
    return (ranks[is_class].sum() - n * (n + 1) / 2) / (n * (len(scores) - n))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [True, False])
def test_the_auc_is_the_share_of_pairs_that_are_in_order(seed, ties):
    y, _, scores = problem(seed, ties=ties)
    for c in range(4):
        assert quality.auc(y == c, scores[:, c]) == pytest.approx(pairs(y == c, scores[:, c]), rel=1e-12)


def test_the_check_of_the_auc_sees_ties_that_are_put_in_order():
    y, _, scores = problem(0)
    order = np.argsort(y == 1, kind="stable")
    is_class, scores = (y == 1)[order], scores[order, 1]
    assert without_ties(is_class, scores) != pytest.approx(pairs(is_class, scores), rel=1e-3)


def test_the_auc_is_the_area_below_the_curve_and_equal_scores_are_one_step():
    for seed in range(4):
        y, _, scores = problem(seed)
        for c in range(4):
            falls, hits = quality.roc(y == c, scores[:, c])
            assert (falls[0], hits[0], falls[-1], hits[-1]) == (0, 0, 1, 1)
            assert np.trapezoid(hits, falls) == pytest.approx(quality.auc(y == c, scores[:, c]), rel=1e-12)
            assert len(falls) == 1 + len(np.unique(scores[:, c]))


def test_the_auc_needs_rows_of_both_kinds_and_does_not_change_with_the_scale():
    is_class, scores = np.array([True, False, True, False]), np.array([3.0, 1.0, 2.0, 2.0])
    assert quality.auc(is_class, scores) == 0.875
    assert quality.auc(is_class, -scores) == pytest.approx(1 - 0.875)
    assert quality.auc(is_class, np.exp(scores) * 7) == 0.875
    assert quality.auc(is_class, np.ones(4)) == 0.5
    assert quality.auc(np.ones(4, bool), scores) is None and quality.auc(np.zeros(4, bool), scores) is None


def test_the_table_counts_each_row_once_where_its_class_and_its_name_meet():
    y, called, _ = problem(1)
    table = quality.confusion(y, called, 4)
    for i in range(4):
        for j in range(4):
            assert table[i, j] == sum(a == i and b == j for a, b in zip(y, called, strict=True))
    worst = quality.confused(y, called, 3)
    off = sorted((int(table[i, j]) for i in range(4) for j in range(4) if i != j), reverse=True)
    assert [count for _, _, count in worst] == off[:3] and all(table[i, j] == count and i != j for i, j, count in worst)
    assert quality.confused(y, y, 3) == []


def by_hand(y, called, k):
    found = []
    for c in range(k):
        right, calls, support = ((y == c) & (called == c)).sum(), (called == c).sum(), (y == c).sum()
        precision, recall = right / calls if calls else 0, right / support if support else 0
        found.append((precision, recall, 2 * precision * recall / (precision + recall) if right else 0, support))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_precision_recall_and_f1_are_those_of_their_formulas(seed):
    y, called, _ = problem(seed)
    y[y == 3] = 2  # a class that is called and never stands there, and one that is neither
    found = quality.of_classes(y, called, list("abcde"), [None] * 5)
    expected = by_hand(y, called, 5)
    assert [(of.precision, of.recall, of.f1, of.support) for of in found] == [pytest.approx(e) for e in expected]
    means = quality.means(found)
    assert means["weighted"]["recall"] == pytest.approx((y == called).mean()), "the recall weighted by support is the accuracy"
    assert means["macro"]["f1"] == pytest.approx(np.mean([e[2] for e in expected[:4]])), "a class of no row has no part"
    assert means["macro"]["recall"] != pytest.approx(means["weighted"]["recall"], rel=1e-3)
    swapped = quality.of_classes(called, y, list("abcde"), [None] * 5)  # the broken variant: labels and names the wrong way round
    assert [of.precision for of in swapped] == [of.recall for of in found] != [of.precision for of in found]


@pytest.mark.bench("sklearn")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [2, 5])
def test_all_figures_are_those_of_scikit_learn(seed, k):
    from sklearn import metrics

    y, called, scores = problem(seed, k=k)
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    for c in range(k):
        assert quality.auc(y == c, scores[:, c]) == pytest.approx(metrics.roc_auc_score(y == c, scores[:, c]), rel=1e-12)
    aucs = [quality.auc(y == c, p[:, c]) for c in range(k)]
    if k > 2:
        assert np.mean(aucs) == pytest.approx(metrics.roc_auc_score(y, p, multi_class="ovr", average="macro"), rel=1e-12)
    found = quality.of_classes(y, called, [str(c) for c in range(k)], aucs)
    of_each = metrics.precision_recall_fscore_support(y, called)
    for mine, theirs in zip(zip(*[(of.precision, of.recall, of.f1, of.support) for of in found], strict=True), of_each, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-12)
    for name in ("macro", "weighted"):
        theirs = metrics.precision_recall_fscore_support(y, called, average=name)[:3]
        assert list(quality.means(found)[name].values()) == pytest.approx(theirs, rel=1e-12)
    assert (quality.confusion(y, called, k) == metrics.confusion_matrix(y, called)).all()
    falls, hits, _ = metrics.roc_curve(y == 1, scores[:, 1], drop_intermediate=False)
    assert all(np.allclose(a, b) for a, b in zip(quality.roc(y == 1, scores[:, 1]), (falls, hits), strict=True))
