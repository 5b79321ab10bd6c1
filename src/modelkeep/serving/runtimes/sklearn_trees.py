"""Trees that are all walked down at once, one level after the other, for a few rows.

A library walks one tree after the other, and what it does around each takes longer than the walk. Here the
nodes of all trees stand in one row of arrays, and a handful of numpy's operations takes every row one level
down in every tree. Each leaf is the one that the library finds, for the comparisons are the same; leaves are
added up in the trees' own order, because in another the last bits would differ. Nothing here decides whether
that may stand in for the library (`sklearn_direct`), and values that are missing are not known here.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from modelkeep.serving.validation import Array

FEW = 32
"""Rows for which this is quicker than one tree after the other: with more, what is done around each tree is
paid once for so many."""
NUMBERS_MAX = 8_000_000
"""Of all trees together, at 8 bytes each: three of a node, and what it is worth, a number for each class.
They stand in memory a second time."""
TREES_A_LEVEL = 2
"""Trees that there have to be for each level: a level costs about as much as two trees do one by one."""


class Grown(NamedTuple):
    """One tree. By node: the feature that is compared and with what, where it goes on (`left` where the value
    is at most the threshold) and what a leaf is worth, [nodes, values]. `inner` are those that go on."""

    feature: Array
    threshold: Array
    left: Array
    right: Array
    value: Array
    inner: Array


class Trees:
    """All trees of a model. Siblings stand side by side, so that a comparison is the step from one to the
    other, and a leaf goes on to itself."""

    def __init__(self, trees: Sequence[Grown], depth: int) -> None:
        count = sum(len(tree.value) for tree in trees)
        self.feature = np.zeros(count, np.intp)
        self.threshold = np.full(count, np.inf)
        self.next = np.arange(count)
        self.value = np.empty((count, trees[0].value.shape[1]))
        self.depth = depth
        roots = []
        at = 0
        for tree in trees:
            place = np.full(len(tree.value), at)  # of the root, and of all others soon
            pairs = at + 1 + 2 * np.arange(len(tree.inner))
            place[tree.left[tree.inner]] = pairs
            place[tree.right[tree.inner]] = pairs + 1
            here = place[tree.inner]
            self.feature[here] = tree.feature[tree.inner]
            self.threshold[here] = tree.threshold[tree.inner]
            self.next[here] = pairs
            self.value[place] = tree.value
            roots.append(at)
            at += len(tree.value)
        self.roots = np.array(roots)

    def worth(self, matrix: Array) -> Array:
        """What each tree says of each row, [trees, rows, values].

        Args:
            matrix: of doubles, as the library compares them.
        """
        rows, width = matrix.shape
        flat, feature, threshold = matrix.reshape(-1).take, self.feature.take, self.threshold.take
        onward = self.next.take
        if rows == 1:
            nodes = self.roots
            for _ in range(self.depth):
                nodes = onward(nodes) + (flat(feature(nodes)) > threshold(nodes))
            return self.value.take(nodes, axis=0)[:, np.newaxis]
        nodes = np.repeat(self.roots, rows).reshape(-1, rows)
        starts = np.arange(0, rows * width, width)
        for _ in range(self.depth):
            nodes = onward(nodes) + (flat(feature(nodes) + starts) > threshold(nodes))
        return self.value.take(nodes, axis=0)


def added(worth: Array) -> Array:
    """The sum over the first axis, from the first to the last: numpy's own sum adds in another order."""
    total: Array = np.add.accumulate(worth, axis=0)[-1]
    return total


def trees_of(trees: Sequence[Grown], depth: int) -> Trees | None:
    """Trees to be walked at once; None where that would be slower, or take too much memory.

    Args:
        depth: of the deepest.
    """
    too_many = sum(3 * len(tree.value) + tree.value.size for tree in trees) > NUMBERS_MAX
    return None if too_many or depth * TREES_A_LEVEL > len(trees) else Trees(trees, depth)


def of_forest(estimators: Sequence[Any]) -> Trees | None:
    """The trees of a forest, or of gradient boosting by exact splits."""
    depth = max(estimator.tree_.max_depth for estimator in estimators)
    return trees_of([_of_estimator(estimator) for estimator in estimators], depth)


def of_predictors(predictors: Sequence[Any]) -> Trees | None:
    """The trees of gradient boosting by histograms; None also where a split is one of categories."""
    if any(predictor.nodes["is_categorical"].any() for predictor in predictors):
        return None
    depth = max(predictor.get_max_depth() for predictor in predictors)
    return trees_of([_of_predictor(predictor) for predictor in predictors], depth)


def some_of(model: Any, count: int) -> list[Grown]:
    """The first trees of a model; none of one that has none."""
    if hasattr(model, "_predictors"):
        stages = model._predictors[:count]
        return [_of_predictor(one) for stage in stages for one in stage][:count]
    estimators = np.ravel(getattr(model, "estimators_", []))[:count]
    return [_of_estimator(estimator) for estimator in estimators]


def _of_estimator(estimator: Any) -> Grown:
    tree = estimator.tree_
    left, right = tree.children_left, tree.children_right
    return Grown(tree.feature, tree.threshold, left, right, tree.value[:, 0, :], np.flatnonzero(left >= 0))


def _of_predictor(predictor: Any) -> Grown:
    nodes = predictor.nodes
    left, right = nodes["left"].astype(np.intp), nodes["right"].astype(np.intp)
    inner = np.flatnonzero(nodes["is_leaf"] == 0)
    value = nodes["value"].reshape(-1, 1)
    return Grown(nodes["feature_idx"], nodes["num_threshold"], left, right, value, inner)
