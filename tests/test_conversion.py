"""`--to-onnx`: what is converted answers as the original, and what does not is refused with the place."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelkeep import conversion
from modelkeep.conversion import Conversion, to_onnx
from modelkeep.core import errors
from modelkeep.core.golden import GOLDEN_FILE
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.serving import golden, runtimes
from tests.contracts.runtimes import training_rows
from tests.serving import models

pytest.importorskip("skl2onnx", reason="the converter is an extra")
pytest.importorskip("sklearn", reason="the runtimes are extras")

AGE, INCOME = (
    Field(name="age", type=DataType.FLOAT64, minimum=0, maximum=100),
    Field(name="income", type=DataType.FLOAT64, nullable=False),
)
PLAN = Field(name="plan", type=DataType.STRING, categories=("basic", "pro", "max"))
LABEL, PROBABILITY = Field(name="label", type=DataType.BOOL), Field(name="probability", type=DataType.FLOAT64)


def save(folder: Path, model: Any, name: str = "model.joblib") -> Path:
    """A model as people save one."""
    import joblib

    folder.mkdir(exist_ok=True)
    joblib.dump(model, folder / name)
    return folder


def served(folder: Path, made: Conversion, signature: Signature | None) -> dict[str, runtimes.Runtime]:
    """Both forms, loaded as a gateway loads them; and what it would take of the two."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files |= {file.path: file.source.read_bytes() for file in made.files}
    spec = models.spec(files, "1.0.0", signature=signature)
    preferred = runtimes.load(spec, files, folder, 1)
    golden.ask(spec, preferred, files)
    alone = {path: data for path, data in files.items() if not path.endswith(".onnx")}
    original = runtimes.load(models.spec(alone, "1.0.0", signature=signature), alone, folder, 1)
    return {"preferred": preferred, "original": original}


