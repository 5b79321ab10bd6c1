"""scikit-learn's commonest estimators as plain arithmetic: the library's own answers, or nothing."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.tree import DecisionTreeRegressor

from modelkeep.core.errors import InvalidInput
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.serving.runtimes import sklearn_direct, sklearn_trees
from modelkeep.serving.runtimes.sklearn import SklearnRuntime
from modelkeep.serving.validation import Array, Table
from tests.serving import models

RANDOM = np.random.default_rng(3)
ROWS = RANDOM.normal(size=(120, 4)) * (1.0, 10.0, 100.0, 0.01)
TARGET = ROWS[:, 0] + ROWS[:, 1] / 10
CLASSES = np.array(["high", "low", "middle"])[np.digitize(TARGET, (-0.5, 0.5))]
KNOWN: dict[str, Any] = {
    "logistic": LogisticRegression().fit(ROWS, TARGET > 0),
    "scaled logistic of three": make_pipeline(StandardScaler(), LogisticRegression()).fit(ROWS, CLASSES),
    "forest": RandomForestClassifier(7, random_state=1).fit(ROWS, CLASSES),
    "scaled forest": make_pipeline(StandardScaler(), RandomForestRegressor(7, random_state=1)).fit(
        ROWS, TARGET
    ),
    "extra trees": ExtraTreesRegressor(7, random_state=1).fit(ROWS, TARGET),
    "forest of many": RandomForestClassifier(40, max_depth=6, random_state=1).fit(ROWS, CLASSES),
    "regressors of many": RandomForestRegressor(40, max_depth=6, random_state=1).fit(ROWS, TARGET),
    "boosted": GradientBoostingClassifier(n_estimators=20, random_state=1).fit(ROWS, TARGET > 0),
    "boosted of three": GradientBoostingClassifier(n_estimators=9, random_state=1).fit(ROWS, CLASSES),
    "scaled boosted": make_pipeline(
        StandardScaler(), GradientBoostingRegressor(n_estimators=20, random_state=1)
    ).fit(ROWS, TARGET),
    "binned": HistGradientBoostingClassifier(max_iter=40, max_depth=5).fit(ROWS, TARGET > 0),
    "binned of three": HistGradientBoostingClassifier(max_iter=10, max_depth=5).fit(ROWS, CLASSES),
    "binned counts": HistGradientBoostingRegressor(loss="poisson", max_iter=40, max_depth=5).fit(
        ROWS, np.exp(TARGET / 4)
    ),
    "linear": LinearRegression().fit(ROWS, TARGET),
    "ridge without a mean": make_pipeline(StandardScaler(with_mean=False), Ridge()).fit(ROWS, TARGET),
}


@pytest.mark.req("S1")
@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_what_is_known_answers_as_the_library_does_to_the_last_bit(name: str, dtype: str) -> None:
    """One row, a few and many, in both precisions; and no row is changed by being asked about. Boosted trees
    leave many to the library, which does little around each of them."""
    model = KNOWN[name]
    direct = sklearn_direct.direct(model)
    assert direct is not None
    for count in (1, 3, sklearn_trees.FEW, 120):
        rows = ROWS[:count].astype(dtype)
        kept = rows.copy()
        taken = direct.taken(rows)
        if count > sklearn_trees.FEW and ("boosted" in name or "binned" in name):
            assert taken is None
            continue
        assert taken is not None
        wanted = np.asarray(model.predict(rows))
        assert direct.predict(taken).dtype == wanted.dtype
        assert np.array_equal(direct.predict(taken), wanted)
        if hasattr(model, "predict_proba"):
            assert np.array_equal(direct.predict_proba(taken), model.predict_proba(rows))
        assert np.array_equal(rows, kept)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 1e40, 2.0**53 + 2])
def test_numbers_that_the_library_has_to_judge_are_left_to_it(odd: float) -> None:
    """What is missing, infinite or beyond single precision never goes the direct way."""
    direct = sklearn_direct.direct(KNOWN["forest"])
    assert direct is not None
    rows = ROWS[:3].copy()
    rows[1, 2] = odd
    assert direct.taken(rows) is None
    assert direct.taken(np.zeros((1, 4), dtype="float16")) is None
    assert direct.taken(np.full((1, 4), -(2**63))) is None


def test_a_row_that_is_on_every_threshold_goes_the_way_that_the_library_takes() -> None:
    """What is equal is not above; in every tree, for one row and for a few."""
    model = KNOWN["binned"]
    (trees, direct) = (sklearn_trees.some_of(model, 40), sklearn_direct.direct(model))
    assert direct is not None
    rows = ROWS[:30].copy()
    for number, tree in enumerate(trees[:30]):
        rows[number, tree.feature[tree.inner]] = tree.threshold[tree.inner]
    assert np.array_equal(direct.predict_proba(rows), model.predict_proba(rows))
    for row in rows:
        assert np.array_equal(direct.predict_proba(row[np.newaxis]), model.predict_proba(row[np.newaxis]))


def test_a_quick_way_that_answers_otherwise_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a forest the other way is left, tree by tree; of boosted trees there is no other, so the library
    answers."""
    real = sklearn_trees.Trees.worth
    monkeypatch.setattr(
        sklearn_trees.Trees, "worth", lambda self, rows: np.nextafter(real(self, rows), np.inf)
    )
    forest = KNOWN["forest of many"]
    direct = sklearn_direct.direct(forest)
    assert direct is not None
    assert np.array_equal(direct.predict_proba(ROWS[:3]), forest.predict_proba(ROWS[:3]))
    assert sklearn_direct.direct(KNOWN["boosted"]) is None
    assert sklearn_direct.direct(KNOWN["binned"]) is None


