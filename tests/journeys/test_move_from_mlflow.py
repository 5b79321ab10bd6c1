"""A whole MLflow registry moves in while both ends are killed again and again, and moves out again.

The comparison asks both sides through their MLflow doors, as any client would; histories and files of the
original are read from its database, which the contract suite holds against its server.
"""

import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelkeep.adapters.mlflow_rest import MlflowServer
from modelkeep.adapters.mlflow_sources import open_source
from modelkeep.client import Client
from modelkeep.client.mlflow_source import ForeignRun, ForeignVersion, MlflowSource
from modelkeep.core import codec
from tests.contracts.mlflow_registry import filled_registry
from tests.journeys.houses import MODELKEEP, running_house
from tests.mlflow_client import MlflowClient, clean_environment, run_mlflow_server
from tests.servers import free_port

pytestmark = [pytest.mark.req("T5"), pytest.mark.journey, pytest.mark.long]
RUNS, VERSIONS = 1_000, 200
KILLS = 8
"""Times that one of the two is killed before the import may end."""


class Server:
    """Our server on one port, to be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        words = [sys.executable, "-m", "tests.web.serve", str(self.folder), str(self.port)]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), "it says its address when it answers"

    def end(self, sig: signal.Signals) -> None:
        """End it by a signal."""
        assert self._process is not None
        self._process.send_signal(sig)
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextlib.contextmanager
def running_server() -> Iterator[Server]:
    """Our server over a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="mk-") as folder:
        server = Server(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.end(signal.SIGTERM)


def importing(url: str, source: str, *more: str) -> "subprocess.Popen[str]":
    """The command, under way."""
    words = [MODELKEEP, "import", "mlflow", source, "--json", "--url", url, *more]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_an_import_that_is_killed_again_and_again_is_equal(
    mlflow_client: MlflowClient, tmp_path: Path
) -> None:
    """1,000 runs and 200 versions come complete and equal, although client and server are killed on the way
    at moments of chance, and nothing is there twice."""
    database, artifacts = tmp_path / "mlflow.db", tmp_path / "artifacts"
    fill = [mlflow_client.python, Path(__file__).with_name("mlflow_bulk.py")]
    words = [*map(str, fill), str(database), str(artifacts), str(RUNS), str(VERSIONS)]
    subprocess.run(words, check=True, env=clean_environment(), capture_output=True, timeout=600)
    dice = random.Random(11)
    with running_server() as server:
        for number in range(KILLS):
            client = importing(server.url, str(database))
            time.sleep(dice.uniform(0.5, 2.0))  # however far it came by then
            if number % 2:
                server.end(signal.SIGKILL)
                server.start()
            client.kill()
            client.communicate()
        client = importing(server.url, str(database))
        said, wrong = client.communicate(timeout=600)
        assert client.returncode == 0, said[-3_000:] + wrong
        report = codec.decode(said, dict)
        runs = report["kinds"]["run"]
        assert (runs["found"], runs["new"] + runs["there"], runs["left_out"]) == (RUNS, RUNS, 0)
        with Client(server.url) as asked:
            whole = asked.fsck()
        assert whole.ok, whole
        with run_mlflow_server(tmp_path) as url:
            compare_registries(open_source(url), open_source(str(database)), MlflowServer(server.url))


def test_what_moved_in_moves_out_again(mlflow_client: MlflowClient, tmp_path: Path) -> None:
    """A registry that came from one MLflow server goes to another one, and is there what it was at first."""
    with (
        filled_registry(mlflow_client, tmp_path / "one") as first,
        running_house() as house,
        run_mlflow_server(tmp_path / "two") as second,
    ):
        done = house.run("import", "mlflow", first.url)
        assert done.returncode == 0, done.stdout + done.stderr
        done = house.run("export", "mlflow", second)
        assert done.returncode == 0, done.stdout + done.stderr
        again = house.run("export", "mlflow", second, "--json")
        kinds = codec.decode(again.stdout, dict)["kinds"]
        assert {kind: one["new"] for kind, one in kinds.items()} == dict.fromkeys(kinds, 0)
        _compare_exported(MlflowServer(first.url), MlflowServer(second))


def compare_registries(there: MlflowSource, database: MlflowSource, here: MlflowSource) -> None:
    """Every experiment, run, point, file, model, alias and version of one side is that of the other."""
    with contextlib.closing(there), contextlib.closing(database), contextlib.closing(here):
        experiments = {e.made.id: (e.made.name, e.closed.deleted, e.made.tags) for e in there.experiments()}
        assert experiments == {
            e.made.id: (e.made.name, e.closed.deleted, e.made.tags) for e in here.experiments()
        }
        for experiment in experiments:
            runs = {run.made.id: run for run in here.runs(experiment)}
            originals = {run.made.id: run for run in there.runs(experiment)}
            roots = {run.made.id: run.root for run in database.runs(experiment)}
            assert runs.keys() == originals.keys() == roots.keys()
            for id, run in runs.items():  # noqa: A001
                assert _told(run) == _told(originals[id])
                assert _points(here, id) == _points(database, id)
                files = here.files(run.root, f"run/{id}")
                assert files == database.files(roots[id])
                for file in files:
                    assert b"".join(here.open(run.root, file.path)) == b"".join(
                        database.open(roots[id], file.path)
                    )
        models = list(there.models())
        assert [
            (m.name, m.description, m.tags, m.creation_time, m.last_update_time, m.aliases) for m in models
        ] == [
            (m.name, m.description, m.tags, m.creation_time, m.last_update_time, m.aliases)
            for m in here.models()
        ]
        for model in models:
            assert [_version(v) for v in here.versions(model.name)] == [
                _version(v) for v in there.versions(model.name)
            ]


def _compare_exported(first: MlflowSource, second: MlflowSource) -> None:
    """MLflow gives ids of its own, so runs are found by their names."""
    with contextlib.closing(first), contextlib.closing(second):
        ids = {e.made.name: e.made.id for e in second.experiments()}
        for experiment in first.experiments():
            runs = {run.made.name: run for run in second.runs(ids[experiment.made.name])}
            for run in first.runs(experiment.made.id):
                twin = runs.pop(run.made.name)
                own = (run.made.params, run.closed.status, run.closed.end_time, run.made.start_time)
                assert own == (
                    twin.made.params, twin.closed.status, twin.closed.end_time, twin.made.start_time,
                )  # fmt: skip
                assert _points(first, run.made.id) == _points(second, twin.made.id)
                assert first.files(run.root, f"run/{run.made.id}") == second.files(
                    twin.root, f"run/{twin.made.id}"
                )
            assert not runs
        for model in first.models():
            assert [(v.number, v.stage, v.description) for v in first.versions(model.name)] == [
                (v.number, v.stage, v.description) for v in second.versions(model.name)
            ]
        assert {m.name: m.aliases for m in first.models()} == {m.name: m.aliases for m in second.models()}


def _points(source: MlflowSource, run_id: str) -> list[tuple[str, object]]:
    return sorted(((key, point) for key, part in source.history(run_id) for point in part), key=repr)


def _told(run: ForeignRun) -> tuple[object, ...]:
    """What both servers say of a run; when it was deleted, neither does."""
    made, closed = run.made, run.closed
    return (
        *(made.id, made.experiment, made.name, made.user, made.start_time, made.datasets),
        *(sorted((t.key, t.value) for t in made.tags), sorted((p.key, p.value) for p in made.params)),
        *(closed.status, closed.end_time, closed.deleted_time is None),
    )


def _version(version: ForeignVersion) -> tuple[object, ...]:
    tags = {key: value for key, value in version.tags.items() if not key.startswith("modelkeep.")}
    times = (version.creation_time, version.last_update_time)
    return version.number, version.description, version.stage, version.run, tags, times
