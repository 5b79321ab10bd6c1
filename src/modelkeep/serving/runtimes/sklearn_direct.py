"""The arithmetic of the commonest scikit-learn estimators, without what the library does around it.

A forest hands each of its trees to a pool, and every step of a pipeline looks through its input anew: for one
row that is milliseconds around microseconds. Here are the same operations in the same order, on a matrix of
numbers that was looked through once: forests, boosted trees, linear models, and pipelines of these behind a
scaler. Whether they give what the library gives for the same rows in the form in which it would get them, to
the last bit, is tried out when a model is loaded; where they do not, or where an estimator is not known here,
there is nothing, and the library is asked as ever. So another release that computes in another way costs
speed, and never an answer.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from modelkeep.serving.runtimes import sklearn_trees
from modelkeep.serving.runtimes.sklearn_trees import FEW, added
from modelkeep.serving.validation import Array

Step = Callable[[Array], Array]
Form = Callable[[Array], Any]
"""Makes of rows what the library is handed: a frame, for what was fitted on one."""
Order = Literal["C", "F"]

LARGEST = 2.0**53
"""Numbers beyond it, what is missing and what is infinite are the library's to judge: up to it whole numbers
are exact as doubles, and everything is within single precision, in which trees compare."""
TRIED_ROWS = 256
"""On how many made-up rows the two ways are compared."""
TREES_TRIED, NODES_TRIED = 8, 500
"""Whose thresholds rows are made close to: enough for most of the 256 rows to meet one."""
BESIDE = 0.75
"""Of those rows, how many are close to a threshold; the others are on it."""
_LARGEST_OF = np.maximum.reduce
"""What `max` comes to; not a number where one is."""
_SEED = 20_260_101
_WHOLE_NUMBERS = np.dtype("int64")


class Direct:
    """A fitted estimator as plain arithmetic on matrices.

    `link` makes a linear score a probability; without it scores are probabilities, or values. `few`: another
    way to scores, for few rows; where there is no way for more, `scores` is None and the library gets those.
    `by_row`: what lies where in memory, and beside what, is nothing to it, for nothing is added up over a
    row's columns. `from_zero`: a score of nothing at all is the second class's.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        scores: Step | None,
        classes: Array | None,
        link: Step | None,
        *,
        few: Step | None = None,
        by_row: bool = False,
        from_zero: bool = False,
    ) -> None:
        self._steps = steps
        self._scores = scores
        self._few = few
        self._by_row = by_row
        self._from_zero = from_zero
        self._classes = classes
        self._link = link
        self._orders: dict[tuple[int, np.dtype[Any]], Order] = {}
        """How numbers have to lie in memory, by form and type: in another order sums differ in their last
        bits. What was not tried, or did not agree, is not here."""

    def taken(self, matrix: Array, form: int = 0) -> Array | None:
        """These numbers as they may go this way; None where they may not: it was not tried with their type in
        this form, or did not agree, or one is missing or too large.

        Args:
            form: which of those that were tried the library would get.
        """
        order = self._orders.get((form, _type(matrix)))
        if order is None or (self._scores is None and len(matrix) > FEW):
            return None
        matrix = _laid(matrix, order)
        return matrix if bool(_LARGEST_OF(np.abs(matrix), axis=None) <= LARGEST) else None

    def tried(self, model: Any, forms: Sequence[Form]) -> bool:
        """Hold it against the estimator, in every form and with every type. Returns whether there are numbers
        that may go this way."""
        rows = _made_up(model)
        if self._scores is not None and self._few is not None and not self._few_as_many(rows, self._scores):
            self._few = None
        asked = ("predict", "predict_proba") if hasattr(model, "predict_proba") else ("predict",)
        for number, form in enumerate(forms):
            if self._by_row and number:  # the same numbers, lying otherwise
                self._orders |= {(number, kind): order for (_, kind), order in self._orders.items()}
                continue
            names = asked
            for matrix in (rows, rows.astype(np.float32), np.rint(rows).astype(np.int64)):
                lies_by_column = np.asarray(form(matrix)).flags.f_contiguous
                # As the library gets them, or the other way: numbers that it converts may lie so after that.
                orders: tuple[Order, Order] = ("F", "C") if lies_by_column else ("C", "F")
                found = next((o for o in orders if self._agrees(model, names, matrix, form, o)), None)
                if found is not None:
                    self._orders[number, _type(matrix)] = found
                    # What classes come of scores has nothing to do with the type of the numbers. The library
                    # takes milliseconds for each answer, and the version is loaded as much later.
                    names = asked[-1:]
        return bool(self._orders)

    def _agrees(self, model: Any, asked: Sequence[str], rows: Array, form: Form, order: Order) -> bool:
        """Whether both ways answer rows alike, all at once and one by itself. One row's class is not asked
        for where its probabilities are: they have told whether its scores are the same."""
        for matrix, names in ((rows, asked), (rows[:1], () if self._by_row else asked[-1:])):
            ours, theirs = _laid(matrix, order), form(matrix)
            for name in names:
                mine, other = self._asked(name, ours), np.asarray(getattr(model, name)(theirs))
                if mine.dtype != other.dtype or not np.array_equal(mine, other):
                    return False
        return True

    def _asked(self, name: str, matrix: Array) -> Array:
        """What it answers, a few rows at a time where it takes no more."""
        ask: Step = getattr(self, name)
        if self._scores is not None:
            return ask(matrix)
        return np.concatenate([ask(part) for part in _parts(matrix)])

    def _few_as_many(self, rows: Array, scores: Step) -> bool:
        """Whether the way for few rows gives to the last bit what the way for many gives."""
        assert self._few is not None
        for matrix in (rows, rows.astype(np.float32)):
            for step in self._steps:
                matrix = step(matrix)
            wanted = scores(matrix)
            if not np.array_equal(np.concatenate([self._few(part) for part in _parts(matrix)]), wanted):
                return False
        return True

    def _scored(self, matrix: Array) -> Array:
        for step in self._steps:
            matrix = step(matrix)
        if self._few is not None and (len(matrix) <= FEW or self._scores is None):
            return self._few(matrix)
        assert self._scores is not None
        return self._scores(matrix)

    def predict(self, matrix: Array) -> Array:
        """Classes or values, [rows]."""
        scores = self._scored(matrix)
        if self._classes is None:
            return scores
        if scores.ndim == 1:
            chosen = (scores >= 0 if self._from_zero else scores > 0).astype(np.int64)
        else:
            chosen = scores.argmax(axis=1)
        return self._classes.take(chosen, axis=0)

    def predict_proba(self, matrix: Array) -> Array:
        """Probabilities of a classifier, [rows, classes]."""
        scores = self._scored(matrix)
        if self._link is None:
            return scores
        if scores.ndim == 1:
            positive = self._link(scores)
            return np.stack([1 - positive, positive], axis=1)
        scores -= scores.max(axis=1).reshape(-1, 1)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=1).reshape(-1, 1)
        return scores