def test_what_begins_where_a_model_of_its_own_says_is_left_to_the_library() -> None:
    """That model may answer all rows alike that are tried, and others otherwise."""
    far = ROWS.copy()
    far[:, 0] = RANDOM.uniform(1e6, 1e7, len(far))
    begun = GradientBoostingRegressor(init=DecisionTreeRegressor(max_depth=1), n_estimators=40, max_depth=2)
    begun.fit(far, np.where(far[:, 0] > 5e6, 100.0, 0.0) + far[:, 1])
    assert sklearn_direct.direct(begun) is None
    nothing = GradientBoostingRegressor(init="zero", n_estimators=20).fit(ROWS, TARGET)
    direct = sklearn_direct.direct(nothing)
    assert direct is not None
    assert np.array_equal(direct.predict(ROWS[:3]), nothing.predict(ROWS[:3]))


def test_trees_that_are_too_deep_too_many_or_of_categories_are_not_laid_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A few deep trees are quicker one by one; large ones do not stand in memory twice; and a split of
    categories compares nothing."""
    assert sklearn_trees.of_forest(KNOWN["forest"].estimators_) is None
    many = KNOWN["forest of many"].estimators_
    assert sklearn_trees.of_forest(many) is not None
    nodes, classes = sum(tree.tree_.node_count for tree in many), len(np.unique(CLASSES))
    for numbers, fits in ((nodes * (3 + classes), True), (nodes * (3 + classes) - 1, False)):
        monkeypatch.setattr(sklearn_trees, "NUMBERS_MAX", numbers)
        assert (sklearn_trees.of_forest(many) is not None) == fits
    kinds = np.column_stack([np.arange(120) % 5, ROWS])
    split = HistGradientBoostingRegressor(categorical_features=[0]).fit(kinds, kinds[:, 0] % 2)
    assert sklearn_direct.direct(split) is None


def test_a_score_of_nothing_is_whose_the_library_says() -> None:
    """Linear models and histograms give it to the first class, exact boosting to the second."""
    for from_zero, chosen in ((False, "no"), (True, "yes")):
        direct = sklearn_direct.Direct(
            (), lambda rows: np.zeros(len(rows)), np.array(["no", "yes"]), None, from_zero=from_zero
        )
        assert direct.predict(ROWS[:2]).tolist() == [chosen, chosen]


class Doubled(LogisticRegression):
    """Looks like one that is known."""

    def decision_function(self, X: Array) -> Array:  # noqa: N803 - the library's name
        return np.asarray(super().decision_function(X)) * 2


def test_what_is_not_known_or_answers_otherwise_has_no_direct_way() -> None:
    """A subclass, another step, several targets, and a known class that was changed after it was fitted."""
    assert sklearn_direct.direct(Doubled().fit(ROWS, TARGET > 0)) is None
    assert sklearn_direct.direct(make_pipeline(MinMaxScaler(), Ridge()).fit(ROWS, TARGET)) is None
    several = RandomForestRegressor(3, random_state=1).fit(ROWS, ROWS[:, :2])
    assert sklearn_direct.direct(several) is None
    changed = LinearRegression().fit(ROWS, TARGET)
    changed.predict = lambda rows: np.full(len(rows), 7.0)
    assert sklearn_direct.direct(changed) is None
    assert sklearn_direct.direct(object()) is None


def runtime_of(model: Any, *outputs: str) -> SklearnRuntime:
    """A fitted model as a worker has it."""
    fields = tuple(Field(name=name, type=DataType.FLOAT64) for name in outputs)
    spec = models.spec({"model.joblib": b""}, "1.0.0", signature=Signature(inputs=(), outputs=fields))
    return SklearnRuntime(model, spec)


def test_a_frame_of_names_is_answered_alike_whichever_way_it_goes() -> None:
    """Columns in any order, as a matrix or one by one, whole numbers among them, and values that are missing,
    which the library sees: always what it answers for the frame."""
    names = ["a", "b", "c", "d"]
    frame = pd.DataFrame(ROWS, columns=names)
    forest = RandomForestClassifier(7, random_state=1, n_jobs=-1).fit(frame, TARGET > 0)
    runtime = runtime_of(forest, "class", "probability")
    assert forest.n_jobs == 1
    whole = Table(names, np.ascontiguousarray(ROWS[:5]))
    rounded = {name: np.round(array).astype("int64") for name, array in whole.items()}
    holes = Table(names, np.where(ROWS[:5] > 0.5, np.nan, ROWS[:5]))
    backwards = {name: whole[name] for name in reversed(names)}
    for columns in (whole, backwards, rounded, holes, dict(holes)):
        wanted = pd.DataFrame({name: columns[name] for name in names})
        found = runtime.predict(columns)
        assert found["class"].tolist() == forest.predict(wanted).tolist()
        assert found["probability"].tolist() == forest.predict_proba(wanted)[:, 1].tolist()


def test_the_direct_way_is_refused_what_the_library_refuses() -> None:
    """Too few columns, or a value without end: the model raises, as ever."""
    runtime = runtime_of(KNOWN["linear"], "value")
    with pytest.raises(InvalidInput):
        runtime.predict(Table(["a", "b"], np.zeros((1, 2))))
    with pytest.raises(ValueError, match="infinity"):
        runtime.predict(Table(["a", "b", "c", "d"], np.full((1, 4), np.inf)))


@pytest.mark.parametrize("estimator", [LinearRegression(), Ridge(), make_pipeline(StandardScaler(), Ridge())])
def test_an_answer_has_one_shape_whichever_way_it_was_found(estimator: Any) -> None:
    """What was fitted on a target of one column answers one value a row, also beside rows that the library
    sees."""
    runtime = runtime_of(estimator.fit(ROWS, TARGET.reshape(-1, 1)), "value")
    names = ["a", "b", "c", "d"]
    rows = ROWS[:3].copy()
    plain = runtime.predict(Table(names, rows))["value"]
    large = rows.copy()
    large[0, 0] = sklearn_direct.LARGEST * 2
    judged = runtime.predict(Table(names, large))["value"]
    assert plain.shape == judged.shape == (3,)
    assert plain[1:].tolist() == judged[1:].tolist()


@pytest.mark.parametrize("kind", [LinearRegression, LogisticRegression, Ridge])
@pytest.mark.parametrize("dtype", ["float64", "float32", "int64"])
def test_a_model_of_names_answers_as_for_its_frames_to_the_last_bit(kind: Any, dtype: str) -> None:
    """However a frame lies in memory: whole, or made of columns, in which sums are made in another order."""
    names = [f"c{index}" for index in range(29)]
    rows = RANDOM.normal(size=(64, len(names))) * 100
    target = (rows[:, 0] > rows[:, 1]).astype("int64")
    model = kind().fit(pd.DataFrame(rows, columns=names), target)
    runtime = runtime_of(model, "value")
    for count in (1, 2, 7, 64):
        sent = np.ascontiguousarray(rows[:count].astype(dtype))
        by_column = {name: sent[:, index] for index, name in enumerate(names)}
        for columns, frame in (
            (Table(names, sent), pd.DataFrame(sent, columns=names)),
            (by_column, pd.DataFrame(by_column)),
        ):
            assert runtime.predict(columns)["value"].tolist() == model.predict(frame).tolist()


class Ordered(LinearRegression):
    """Sums otherwise when its rows lie column by column, as the library may."""

    def predict(self, X: Any) -> Array:  # noqa: N803 - the library's name
        """As ever, but for the last bit."""
        found: Array = np.asarray(super().predict(X))
        return np.nextafter(found, np.inf) if np.asarray(X).flags.fnc else found


def test_the_trial_is_held_in_the_form_that_the_library_would_get(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that answers otherwise where rows lie by column has no direct way where they would."""
    model = LinearRegression().fit(ROWS, TARGET)
    odd = Ordered().fit(ROWS, TARGET)
    monkeypatch.setattr(model, "predict", odd.predict)
    assert sklearn_direct.direct(model) is not None
    assert sklearn_direct.direct(model, [np.asfortranarray]) is None
    both = sklearn_direct.direct(model, [np.asfortranarray, np.asarray])
    assert both is not None
    assert both.taken(ROWS, 0) is None
    assert both.taken(ROWS, 1) is not None
