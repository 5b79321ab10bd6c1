"""The contract of `MlflowSource`: what a server says and what its database says are the same, and it is what
was logged.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelkeep.client.mlflow_source import ForeignRun, MlflowSource, SourceFile
from modelkeep.core import errors
from modelkeep.core.tracking import LoggedModelStatus, RunStatus
from tests.contracts.mlflow_registry import FilledRegistry, filled_registry
from tests.mlflow_client import MlflowClient
from tests.servers import PostgresServer

pytestmark = [pytest.mark.req("T5"), pytest.mark.external, pytest.mark.long]


@pytest.fixture(scope="module")
def registry(
    mlflow_client: MlflowClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FilledRegistry]:
    """A small MLflow registry behind MLflow's own server."""
    with filled_registry(mlflow_client, tmp_path_factory.mktemp("mlflow")) as filled:
        yield filled


@pytest.fixture(scope="module")
def on_postgres(
    mlflow_client: MlflowClient, tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer
) -> Iterator[FilledRegistry]:
    """The same in a Postgres database."""
    database = postgres_server.new_database()
    with filled_registry(mlflow_client, tmp_path_factory.mktemp("mlflow"), database) as filled:
        yield filled


@pytest.fixture(params=["server", "database", "postgres"])
def source(request: pytest.FixtureRequest) -> Iterator[MlflowSource]:
    """The registry through one of the adapters: its server, its SQLite file, its Postgres database."""
    where = "on_postgres" if request.param == "postgres" else "registry"
    registry: FilledRegistry = request.getfixturevalue(where)
    opened = registry.source("server" if request.param == "server" else "database")
    yield opened
    opened.close()


def _experiment(source: MlflowSource, name: str = "churn") -> str:
    return next(e.made.id for e in source.experiments() if e.made.name == name)


def _runs(source: MlflowSource) -> dict[str, ForeignRun]:
    return {run.made.name: run for run in source.runs(_experiment(source))}


def test_everything_is_counted(source: MlflowSource) -> None:
    """A source counts what it then hands out."""
    counts = source.count()
    experiments = list(source.experiments())
    assert counts.experiments == len(experiments) == 3
    assert counts.runs == sum(1 for e in experiments for _ in source.runs(e.made.id)) == 4
    assert counts.logged_models == sum(1 for e in experiments for _ in source.logged_models(e.made.id)) == 1
    models = list(source.models())
    assert counts.models == len(models) == 2
    assert counts.versions == sum(1 for m in models for _ in source.versions(m.name)) == 4


def test_experiments_keep_tags_and_the_bin(source: MlflowSource) -> None:
    """Experiments come in the order of ids, with their tags, and with those in the bin."""
    found = {e.made.name: e for e in source.experiments()}
    assert list(found) == ["Default", "churn", "gone"]
    assert [(tag.key, tag.value) for tag in found["churn"].made.tags] == [("team", "growth")]
    assert [e.closed.deleted for e in found.values()] == [False, False, True]
    assert found["churn"].made.creation_time > 1_700_000_000_000


def test_runs_keep_what_was_logged(source: MlflowSource) -> None:
    """A run has its status, times, params, tags and inputs; a deleted one is there, too."""
    runs = _runs(source)
    assert [runs[f"run {n}"].closed.status for n in range(3)] == [
        RunStatus.FINISHED, RunStatus.FAILED, RunStatus.FINISHED,
    ]  # fmt: skip
    assert [runs[f"run {n}"].closed.deleted_time is not None for n in range(3)] == [False, True, False]
    one = runs["run 2"]
    assert (one.made.start_time, one.closed.end_time) == (1_700_000_000_002, 1_700_000_001_000)
    assert [(p.key, p.value) for p in one.made.params] == [("lr", "2")]
    assert {t.key: t.value for t in one.made.tags}["note"] == "a b"
    given = runs["whole"].made.datasets[0]
    assert given.dataset.name == "visits"
    assert [(t.key, t.value) for t in given.tags] == [("mlflow.data.context", "training")]
    assert [output.step for output in runs["whole"].made.outputs] == [2]


def test_histories_are_whole(source: MlflowSource) -> None:
    """Each point of each metric comes once, with its step, and what is no number stays so."""
    run = _runs(source)["run 2"]
    points: dict[str, list[object]] = {}
    for key, part in source.history(run.made.id):
        points.setdefault(key, []).extend(part)
    assert len(points["loss"]) == 60
    assert sorted(points["odd"], key=str) == sorted(
        [(1, 0, "nan"), (2, 1, 1.7976931348623157e308), (3, -7, -1.5)], key=str
    )


