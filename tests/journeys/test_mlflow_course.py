"""The usual workflow of courses on MLflow, by the unmodified client, on our server and on MLflow's own."""

from pathlib import Path

import pytest

from tests.mlflow_client import MlflowClient
from tests.web.processes import serving

SCRIPT = Path(__file__).parents[2] / "examples" / "mlflow_course.py"


@pytest.mark.req("T3", "T4")
def test_the_course_runs_with_nothing_but_the_tracking_address(
    mlflow_client: MlflowClient, tmp_path: Path
) -> None:
    """Train, register, describe, tag, ask and approve by tags, promote, compare, choose the best, roll back,
    and load by number, semver, stage, alias and `latest`."""
    with serving(tmp_path / "data") as server:
        said = mlflow_client.run(SCRIPT, server.url, folder=tmp_path)
    assert said.splitlines()[-1].startswith("best ")
