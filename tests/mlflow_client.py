"""The real MLflow for the tests: its Python, scripts run by its client, and its server.

It lives in an environment of its own (`make setup-mlflow`). Where that is missing the test skips and says so;
with CI=true that is an error. Nothing here knows a path of Modelkeep's, and nothing here is a fake.
"""

import contextlib
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import ServerProcess, free_port, missing

ROOT = Path(__file__).parents[1]
VENV = ROOT / os.environ.get("VENV_MLFLOW", ".venv-mlflow")
SCRIPT_S = 300.0
"""A script of the client takes a few seconds, most of them for its imports; a busy machine gets this much."""


def find_mlflow() -> Path | None:
    """The Python that has MLflow; None when there is none."""
    python = VENV / "bin" / "python"
    return python if python.exists() and (VENV / "bin" / "mlflow").exists() else None


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without what whoever runs the tests has set for MLflow, Modelkeep or Python."""
    kept = {k: v for k, v in os.environ.items() if not re.match(r"MLFLOW_|MODELKEEP_|DATABRICKS_|PYTHON", k)}
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",  # tests stay on this machine
        "GIT_PYTHON_REFRESH": "quiet",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    path = f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**kept, **quiet, "PATH": path, **more}


class MlflowClient:
    """Runs scripts with the real client."""

    def __init__(self, python: Path) -> None:
        self.python = python

    def run(
        self, script: str | Path, url: str, *words: str, folder: Path | None = None, **environment: str
    ) -> str:
        """Run a script, or the text of one, against a server, and give what it printed.

        Args:
            folder: where it runs; whatever it leaves behind stays there.
            environment: variables beside MLFLOW_TRACKING_URI.

        Raises:
            AssertionError: it failed; with what it said.
        """
        given = [str(script)] if isinstance(script, Path) else ["-c", script]
        done = subprocess.run(
            [str(self.python), *given, *words],
            check=False,
            cwd=folder or ROOT,
            env=clean_environment(MLFLOW_TRACKING_URI=url, **environment),
            capture_output=True,
            text=True,
            timeout=SCRIPT_S,
        )
        assert done.returncode == 0, f"{done.stdout[-2_000:]}\n{done.stderr[-6_000:]}"
        return done.stdout


@pytest.fixture(scope="session")
def mlflow_client() -> MlflowClient:
    """The real client."""
    python = find_mlflow()
    if python is None:
        missing("MLflow", "make setup-mlflow")
        raise AssertionError("missing() never returns")
    return MlflowClient(python)


@contextlib.contextmanager
def run_mlflow_server(folder: Path, database: str | None = None) -> Iterator[str]:
    """MLflow's own server over a folder, for as long as the block lasts; its address.

    Args:
        database: the address of its database; a SQLite file of the folder unless another is named.

    Raises:
        ServerFailed: when it does not come up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [
        str(VENV / "bin" / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", database or f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    environment = clean_environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    process = ServerProcess(command, folder / "log", folder, environment, family=True)
    url = f"http://127.0.0.1:{port}"

    try:
        process.wait_until(lambda: answers(f"{url}/health"))
        yield url
    finally:
        process.end(signal.SIGTERM)


@contextlib.contextmanager
def run_mlflow_model_server(tracking: str, model: str, folder: Path) -> Iterator[str]:
    """`mlflow models serve` of a model's address, for as long as the block lasts; where it is asked.

    Raises:
        ServerFailed: when it does not come up.
    """
    port = free_port()
    command = [
        str(VENV / "bin" / "mlflow"), "models", "serve", "--model-uri", model,
        "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    environment = clean_environment(MLFLOW_TRACKING_URI=tracking)
    process = ServerProcess(command, folder / "log", folder, environment, family=True)
    url = f"http://127.0.0.1:{port}"
    try:
        process.wait_until(lambda: answers(f"{url}/ping"))
        yield f"{url}/invocations"
    finally:
        process.end(signal.SIGTERM)


def answers(url: str) -> bool:
    """Whether an address of this machine is there."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="session")
def mlflow_server(mlflow_client: MlflowClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's own server for this test process; its address. It takes some seconds to start."""
    with run_mlflow_server(tmp_path_factory.mktemp("mlflow")) as url:
        yield url
