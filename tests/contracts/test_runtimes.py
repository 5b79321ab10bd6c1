"""The one suite of runtimes, run on each library: in this Python, in MLflow's, and (with `-m long`) in an
environment that is built for PyTorch."""

import io
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelkeep.core import errors
from modelkeep.core.signature import Signature
from modelkeep.serving.environments import Environments, Lock
from modelkeep.serving.runtimes import Runtime
from modelkeep.serving.validation import Array
from tests.contracts.runtimes import Backend, RuntimeContract, training_rows
from tests.mlflow_client import MlflowClient
from tests.serving import models
from tests.serving.elsewhere import Elsewhere, python_at
from tests.serving.wheels import as_pip_is_set


def target() -> Array:
    """What the models learn: not linear, so that trees have something to do."""
    rows = training_rows()
    return np.asarray(rows[:, 0] * 2 + np.sin(rows[:, 1]) * 10)


class TestOnnx(RuntimeContract):
    """A graph of one matrix."""

    @pytest.fixture
    def backend(self) -> Backend:
        pytest.importorskip("onnxruntime")
        return OnnxBackend()


class OnnxBackend(Backend):
    kind = "onnx"

    def files(self) -> dict[str, bytes]:
        return {"model.onnx": models.linear_onnx(2.0)}

    def expected(self, rows: Array) -> Array:
        return np.asarray(rows[:, 0] * 2 + rows[:, 1])


@cache
def forest() -> Any:
    """A small forest."""
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(5, max_depth=4, random_state=1, n_jobs=1).fit(training_rows(), target())


class TestSkops(RuntimeContract):
    """scikit-learn, as data."""

    @pytest.fixture
    def backend(self) -> Backend:
        pytest.importorskip("skops")
        return SkopsBackend()


class SkopsBackend(Backend):
    kind = "skops"

    def files(self) -> dict[str, bytes]:
        from skops import io as skops

        return {"model.skops": bytes(skops.dumps(forest()))}

    def expected(self, rows: Array) -> Array:
        return np.asarray(forest().predict(rows))


class TestJoblib(RuntimeContract):
    """scikit-learn, pickled."""

    @pytest.fixture
    def backend(self) -> Backend:
        pytest.importorskip("joblib")
        return JoblibBackend()


class JoblibBackend(SkopsBackend):
    kind = "joblib"

    def files(self) -> dict[str, bytes]:
        import joblib

        buffer = io.BytesIO()
        joblib.dump(forest(), buffer)
        return {"model.joblib": buffer.getvalue()}


@cache
def xgboost_model() -> Any:
    """A few trees, with the columns' names."""
    import xgboost

    data = xgboost.DMatrix(training_rows(), target(), feature_names=["age", "income"], nthread=1)
    return xgboost.train({"nthread": 1, "max_depth": 3, "verbosity": 0}, data, 8)


class TestXgboost(RuntimeContract):
    """XGBoost, in its binary form."""

    @pytest.fixture
    def backend(self) -> Backend:
        pytest.importorskip("xgboost")
        return XgboostBackend()


class XgboostBackend(Backend):
    kind = "xgboost"
    form = "ubj"

    def files(self) -> dict[str, bytes]:
        return {f"model.{self.form}": bytes(xgboost_model().save_raw(self.form))}

    def expected(self, rows: Array) -> Array:
        return np.asarray(xgboost_model().inplace_predict(rows, validate_features=False))


class TestXgboostText(RuntimeContract):
    """XGBoost, in JSON."""

    @pytest.fixture
    def backend(self) -> Backend:
        pytest.importorskip("xgboost")
        return XgboostTextBackend()


class XgboostTextBackend(XgboostBackend):
    form = "json"


@cache
def lightgbm_model() -> Any:
    """A few trees, with the columns' names."""
    import lightgbm

    settings = {"num_threads": 1, "verbosity": -1, "min_data_in_leaf": 5, "objective": "regression"}
    data = lightgbm.Dataset(training_rows(), target(), feature_name=["age", "income"])
    return lightgbm.train(settings, data, 8)


