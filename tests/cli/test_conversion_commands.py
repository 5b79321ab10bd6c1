"""`modelkeep register --to-onnx` as typed at a terminal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelkeep.core.answers import Registration
from tests.client.fake_server import FakeServer
from tests.client.samples import version

pytest.importorskip("skl2onnx", reason="the converter is an extra")

pytestmark = [pytest.mark.req("U1"), pytest.mark.network]
Run = Callable[..., Any]

METADATA = """\
signature:
  inputs: {age: {type: float64, minimum: 0, maximum: 100}, income: {type: float64, minimum: 0, maximum: 90}}
  outputs: {score: float64}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as people train one, and what is to be known of it."""
    import joblib
    from sklearn.linear_model import LinearRegression

    rows = np.random.default_rng(1).uniform(0, 90, (50, 2))
    made = tmp_path / "model"
    made.mkdir()
    joblib.dump(LinearRegression().fit(rows, rows[:, 0] * 2 + rows[:, 1]), made / "churn.joblib")
    (made / "metadata.yaml").write_text(METADATA)
    return made


@pytest.mark.req("S1")
def test_a_model_is_registered_in_both_forms(server: FakeServer, modelkeep: Run, folder: Path) -> None:
    """The original, the conversion and the golden requests arrive in one draft, and on how many rows the two
    agree is said."""
    server.drafts.finalize = Registration(version=version(), created=True, reasons=())
    (folder / "rows.csv").write_text("age,income\n40,2\n20,30\n")
    words = ("register", str(folder), "--name", "churn", "--to-onnx")
    ran = modelkeep(*words, "--samples", str(folder / "rows.csv"))
    assert ran.code == 0, ran.err
    assert ran.err == "Converted to churn.onnx; both forms answer alike on 2 rows.\n"
    assert server.drafts.draft is not None
    paths = {file["path"] for file in server.drafts.draft["spec"]["files"]}
    assert {"churn.joblib", "churn.onnx", "golden.json"} <= paths
    assert "on 512 made-up rows" in modelkeep(*words).err


@pytest.mark.req("S1")
def test_what_cannot_be_converted_is_not_registered(server: FakeServer, modelkeep: Run, folder: Path) -> None:
    """The reason stands in one line, and the server is not asked."""
    (folder / "churn.joblib").unlink()
    (folder / "churn.ubj").write_bytes(b"x")
    ran = modelkeep("register", str(folder), "--name", "churn", "--to-onnx")
    assert ran.code == 1
    assert "no conversion to ONNX for 'churn.ubj' (xgboost)" in ran.err
    assert not server.asked
    assert modelkeep("register", str(folder), "--name", "churn", "--samples", str(folder)).code == 2
    assert modelkeep("register", str(folder), "--name", "churn", "--samples", __file__).code == 2
