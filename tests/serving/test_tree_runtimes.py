"""XGBoost and LightGBM beyond the suite of all runtimes: classes and probabilities, categories, early stops,
and the folders that MLflow writes of them."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelkeep.core import errors
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.serving import runtimes
from modelkeep.serving.validation import Array, Columns
from tests.contracts.runtimes import INPUTS, some_columns, training_rows
from tests.serving import models

xgboost = pytest.importorskip("xgboost", reason="the runtimes are extras")
lightgbm = pytest.importorskip("lightgbm", reason="the runtimes are extras")

LABEL = Field(name="label", type=DataType.INT64)
TRUTH = Field(name="truth", type=DataType.BOOL)
PROBABILITY = Field(name="probability", type=DataType.FLOAT64, minimum=0, maximum=1)
ROWS = np.column_stack(list(some_columns().values()))


def predict(files: dict[str, bytes], *outputs: Field, columns: Columns | None = None) -> Columns:
    """What a version of these files answers."""
    signature = Signature(inputs=INPUTS, outputs=outputs) if outputs else None
    spec = models.spec(files, "1.0.0", signature=signature)
    loaded = runtimes.load(spec, files, Path("/nowhere"), 1)
    return loaded.predict(columns or (some_columns() if outputs else {"": ROWS}))


def classes(several: bool) -> Array:
    """Two classes, or three."""
    age = training_rows()[:, 0]
    return np.digitize(age, [40, 60] if several else [50])


@cache
def classifier(several: bool) -> Any:
    """A classifier of XGBoost's scikit-learn face that stopped early."""
    made = xgboost.XGBClassifier(n_estimators=40, max_depth=2, n_jobs=1, early_stopping_rounds=2, verbosity=0)
    rows, wanted = training_rows(), classes(several)
    wanted[::5] = wanted[::-5][: len(wanted[::5])]
    return made.fit(rows[:150], wanted[:150], eval_set=[(rows[150:], wanted[150:])], verbose=False)


@cache
def saved(several: bool) -> dict[str, bytes]:
    """Its own file."""
    import tempfile

    with tempfile.TemporaryDirectory() as there:
        classifier(several).save_model(f"{there}/model.ubj")
        return {"model.ubj": Path(there, "model.ubj").read_bytes()}


@pytest.mark.req("S1")
@pytest.mark.parametrize("several", [False, True])
def test_a_classifier_of_xgboost_answers_as_its_own_class(several: bool) -> None:
    """Classes, probabilities, and only the trees up to the best round."""
    model, shape = classifier(several), (3,) if several else (2,)
    whole = Field(name="probabilities", type=DataType.FLOAT32, shape=shape)
    answer = predict(saved(several), LABEL, whole)
    np.testing.assert_array_equal(answer["label"], model.predict(ROWS))
    np.testing.assert_allclose(answer["probabilities"], model.predict_proba(ROWS), rtol=1e-5)
    (plain,) = predict(saved(several)).values()
    np.testing.assert_array_equal(plain, model.predict(ROWS))
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()


@pytest.mark.req("S1")
def test_two_classes_are_a_truth_and_its_probability() -> None:
    """A single value per row is the probability of the positive class."""
    answer = predict(saved(False), TRUTH, PROBABILITY)
    assert answer["truth"].dtype == bool
    np.testing.assert_allclose(answer["probability"], classifier(False).predict_proba(ROWS)[:, 1], rtol=1e-5)
    np.testing.assert_array_equal(answer["truth"], answer["probability"] > 0.5)


@pytest.mark.req("S1")
@pytest.mark.parametrize("objective", ["multi:softmax", "binary:hinge"])
def test_an_objective_that_decides_itself_answers_classes(objective: str) -> None:
    """Its answers are classes already, and come as whole numbers."""
    several = objective == "multi:softmax"
    data = xgboost.DMatrix(training_rows(), classes(several), nthread=1)
    settings = {"objective": objective, "nthread": 1, "verbosity": 0, **({"num_class": 3} if several else {})}
    booster = xgboost.train(settings, data, 4)
    answer = predict({"model.ubj": bytes(booster.save_raw("ubj"))}, LABEL)
    np.testing.assert_array_equal(answer["label"], booster.inplace_predict(ROWS, validate_features=False))
    assert answer["label"].dtype == np.int64