class TestLightgbm(RuntimeContract):
    """LightGBM's own text."""

    @pytest.fixture
    def backend(self) -> Backend:
        pytest.importorskip("lightgbm")
        return LightgbmBackend()


class LightgbmBackend(Backend):
    kind = "lightgbm"

    def files(self) -> dict[str, bytes]:
        return {"model.txt": lightgbm_model().model_to_string().encode()}

    def expected(self, rows: Array) -> Array:
        return np.asarray(lightgbm_model().predict(rows, num_threads=1))


class TestPredictor(RuntimeContract):
    """A class of somebody's own, with a file beside it."""

    @pytest.fixture
    def backend(self) -> Backend:
        return PredictorBackend()


OWN_CLASS = b"""
import json
import numpy as np

class Predictor:
    def __init__(self, folder):
        self.slope = json.loads((folder / "weights" / "slope.json").read_text())

    def predict(self, columns):
        whole = columns.get("")
        age, income = whole.T if whole is not None else (columns["age"], columns["income"])
        return {"score": (age * self.slope + income).astype("float32")}
"""


class PredictorBackend(Backend):
    kind = "python"
    knows_width = False
    damages = (
        b"",
        b"nonsense",
        b"\x00" * 4096,
        b"class Predictor: pass",
        b"Predictor = 3",
        b"raise KeyError",
    )

    def files(self) -> dict[str, bytes]:
        return {"predictor.py": OWN_CLASS, "weights/slope.json": b"2.0"}

    def expected(self, rows: Array) -> Array:
        return np.asarray(rows[:, 0] * 2 + rows[:, 1])


@pytest.fixture(scope="module")
def mlflow_python(mlflow_client: MlflowClient) -> Iterator[Elsewhere]:
    """The Python that has MLflow."""
    with python_at(mlflow_client.python) as made:
        yield made


class TestPyfunc(RuntimeContract):
    """A folder of MLflow's with a class of somebody's own."""

    @pytest.fixture
    def backend(self, mlflow_python: Elsewhere) -> Backend:
        return PyfuncBackend(mlflow_python)


SAVED = """
import pathlib, tempfile
import mlflow, numpy

class Slope(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        values = numpy.asarray(model_input, dtype="float64")
        if values.shape[1] != 2:
            raise mlflow.MlflowException.invalid_parameter_value("two values a row")
        return values[:, 0] * 2 + values[:, 1]

with tempfile.TemporaryDirectory() as there:
    mlflow.pyfunc.save_model(f"{there}/m", python_model=Slope(), pip_requirements=[])
    root = pathlib.Path(there, "m")
    answer = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
"""


class ElsewhereBackend(Backend):
    """What is loaded in another Python."""

    def __init__(self, elsewhere: Elsewhere) -> None:
        self.elsewhere = elsewhere

    def load(self, files: dict[str, bytes], signature: Signature | None, folder: Path) -> Runtime:
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        return self.elsewhere.load(files, signature, folder)

    def threads(self) -> int:
        return int(self.elsewhere.run("import os; answer = len(os.listdir('/proc/self/task'))"))


class PyfuncBackend(ElsewhereBackend):
    kind = "pyfunc"

    def files(self) -> dict[str, bytes]:
        saved: dict[str, bytes] = self.elsewhere.run(SAVED)
        return {"python_model.pkl": saved.pop("python_model.pkl"), **saved}

    def expected(self, rows: Array) -> Array:
        return np.asarray(rows[:, 0] * 2 + rows[:, 1])


TORCH = "torch==2.13.0"
NET = """
import io, warnings
import numpy, torch
warnings.simplefilter("ignore")
torch.manual_seed(1)
net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)).eval()
buffer = io.BytesIO()
"""


