"""Other servers of models beside our gateway: `mlflow models serve` and MLServer, each given the very model
file that is registered with us.

Both live in environments of their own (`.venv-mlflow` by `make bench-peers`; for MLServer a venv named
`.venv-mlserver` with `pip install mlserver mlserver-sklearn` in it), because their dependencies are none of
ours. Where one is missing it is left out, and the table says so.

Each is run at its fastest: MLflow's without the log line a request, MLServer's without debug, traces, metrics
and compression; the number of processes is the caller's to vary.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path

from msgspec import Struct

from bench import peers, servers
from bench.load import Call
from bench.servers import Running

MLSERVER = Path(__file__).parents[1] / os.environ.get("VENV_MLSERVER", ".venv-mlserver")
NAME = "model"
"""What MLServer calls the one model that it has."""
_SAVE = """\
import json, sys, joblib, mlflow, pandas
file, folder, rows = sys.argv[1:]
model = joblib.load(file)
frame = pandas.DataFrame(json.loads(rows))
signature = mlflow.models.infer_signature(frame, model.predict(frame))
mlflow.sklearn.save_model(model, folder, signature=signature, serialization_format="cloudpickle")
"""


class Kind(StrEnum):
    """Which server."""

    MLFLOW = "MLflow"
    MLSERVER = "MLServer"


class Rows(Struct, frozen=True):
    """Rows to be predicted, each a request of its own, by the names of the columns."""

    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]

    def scoring(self, path: str) -> list[Call]:
        """As MLflow's scoring protocol has them, to a path."""
        listed = [{"dataframe_split": {"columns": self.columns, "data": [row]}} for row in self.values]
        return [Call("POST", path, json.dumps(body)) for body in listed]

    def inference(self, path: str) -> list[Call]:
        """As the Open Inference Protocol has them, to a path."""
        head = {"name": "rows", "shape": [1, len(self.columns)], "datatype": "FP64"}
        bodies = [
            {"parameters": {"content_type": "np"}, "inputs": [head | {"data": row}]} for row in self.values
        ]
        return [Call("POST", path, json.dumps(body)) for body in bodies]


class Peer(Struct, frozen=True, kw_only=True):
    """One that runs: which, with how many processes, and how it is asked."""

    kind: Kind
    workers: int
    server: Running
    calls: Sequence[Call]

    @property
    def label(self) -> str:
        """As a table names it."""
        return f"{self.kind} {self.workers}"


def installed() -> dict[Kind, str]:
    """The versions of those that are there to be measured."""
    found = {Kind.MLFLOW: peers.installed(), Kind.MLSERVER: None}
    listed = sorted(MLSERVER.glob("lib/python3.*/site-packages/mlserver-*.dist-info"))
    if listed and (named := re.search(r"mlserver-(.+)\.dist-info", listed[-1].name)):
        found[Kind.MLSERVER] = named[1]
    return {kind: version for kind, version in found.items() if version is not None}


def answer_of(body: bytes) -> float:
    """The one prediction in an answer, whichever of the protocols it is in."""
    said = json.loads(body)
    return float(said["predictions"][0] if "predictions" in said else said["outputs"][0]["data"][0])


@contextlib.contextmanager
def running(kind: Kind, file: Path, workers: int, rows: Rows) -> Iterator[Peer]:
    """One of them with the model in a joblib file, ready to be asked.

    Raises:
        RuntimeError: it does not start; with the end of what it said.
    """
    place = file.parent / f"{kind.lower()}-{file.stem}-{workers}"
    place.mkdir()
    start = _mlflow if kind is Kind.MLFLOW else _mlserver
    with start(place, file, workers, rows) as peer:
        yield peer


@contextlib.contextmanager
def _mlflow(place: Path, file: Path, workers: int, rows: Rows) -> Iterator[Peer]:
    some = [dict(zip(rows.columns, values, strict=True)) for values in rows.values]
    peers.run_script(_SAVE, str(file), str(place / "saved"), json.dumps(some))
    port = servers.free_port()
    command = [
        str(peers.VENV / "bin" / "mlflow"), "models", "serve", "--model-uri", str(place / "saved"),
        "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", str(workers),
    ]  # fmt: skip
    # It starts uvicorn by its command line, which reads its options from the environment as well.
    environment = peers.environment() | {"UVICORN_ACCESS_LOG": "false", "UVICORN_LOG_LEVEL": "warning"}
    with servers.serve(command, port, "/ping", place / "said.log", environment) as server:
        calls = rows.scoring("/invocations")
        yield Peer(kind=Kind.MLFLOW, workers=workers, server=server, calls=calls)


@contextlib.contextmanager
def _mlserver(place: Path, file: Path, workers: int, rows: Rows) -> Iterator[Peer]:
    port = servers.free_port()
    settings = {
        "host": "127.0.0.1", "http_port": port, "grpc_port": servers.free_port(), "debug": False,
        "metrics_port": servers.free_port(), "metrics_endpoint": None, "gzip_enabled": False,
        "parallel_workers": workers, "logging_settings": None,
    }  # fmt: skip
    model = {
        "name": NAME, "implementation": "mlserver_sklearn.SKLearnModel", "parameters": {"uri": str(file)},
    }  # fmt: skip
    (place / "settings.json").write_text(json.dumps(settings))
    (place / "model-settings.json").write_text(json.dumps(model))
    command = [str(MLSERVER / "bin" / "mlserver"), "start", str(place)]
    ready = f"/v2/models/{NAME}/ready"
    with servers.serve(command, port, ready, place / "said.log", dict(os.environ)) as server:
        calls = rows.inference(f"/v2/models/{NAME}/infer")
        yield Peer(kind=Kind.MLSERVER, workers=workers, server=server, calls=calls)