@pytest.mark.req("S1")
@pytest.mark.parametrize("several", [False, True])
def test_a_classifier_of_lightgbm_gives_both(several: bool) -> None:
    """A field of whole numbers is the class; any other is what it was decided by."""
    settings = {"num_threads": 1, "verbosity": -1, "objective": "multiclass" if several else "binary"}
    settings |= {"num_class": 3} if several else {}
    booster = lightgbm.train(settings, lightgbm.Dataset(training_rows(), classes(several)), 5)
    files = {"model.lgb": booster.model_to_string().encode()}
    shape = Field(name="probabilities", type=DataType.FLOAT64, shape=(3,)) if several else PROBABILITY
    answer, raw = predict(files, LABEL, shape), booster.predict(ROWS)
    np.testing.assert_allclose(answer[shape.name], raw)
    np.testing.assert_array_equal(answer["label"], raw.argmax(axis=1) if several else raw > 0.5)
    (plain,) = predict(files).values()
    np.testing.assert_allclose(plain, raw)


@pytest.mark.req("S1")
def test_categories_of_lightgbm_go_in_as_text() -> None:
    """What the model was trained with as categories it takes by name; one that it never saw is missing."""
    pd = pytest.importorskip("pandas")
    plans = np.array(["basic", "pro", "max"])[np.arange(200) % 3]
    frame = pd.DataFrame({"age": training_rows()[:, 0], "plan": pd.Categorical(plans)})
    settings = {"num_threads": 1, "verbosity": -1, "min_data_in_leaf": 2}
    target = frame["age"] * (plans == "pro")
    booster = lightgbm.train(settings, lightgbm.Dataset(frame, target), 5)
    signature = Signature(
        inputs=(INPUTS[0], Field(name="plan", type=DataType.STRING)),
        outputs=(Field(name="score", type=DataType.FLOAT64),),
    )
    files = {"model.txt": booster.model_to_string().encode()}
    spec = models.spec(files, "1.0.0", signature=signature)
    asked = frame.iloc[:9]
    columns = {"age": asked["age"].to_numpy(), "plan": np.array([*plans[:8], "unseen"], dtype=object)}
    answer = runtimes.load(spec, files, Path("/nowhere"), 1).predict(columns)["score"]
    np.testing.assert_allclose(answer[:8], booster.predict(asked)[:8])
    assert np.isfinite(answer[8])


@pytest.mark.req("S1")
def test_missing_values_are_the_trees_business() -> None:
    """A missing value goes in as such, and another order of columns than the model's is put right by name."""
    data = xgboost.DMatrix(training_rows(), training_rows()[:, 0], feature_names=["income", "age"], nthread=1)
    booster = xgboost.train({"nthread": 1, "verbosity": 0}, data, 4)
    score = Field(name="score", type=DataType.FLOAT32)
    columns = {"age": np.array([1, np.nan]), "income": np.array([50, np.nan], dtype="float32")}
    answer = predict({"model.ubj": bytes(booster.save_raw("ubj"))}, score, columns=columns)["score"]
    given = np.array([[50, 1], [np.nan, np.nan]])
    np.testing.assert_allclose(answer, booster.inplace_predict(given, validate_features=False))


@pytest.mark.req("S1")
def test_named_fields_without_a_signature_are_not_guessed_at() -> None:
    """Where neither names nor a signature say which is which, the caller is told so."""
    with pytest.raises(errors.InvalidInput, match="not known"):
        predict(saved(False), columns={"a": ROWS[:, 0], "b": ROWS[:, 1]})
    with pytest.raises(errors.InvalidInput, match="takes 2 values"):
        predict(saved(False), columns={"a": ROWS[:, 0]})
