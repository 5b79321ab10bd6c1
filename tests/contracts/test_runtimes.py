"""The one suite of runtimes, run on each library that is installed, and on a class of somebody's own."""

import io
import warnings
from functools import cache
from typing import Any

import numpy as np
import pytest

from modelkeep.serving.validation import Array
from tests.contracts.runtimes import Backend, RuntimeContract, training_rows
from tests.serving import models


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


@cache
def torch_module() -> Any:
    """A small net."""
    import torch

    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)).eval()


class TestTorchScript(RuntimeContract):
    """PyTorch, as TorchScript."""

    @pytest.fixture
    def backend(self) -> Backend:
        pytest.importorskip("torch")
        return TorchScriptBackend()


class TorchScriptBackend(Backend):
    kind = "torch"
    knows_width = False

    def files(self) -> dict[str, bytes]:
        import torch

        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.trace(torch_module(), torch.zeros(3, 2)), buffer)
        return {"model.pt": buffer.getvalue()}

    def expected(self, rows: Array) -> Array:
        import torch

        with torch.inference_mode():
            return np.asarray(torch_module()(torch.from_numpy(rows.astype("float32"))).numpy()[:, 0])


class TestTorchExport(RuntimeContract):
    """PyTorch, as an exported program."""

    @pytest.fixture
    def backend(self) -> Backend:
        pytest.importorskip("torch")
        return TorchExportBackend()


class TorchExportBackend(TorchScriptBackend):
    def files(self) -> dict[str, bytes]:
        import torch

        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = {0: torch.export.Dim("rows")}
            program = torch.export.export(torch_module(), (torch.zeros(3, 2),), dynamic_shapes=(rows,))
            torch.export.save(program, buffer)
        return {"model.pt2": buffer.getvalue()}


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