def direct(model: Any, forms: Sequence[Form] = (np.asarray,)) -> Direct | None:
    """A fitted estimator as arithmetic; None where there is no such way, or it answers otherwise.

    Args:
        forms: in which the library would get rows.
    """
    try:
        made = _assembled(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that rows have no names
            return made if made is not None and made.tried(model, forms) else None
    except Exception:  # noqa: BLE001 - whatever is unusual about it, the library knows
        return None


def _assembled(model: Any) -> Direct | None:
    from sklearn.pipeline import Pipeline

    steps: list[Step] = []
    if type(model) is Pipeline:
        *before, (_, model) = model.steps
        for _, one in before:
            step = _transforming(one)
            if step is None:
                return None
            steps.append(step)
    return _forest(steps, model) or _linear(steps, model) or _boosted(steps, model)


def _transforming(one: Any) -> Step | None:
    from sklearn.preprocessing import StandardScaler

    if one is None or one == "passthrough":
        return lambda matrix: matrix
    if type(one) is not StandardScaler:
        return None
    mean = one.mean_ if one.with_mean else None
    scale = one.scale_ if one.with_std else None

    def standardised(matrix: Array) -> Array:
        matrix = matrix.copy(order="K")
        if mean is not None:
            matrix -= mean.astype(matrix.dtype, copy=False)
        if scale is not None:
            matrix /= scale.astype(matrix.dtype, copy=False)
        return matrix

    return standardised


def _forest(steps: Sequence[Step], model: Any) -> Direct | None:
    from sklearn import ensemble

    classifies = type(model) in (ensemble.RandomForestClassifier, ensemble.ExtraTreesClassifier)
    regresses = type(model) in (ensemble.RandomForestRegressor, ensemble.ExtraTreesRegressor)
    if not (classifies or regresses) or model.n_outputs_ != 1:
        return None
    trees = [estimator.tree_.predict for estimator in model.estimators_]
    count = len(trees)

    def scored(matrix: Array) -> Array:
        matrix = matrix.astype(np.float32)
        total: Array = trees[0](matrix)
        for tree in trees[1:]:
            total += tree(matrix)
        total /= count
        return total if classifies else total[:, 0]

    at_once = sklearn_trees.of_forest(model.estimators_)

    def few(matrix: Array) -> Array:
        assert at_once is not None
        total = added(at_once.worth(matrix.astype(np.float32).astype(np.float64)))
        total /= count
        return total if classifies else total[:, 0]

    classes = model.classes_ if classifies else None
    return Direct(steps, scored, classes, None, few=few if at_once is not None else None, by_row=True)


def _boosted(steps: Sequence[Step], model: Any) -> Direct | None:
    """Gradient boosting from a start that is the same for every row: one that a model of its own works out
    may differ where no row is tried. For more than a few rows the library's own way costs little around
    each."""
    from sklearn import dummy, ensemble

    exact = type(model) in (ensemble.GradientBoostingClassifier, ensemble.GradientBoostingRegressor)
    constant = (str, dummy.DummyClassifier, dummy.DummyRegressor)  # as a word, that it is nothing
    if exact and type(model.init_) not in constant:
        return None
    binned = type(model) in (ensemble.HistGradientBoostingClassifier, ensemble.HistGradientBoostingRegressor)
    if exact:
        stages, width = model.estimators_, model.estimators_.shape[1]
        at_once = sklearn_trees.of_forest(list(stages.ravel()))
        rate, first = model.learning_rate, model._raw_predict_init(np.zeros((1, model.n_features_in_)))
    elif binned and model._preprocessor is None:
        stages, width = model._predictors, model.n_trees_per_iteration_
        at_once = sklearn_trees.of_predictors([one for stage in stages for one in stage])
        rate, first = 1.0, model._baseline_prediction.reshape(1, -1)
    else:
        return None
    if at_once is None:
        return None
    trees = at_once
    trees.value *= rate
    classifies, loss = hasattr(model, "classes_"), model._loss

    def few(matrix: Array) -> Array:
        if exact:
            matrix = matrix.astype(np.float32)
        worth = trees.worth(np.ascontiguousarray(matrix, dtype=np.float64))
        by_stage = worth.reshape(len(stages), width, -1).transpose(0, 2, 1)  # [stages, rows, values]
        start = np.broadcast_to(first, (1, *by_stage.shape[1:]))
        scores = added(np.concatenate([start, by_stage]))
        if classifies:
            return scores[:, 0] if width == 1 else scores
        return np.asarray(scores[:, 0] if exact else loss.link.inverse(scores[:, 0]))

    classes = model.classes_ if classifies else None
    link = loss.link.inverse if classifies else None
    return Direct(steps, None, classes, link, few=few, by_row=True, from_zero=exact)


def _linear(steps: Sequence[Step], model: Any) -> Direct | None:
    from sklearn import linear_model
    from sklearn._loss.link import LogitLink

    classifies = type(model) is linear_model.LogisticRegression
    values = (linear_model.LinearRegression, linear_model.Ridge, linear_model.Lasso, linear_model.ElasticNet)
    if not classifies and type(model) not in values:
        return None
    weights, intercept = model.coef_.T if model.coef_.ndim == 2 else model.coef_, model.intercept_

    def scored(matrix: Array) -> Array:
        scores: Array = matrix @ weights + intercept
        return scores.reshape(-1) if classifies and scores.shape[1:] == (1,) else scores

    return Direct(steps, scored, model.classes_ if classifies else None, LogitLink().inverse)


# ------------------------------------------------------------------------------------------------- trying out


def _type(matrix: Array) -> np.dtype[Any]:
    """The type of numbers. Whole ones are one type: they are made doubles, whatever their width."""
    return _WHOLE_NUMBERS if matrix.dtype.kind == "i" else matrix.dtype


def _laid(matrix: Array, order: Order) -> Array:
    """Numbers as doubles or floats, row by row or column by column."""
    dtype = np.float64 if matrix.dtype.kind == "i" else matrix.dtype
    return np.asarray(matrix, dtype=dtype, order=order)


def _parts(matrix: Array) -> Iterator[Array]:
    """A row by itself, for one goes a way of its own, and then a few at a time."""
    yield matrix[:1]
    for start in range(1, len(matrix), FEW):
        yield matrix[start : start + FEW]


def _made_up(model: Any) -> Array:
    """Rows of all magnitudes, near what the model was fitted on where it says so."""
    random = np.random.default_rng(_SEED)
    width = int(model.n_features_in_)
    rows = random.normal(size=(TRIED_ROWS, width)) * 10.0 ** random.integers(-3, 5, size=(TRIED_ROWS, 1))
    first = model.steps[0][1] if hasattr(model, "steps") else model
    mean, scale = getattr(first, "mean_", None), getattr(first, "scale_", None)
    if mean is not None and scale is not None:
        rows[::2] = mean + scale * random.normal(size=rows[::2].shape)
    for tree in sklearn_trees.some_of(first, TREES_TRIED):
        inner = tree.inner[:NODES_TRIED]
        for feature, threshold in zip(tree.feature[inner], tree.threshold[inner], strict=True):
            beside = random.normal() * 1e-3 * (random.random() < BESIDE)
            rows[random.integers(0, TRIED_ROWS), feature] = threshold * (1 + beside)
    return rows