def test_logged_models_keep_what_was_measured(source: MlflowSource) -> None:
    """A logged model has its run, status, params, tags and points."""
    model = next(iter(source.logged_models(_experiment(source))))
    assert (model.made.name, model.closed.status) == ("tree", LoggedModelStatus.READY)
    assert model.made.run == _runs(source)["whole"].made.id
    assert [(p.key, p.value) for p in model.made.params] == [("depth", "3")]
    assert ("kind", "small") in [(t.key, t.value) for t in model.made.tags]
    assert [(item.key, item.points[0][2], item.id) for item in model.points] == [("acc", 0.5, model.made.run)]


def test_models_and_versions_keep_their_labels(source: MlflowSource) -> None:
    """Registered models have tags, descriptions and aliases; versions their numbers and stages; a deleted
    version is none, and a prompt is one."""
    models = {model.name: model for model in source.models()}
    assert list(models) == ["My Model", "greet"]
    assert (models["My Model"].description, models["My Model"].tags) == ("Who leaves.", {"a": "b"})
    assert models["My Model"].aliases == {"champion": 2}
    versions = list(source.versions("My Model"))
    assert [(v.number, v.stage, v.tags["n"]) for v in versions] == [
        (1, "Production", "0"), (2, "Staging", "1"), (4, "None", "3"),
    ]  # fmt: skip
    assert all(v.run == _runs(source)["run 2"].made.id for v in versions)
    assert next(iter(source.versions("greet"))).tags["mlflow.prompt.text"] == "Hello {{name}}"


def test_files_are_listed_and_read(source: MlflowSource) -> None:
    """Files below a run's root have their paths, sizes and bytes; a root without anything has none."""
    run = _runs(source)["run 2"]
    owner = f"run/{run.made.id}"
    found = source.files(run.root, owner)
    assert [(file.path, file.size_bytes or 0) for file in found] == [
        ("empty.txt", 0),
        ("model/weights.txt", 9),
    ]
    assert b"".join(source.open(run.root, "model/weights.txt", owner)) == b"weights 2"
    assert b"".join(source.open(run.root, "empty.txt", owner)) == b""
    assert source.files(f"{run.root}/nothing", "version/x") == []


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b", "a//b", "C:\\x", "a\\b"])
def test_no_path_leads_elsewhere(source: MlflowSource, path: str) -> None:
    """A path that leads out of its root is refused before anything is opened."""
    run = _runs(source)["run 2"]
    with pytest.raises(errors.FilesUnreachable):
        list(source.open(run.root, path, f"run/{run.made.id}"))


def test_both_say_the_same(registry: FilledRegistry) -> None:
    """What the server says of every experiment, run, model and version is what its database says."""
    server, database = registry.source("server"), registry.source("database")
    try:
        there, here = list(server.experiments()), list(database.experiments())
        assert there == here
        for experiment in there:
            one = {run.made.id: run for run in server.runs(experiment.made.id)}
            other = {run.made.id: run for run in database.runs(experiment.made.id)}
            assert one.keys() == other.keys()
            for id, run in one.items():  # noqa: A001
                assert _without_deletion(run) == _without_deletion(other[id])
                assert sorted(server.history(id)) == sorted(database.history(id))
                assert _sizes(server.files(run.root, f"run/{id}")) == _sizes(database.files(run.root))
            assert list(server.logged_models(experiment.made.id)) == list(
                database.logged_models(experiment.made.id)
            )
        assert list(server.models()) == list(database.models())
        for name in ("My Model", "greet"):
            for mine, theirs in zip(server.versions(name), database.versions(name), strict=True):
                assert (mine.number, mine.stage, mine.tags, mine.source) == (
                    theirs.number, theirs.stage, theirs.tags, theirs.source,
                )  # fmt: skip
    finally:
        server.close()
        database.close()


def _sizes(files: list[SourceFile]) -> dict[str, int]:
    """MLflow's server leaves the size of an empty file out."""
    return {file.path: file.size_bytes or 0 for file in files}


def _without_deletion(run: ForeignRun) -> tuple[object, ...]:
    """A server does not say when a run was deleted; and nobody orders tags."""
    made, closed = run.made, run.closed
    return (
        *(made.id, made.experiment, made.name, made.user, made.start_time, made.datasets, made.outputs),
        *(sorted((t.key, t.value) for t in made.tags), sorted((p.key, p.value) for p in made.params)),
        *(closed.status, closed.end_time, closed.deleted_time is None, run.root),
    )


def test_what_is_no_registry_is_refused(tmp_path: Path) -> None:
    """A file that is no database of MLflow's is told as such."""
    from modelkeep.adapters.mlflow_sources import open_source

    (tmp_path / "notes.db").write_text("no database")
    with pytest.raises(errors.SourceUnreadable):
        open_source(str(tmp_path / "notes.db"))
    with pytest.raises(errors.SourceUnreadable):
        open_source(str(tmp_path / "nothing.db"))
