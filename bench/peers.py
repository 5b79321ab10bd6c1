"""MLflow's server beside ours: started at its fastest, filled with the same models, asked the same things.

It lives in an environment of its own (`make bench-peers` makes it: 900 MB), because its dependencies are
none of ours. Where that is missing, `installed()` is None and the benchmarks show our figures alone.

Its fastest setting on two cores, by trial: two workers, uvloop installed (without it answers on kept
connections are 40 ms late), the job runner off, the security middleware off, SQLite as the store. The
default of four workers costs a fifth of the speed and twice the memory.
"""

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bench import servers
from bench.load import Call, drive_each, probe
from bench.servers import Running

VENV = Path(__file__).parents[1] / os.environ.get("VENV_MLFLOW", ".venv-mlflow")
API = "/api/2.0/mlflow"
WORKERS = 2


def installed() -> str | None:
    """The version of MLflow that is there to be measured, or None."""
    found = sorted(VENV.glob("lib/python3.*/site-packages/mlflow-*.dist-info"))
    named = re.search(r"mlflow-(.+)\.dist-info", found[-1].name) if found else None
    return named[1] if named else None


@contextlib.contextmanager
def mlflow(folder: Path, *, workers: int = WORKERS, database: str | None = None) -> Iterator[Running]:
    """MLflow's server with its files in a folder; its database is in there or elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    port = servers.free_port()
    command = [
        str(VENV / "bin" / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port),
        "--workers", str(workers), "--backend-store-uri", database or sqlite_in(folder),
        "--artifacts-destination", str(folder / "artifacts"),
        "--disable-security-middleware", "--uvicorn-opts", "--no-access-log",
    ]  # fmt: skip
    with servers.serve(command, port, "/health", folder / "server.log", environment()) as found:
        yield found


def sqlite_in(folder: Path) -> str:
    """The address of the database in a folder."""
    return f"sqlite:///{folder / 'mlflow.db'}"


def environment() -> dict[str, str]:
    """What MLflow's programs are given: nobody's own settings, no background jobs, no calls home."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")},
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Its default of 5 (and 10 more) refuses writers that wait for SQLite at 32 connections.
        "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "40",
        "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }


def run_script(script: str, *words: str) -> str:
    """Run a text by MLflow's Python and give what it printed.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    command = [str(VENV / "bin" / "python"), "-W", "ignore", "-c", script, *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment())
    if done.returncode != 0:
        raise RuntimeError(f"a script of MLflow's ended with {done.returncode}: {done.stderr[-2_000:]}")
    return done.stdout


def fill(port: int, models: int) -> None:
    """Give it models `m0`, `m1` ... with two versions each, three tags on each version, and one alias."""
    names = [f"m{index}" for index in range(models)]
    drive_each(port, [_post("registered-models/create", name=name) for name in names], connections=1)
    for number in ("1", "2"):
        tags = [{"key": key, "value": "risk"} for key in ("team", "region", "purpose")]
        calls = [
            _post("model-versions/create", name=name, source=f"s3://models/{name}/{number}", tags=tags)
            for name in names
        ]
        drive_each(port, calls, connections=1)
    aliases = [_post("registered-models/alias", name=name, alias="champion", version="1") for name in names]
    drive_each(port, aliases, connections=1)
    probe(port, get_version(0, 2))


def _post(path: str, **body: object) -> Call:
    return Call("POST", f"{API}/{path}", json.dumps(body))


def get_version(model: int, number: int) -> Call:
    """Read one version."""
    return Call("GET", f"{API}/model-versions/get?name=m{model}&version={number}")


def by_alias(model: int) -> Call:
    """The version that an alias points to."""
    return Call("GET", f"{API}/registered-models/alias?name=m{model}&alias=champion")


def set_tag(model: int, number: int) -> Call:
    """Set a tag of a version."""
    return _post("model-versions/set-tag", name=f"m{model}", version=str(number), key="k", value="v@N@")


def to_production(model: int, number: int) -> Call:
    """Move a version to production; what was there is archived."""
    return _post(
        "model-versions/transition-stage", name=f"m{model}", version=str(number), stage="Production",
        archive_existing_versions=True,
    )  # fmt: skip
