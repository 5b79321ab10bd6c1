"""The usual workflow of courses on MLflow, by the unmodified client and its commands, on our server."""

import json
import urllib.request
from pathlib import Path

import pytest

from tests.mlflow_client import MlflowClient, run_mlflow_model_server
from tests.web.processes import serving

SCRIPT = Path(__file__).parents[2] / "examples" / "mlflow_course.py"
SETOSA, VIRGINICA = [5.1, 3.5, 1.4, 0.2], [6.7, 3.3, 5.7, 2.5]
"""Two flowers that no classifier mistakes: of the first and of the last kind."""


@pytest.mark.long
@pytest.mark.journey
@pytest.mark.req("T3", "T4")
def test_the_course_runs_with_nothing_but_the_tracking_address(
    mlflow_client: MlflowClient, tmp_path: Path
) -> None:
    """Train, register, describe, tag, ask and approve by tags, promote, compare, choose the best, roll back,
    load by number, semver, stage, alias and `latest`, and serve what is in production."""
    with serving(tmp_path / "data") as server:
        said = mlflow_client.run(SCRIPT, server.url, folder=tmp_path)
        assert said.splitlines()[-1].startswith("best ")
        with run_mlflow_model_server(server.url, "models:/churn/Production", tmp_path) as url:
            assert predictions(url, [SETOSA, VIRGINICA]) == [0, 2]


def predictions(url: str, rows: list[list[float]]) -> list[int]:
    """What a scoring server says of rows."""
    body = json.dumps({"inputs": rows}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
        found: list[int] = json.load(answer)["predictions"]
    return found