@pytest.fixture(scope="module")
def torch_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    """A Python with PyTorch, in an environment that is built as a gateway builds one, from the index that
    pip is set to."""
    folder = tmp_path_factory.mktemp("torch")
    with pytest.MonkeyPatch.context() as patch:
        as_pip_is_set(patch)
        entries = (TORCH, f"numpy=={np.__version__}")
        lock = Lock(key="0" * 64, entries=entries, hashed=False)
        python = Environments(folder, build_timeout_s=900).python(lock)
    with python_at(python) as made:
        yield made
    shutil.rmtree(folder)


class TorchScriptBackend(ElsewhereBackend):
    """A traced net."""

    kind = "torch"
    knows_width = False
    path = "model.pt"
    save = "torch.jit.save(torch.jit.trace(net, torch.zeros(3, 2)), buffer)"

    def files(self) -> dict[str, bytes]:
        return {self.path: self.elsewhere.run(f"{NET}\n{self.save}\nanswer = buffer.getvalue()")}

    def expected(self, rows: Array) -> Array:
        asked = f"rows = numpy.array({rows.tolist()}, dtype='float32')"
        answer = "answer = net(torch.from_numpy(rows)).detach().numpy()[:, 0]"
        return np.asarray(self.elsewhere.run(f"{NET}\n{asked}\n{answer}"))


class TorchExportBackend(TorchScriptBackend):
    """An exported net."""

    path = "model.pt2"
    save = (
        "shapes = ({0: torch.export.Dim('rows')},)\n"
        "torch.export.save(torch.export.export(net, (torch.zeros(3, 2),), dynamic_shapes=shapes), buffer)"
    )


@pytest.mark.long
class TestTorchScript(RuntimeContract):
    """PyTorch, as TorchScript."""

    @pytest.fixture
    def backend(self, torch_python: Elsewhere) -> Backend:
        return TorchScriptBackend(torch_python)


@pytest.mark.long
class TestTorchExport(RuntimeContract):
    """PyTorch, as an exported program."""

    @pytest.fixture
    def backend(self, torch_python: Elsewhere) -> Backend:
        return TorchExportBackend(torch_python)


WEIGHTS = "torch.save(net.state_dict(), buffer)"
EVIL_SAMPLE = """
import zipfile
class Evil:
    def __reduce__(self):
        return print, ("it ran",)
shapes = ({0: torch.export.Dim('rows')},)
torch.export.save(torch.export.export(net, (torch.zeros(3, 2),), dynamic_shapes=shapes), buffer)
evil, changed = io.BytesIO(), io.BytesIO()
torch.save(Evil(), evil)
with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(changed, "w") as new:
    for name in old.namelist():
        part = old.read(name)
        new.writestr(name, CHANGE)
buffer = changed
"""
PICKLED_INPUT = EVIL_SAMPLE.replace("CHANGE", "evil.getvalue() if 'sample_inputs' in name else part")
PICKLED_WEIGHT = EVIL_SAMPLE.replace(
    "CHANGE", "part.replace(b'\"use_pickle\": false', b'\"use_pickle\": true')"
)
ONE_ROW = "torch.export.save(torch.export.export(net, (torch.zeros(3, 2),)), buffer)"


@pytest.mark.long
@pytest.mark.req("S1")
@pytest.mark.parametrize(
    ("path", "save", "kind", "text"),
    [
        ("model.pt", WEIGHTS, errors.NotAllowed, "pickle of weights"),
        ("model.pt2", ONE_ROW, errors.Invalid, "3 rows at a time"),
        ("model.pt2", PICKLED_INPUT, errors.NotAllowed, "sample_inputs"),
        ("model.pt2", PICKLED_WEIGHT, errors.NotAllowed, "weight"),
    ],
)
def test_pickles_and_fixed_batches_are_refused(
    torch_python: Elsewhere, tmp_path: Path, path: str, save: str, kind: type[Exception], text: str
) -> None:
    """A pickle is not read wherever it hides, and a program for one number of rows says how to export it."""
    backend = TorchScriptBackend(torch_python)
    backend.path, backend.save = path, save
    with pytest.raises(kind, match=text):
        backend.load(backend.files(), None, tmp_path)