def linear() -> Any:
    """A scaled logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = training_rows().astype("float64")
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, rows[:, 0] > 50)


def forest() -> Any:
    """A forest that puts a number on each row."""
    from sklearn.ensemble import RandomForestRegressor

    rows = training_rows()
    return RandomForestRegressor(5, max_depth=5, random_state=1).fit(rows, rows[:, 0] * 2)


def three_words() -> Any:
    """A forest that decides between words."""
    from sklearn.ensemble import RandomForestClassifier

    rows = training_rows()
    words = np.array(["low", "mid", "high"], dtype=object)[np.digitize(rows[:, 0], [40, 60])]
    return RandomForestClassifier(5, max_depth=4, random_state=1).fit(rows, words)


def mixed() -> Any:
    """A pipeline that takes text and numbers by their names."""
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    rows = training_rows().astype("float64")
    plans = np.array(["basic", "pro", "max"], dtype=object)[np.arange(200) % 3]
    frame = pd.DataFrame({"age": rows[:, 0], "plan": plans})
    both = ColumnTransformer([("n", StandardScaler(), ["age"]), ("t", OneHotEncoder(), ["plan"])])
    return make_pipeline(both, LogisticRegression()).fit(frame, (rows[:, 0] > 50) ^ (plans == "pro"))


MODELS: list[tuple[Any, Signature | None]] = [
    (linear, Signature(inputs=(AGE, INCOME), outputs=(LABEL, PROBABILITY))),
    (linear, Signature(inputs=(AGE, INCOME), outputs=(PROBABILITY,))),
    (
        linear,
        Signature(inputs=(AGE, INCOME), outputs=(Field(name="proba", type=DataType.FLOAT32, shape=(2,)),)),
    ),
    (linear, None),
    (forest, Signature(inputs=(AGE, INCOME), outputs=(Field(name="minutes", type=DataType.FLOAT64),))),
    (forest, None),
    (three_words, Signature(inputs=(AGE, INCOME), outputs=(Field(name="word", type=DataType.STRING),))),
    (mixed, Signature(inputs=(AGE, PLAN), outputs=(LABEL, PROBABILITY))),
]


@pytest.mark.req("S1")
@pytest.mark.parametrize(("make", "signature"), MODELS)
def test_the_converted_model_answers_as_the_original(
    tmp_path: Path, make: Any, signature: Signature | None
) -> None:
    """Gateways take it instead, under the same names and types; golden requests say that it is the same."""
    folder = save(tmp_path / "model", make())
    with to_onnx(folder, signature=signature) as made:
        assert (made.path, made.made, made.rows) == ("model.onnx", True, conversion.SAMPLES_MADE)
        assert [file.path for file in made.files] == ["model.onnx", *([GOLDEN_FILE] if signature else [])]
        both = served(folder, made, signature)
        kept = made.files[0].source
    assert not kept.exists()
    assert both["preferred"].name == "onnx"
    rows = training_rows()[:50].astype("float64")
    columns = {"": rows.astype("float32")}
    if signature is not None:
        columns = {"age": rows[:, 0], "income": rows[:, 1]}
        if signature.inputs[1] is PLAN:
            columns = {"age": rows[:, 0], "plan": np.array(["pro", "max"] * 25, dtype=object)}
    wanted, got = (both[form].predict(columns) for form in ("original", "preferred"))
    for name, array in zip(wanted, got.values(), strict=True):
        if wanted[name].dtype.kind == "f":
            np.testing.assert_allclose(np.squeeze(array), np.squeeze(wanted[name]), rtol=1e-3, atol=1e-5)
        else:
            assert array.ravel().tolist() == wanted[name].tolist()
    if signature is not None:
        assert {name: array.dtype for name, array in got.items()} == {n: a.dtype for n, a in wanted.items()}


@pytest.mark.req("S1")
def test_samples_of_ones_own_are_compared_on(tmp_path: Path) -> None:
    """CSV with a header, or the body of a prediction request; what breaks the signature is refused."""
    folder = save(tmp_path / "model", linear())
    signature = Signature(inputs=(AGE, INCOME), outputs=(LABEL,))
    for name, text in (
        ("rows.csv", "income,age\n50,20\n50,80\n"),
        ("rows.json", '[{"age": 20, "income": 50}, {"age": 80, "income": 50}]'),
        ("body.json", '{"inputs": {"age": [20, 80], "income": [50, 50]}}'),
    ):
        (tmp_path / name).write_text(text)
        with to_onnx(folder, signature=signature, samples=tmp_path / name) as made:
            assert (made.rows, made.made) == (2, False)
            content = json.loads(made.files[1].source.read_bytes())
            assert content["requests"][0]["outputs"] == {"label": [False, True]}
    (tmp_path / "bad.csv").write_text("age,income\n500,1\n")
    with (
        pytest.raises(errors.Invalid, match=r"bad\.csv.*'age'"),
        to_onnx(folder, signature=signature, samples=tmp_path / "bad.csv"),
    ):
        pass


class Odd:
    """A part of a pipeline that no converter knows."""

    def fit(self, *_: Any) -> "Odd":
        return self

    def predict(self, rows: Any) -> Any:
        return np.asarray(rows)[:, 0]


def refused(path: Path, **more: Any) -> errors.ModelkeepError:
    """What a conversion is refused with."""
    with pytest.raises(errors.ModelkeepError) as caught, to_onnx(path, **more):
        pass
    return caught.value


@pytest.mark.req("S1")
def test_another_answer_is_refused_with_the_worst_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversion that is not the same model names row, field and both values, and nothing is registered."""
    signature = Signature(inputs=(AGE, INCOME), outputs=(Field(name="minutes", type=DataType.FLOAT64),))
    folder = save(tmp_path / "model", forest())
    other = models.linear_onnx(3.0)
    monkeypatch.setattr(conversion, "_graph", lambda *_, **__: other)
    problem = refused(folder, signature=signature)
    assert "model.onnx" in problem.message
    assert "field 'minutes'" in problem.message
    assert "instead of" in problem.message
    assert problem.details["field"] == "minutes"


@pytest.mark.req("S1")
def test_what_has_no_conversion_says_so(tmp_path: Path) -> None:
    """Another kind of model, an estimator that no converter knows, rows that nobody can make up."""
    (tmp_path / "m.onnx").write_bytes(b"x")
    assert "no conversion" in refused(tmp_path / "m.onnx").message
    odd = save(tmp_path / "odd", Odd())
    assert "--samples" in refused(odd).message
    assert "cannot be made" in refused(odd, signature=Signature(inputs=(AGE, INCOME))).message
    text = Signature(inputs=(Field(name="plan", type=DataType.STRING),))
    assert "'plan'" in refused(odd, signature=text).message
    assert (
        "cannot be read" in refused(save(tmp_path / "m", linear()), samples=tmp_path / "absent.csv").message
    )
