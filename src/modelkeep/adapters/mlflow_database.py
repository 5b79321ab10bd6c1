"""An MLflow registry read from its database: a SQLite file or a Postgres address, the tables of MLflow 2.9 to
3.18.

It reads the columns that exist, changes nothing and never waits for a lock of its own: SQLite is opened read
only, and Postgres in transactions that only read. Files come from the roots that the rows name
(`mlflow_roots`). What it does not do: upgrade an old database, or look at what a newer MLflow may add.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from modelkeep.adapters.mlflow_roots import Roots
from modelkeep.client.mlflow_source import (
    POINTS_AT_ONCE,
    Counts,
    ForeignExperiment,
    ForeignLoggedModel,
    ForeignModel,
    ForeignRun,
    ForeignVersion,
    SourceFile,
)
from modelkeep.core import codec, errors
from modelkeep.core.imports import HistoryItem, Number, Point, write_number

PAGE = 200
"""Runs, logged models or versions whose rows are read together."""
DELETED_STAGE = "Deleted_Internal"
"""What MLflow writes over the stage of a version that was deleted."""
_LOGGED = {1: "LOGGED_MODEL_PENDING", 2: "LOGGED_MODEL_READY", 3: "LOGGED_MODEL_UPLOAD_FAILED"}
_STATUSES = ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")

Row = dict[str, Any]
T = TypeVar("T")


class MlflowDatabase:
    """The `MlflowSource` of a database."""

    def __init__(self, url: str, roots: Roots, *, workspace: str = "default") -> None:
        """
        Args:
            url: `sqlite:///PATH`, a path, or `postgresql://...`.
            workspace: which of its workspaces, where it has them.

        Raises:
            SourceUnreadable: there is no such database, or it is none of MLflow's.
            ExtraMissing: Postgres is not installed.
        """
        self._roots = roots
        self._workspace = workspace
        self._tables = _open_sqlite(url) if not _is_postgres(url) else _open_postgres(url)
        self.address = self._tables.address
        for needed in ("experiments", "runs", "metrics", "registered_models", "model_versions"):
            if not self._tables.columns(needed):
                self.close()
                raise errors.SourceUnreadable(
                    f"{self.address} has no table {needed}, so it is no database of an MLflow server.",
                    table=needed,
                )

    def close(self) -> None:
        """Let go of the database."""
        self._tables.close()

    def files(self, root: str, owner: str = "") -> list[SourceFile]:
        """The files below a root; see `MlflowSource.files`."""
        return self._roots.files(root)

    def open(self, root: str, path: str, owner: str = "") -> Iterator[bytes]:
        """The bytes of one of them; see `MlflowSource.open`."""
        return self._roots.open(root, path)

    # --------------------------------------------------------------------------------------------- tracking

    def count(self) -> Counts:
        """How much there is."""
        live = f"coalesce(current_stage, '') <> '{DELETED_STAGE}'"
        inside = "experiment_id in (select experiment_id from experiments where " + self._where(
            "experiments", ""
        )
        mine = self._mine("experiments")
        return Counts(
            experiments=self._number("experiments", self._where("experiments", ""), mine),
            runs=self._number("runs", f"{inside})", mine),
            logged_models=self._number("logged_models", f"{inside})", mine),
            models=self._number(
                "registered_models", self._where("registered_models", ""), self._mine("registered_models")
            ),
            versions=self._number(
                "model_versions", self._where("model_versions", live), self._mine("model_versions")
            ),
        )

    def experiments(self) -> Iterator[ForeignExperiment]:
        """All experiments, in the order of their ids."""
        found = self._all("experiments", self._where("experiments", ""), self._mine("experiments"))
        tags = _grouped(self._all("experiment_tags", "", ()), "experiment_id", "key", "value")
        for row in sorted(found, key=lambda row: int(row["experiment_id"])):
            updated = row.get("last_update_time") or row.get("creation_time") or 0
            id = str(row["experiment_id"])  # noqa: A001
            made = {
                "id": id,
                "name": row["name"],
                "creation_time": row.get("creation_time") or 0,
                "tags": tags.get(row["experiment_id"], []),
            }
            closed = {
                "id": id,
                "deleted": row.get("lifecycle_stage") == "deleted",
                "last_update_time": updated,
            }
            yield _shaped({"made": made, "closed": closed}, ForeignExperiment, self.address)

    def runs(self, experiment_id: str) -> Iterator[ForeignRun]:
        """All runs of an experiment, in the order of their ids."""
        after = ""
        while True:
            page = self._all(
                "runs",
                "experiment_id = ? and run_uuid > ? order by run_uuid limit ?",
                (int(experiment_id), after, PAGE),
            )
            if not page:
                return
            after = str(page[-1]["run_uuid"])
            ids = [row["run_uuid"] for row in page]
            tags = _grouped(self._among("tags", "run_uuid", ids), "run_uuid", "key", "value")
            params = _grouped(self._among("params", "run_uuid", ids), "run_uuid", "key", "value")
            inputs = self._inputs(ids)
            for row in page:
                id = row["run_uuid"]  # noqa: A001
                yield self._run(row, tags.get(id, []), params.get(id, []), inputs.get(id, _Inputs()))

    def _run(self, row: Row, tags: list[Row], params: list[Row], inputs: "_Inputs") -> ForeignRun:
        named = next((tag["value"] for tag in tags if tag["key"] == "mlflow.runName"), "")
        made = {
            "id": row["run_uuid"],
            "experiment": str(row["experiment_id"]),
            "name": row.get("name") or named or "",
            "user": row.get("user_id") or "",
            "start_time": row.get("start_time") or 0,
            "tags": tags,
            "params": params,
            "datasets": inputs.datasets,
            "inputs": inputs.models,
            "outputs": inputs.outputs,
        }
        deleted = row.get("lifecycle_stage") == "deleted"
        status = row.get("status")
        closed = {
            "id": row["run_uuid"],
            "status": status if status in _STATUSES else "FINISHED",
            "end_time": row.get("end_time"),
            "deleted_time": (row.get("deleted_time") or row.get("end_time") or 0) if deleted else None,
        }
        whole = {"made": made, "closed": closed, "root": row.get("artifact_uri") or ""}
        return _shaped(whole, ForeignRun, self.address)

    def _inputs(self, run_ids: list[str]) -> "dict[str, _Inputs]":
        """Datasets and logged models of runs: which row says what is told by its two types."""
        found: dict[str, _Inputs] = {}
        if not self._tables.columns("inputs"):
            return found
        rows = self._among("inputs", "destination_id", run_ids, "destination_type = 'RUN'")
        rows += self._among("inputs", "source_id", run_ids, "source_type = 'RUN_OUTPUT'")
        data_ids = list({row["source_id"] for row in rows if row["source_type"] == "DATASET"})
        data = {row["dataset_uuid"]: row for row in self._among("datasets", "dataset_uuid", data_ids)}
        tags = _grouped(
            self._among("input_tags", "input_uuid", [row["input_uuid"] for row in rows]),
            "input_uuid", "name", "value",
        )  # fmt: skip
        for row in rows:
            if row["source_type"] == "RUN_OUTPUT":
                one = found.setdefault(row["source_id"], _Inputs())
                one.outputs.append({"model_id": row["destination_id"], "step": row.get("step") or 0})
                continue
            one = found.setdefault(row["destination_id"], _Inputs())
            if row["source_type"] == "DATASET" and row["source_id"] in data:
                one.datasets.append(_dataset(data[row["source_id"]], tags.get(row["input_uuid"], [])))
            elif row["source_type"] != "DATASET":
                one.models.append({"model_id": row["source_id"], "step": row.get("step") or 0})
        return found

    def history(self, run_id: str) -> Iterator[tuple[str, tuple[Point, ...]]]:
        """Every point of a run."""
        key, points = "", list[Point]()
        statement = self._select("metrics", "run_uuid = ? order by key, timestamp, step, value")
        for row in self._tables.stream(statement, (run_id,)):
            if points and (row["key"] != key or len(points) == POINTS_AT_ONCE):
                yield key, tuple(points)
                points = []
            key = row["key"]
            value: Number = "nan" if row.get("is_nan") else write_number(float(row["value"]) + 0.0)
            points.append((int(row["timestamp"]), int(row.get("step") or 0), value))
        if points:
            yield key, tuple(points)

    def logged_models(self, experiment_id: str) -> Iterator[ForeignLoggedModel]:
        """All logged models of an experiment, in the order of their ids."""
        after = ""
        while self._tables.columns("logged_models"):
            page = self._all(
                "logged_models",
                "experiment_id = ? and model_id > ? order by model_id limit ?",
                (int(experiment_id), after, PAGE),
            )
            if not page:
                return
            after = str(page[-1]["model_id"])
            ids = [row["model_id"] for row in page]
            tags = _grouped(
                self._among("logged_model_tags", "model_id", ids), "model_id", "tag_key", "tag_value"
            )
            params = _grouped(
                self._among("logged_model_params", "model_id", ids), "model_id", "param_key", "param_value"
            )
            points: dict[str, list[Row]] = {}
            for row in self._among("logged_model_metrics", "model_id", ids):
                points.setdefault(row["model_id"], []).append(row)
            for row in page:
                id = row["model_id"]  # noqa: A001
                yield self._logged_model(row, tags.get(id, []), params.get(id, []), points.get(id, []))

    def _logged_model(
        self, row: Row, tags: list[Row], params: list[Row], points: list[Row]
    ) -> ForeignLoggedModel:
        made = {
            "id": row["model_id"],
            "experiment": str(row["experiment_id"]),
            "name": row["name"],
            "model_type": row.get("model_type") or "",
            "run": row.get("source_run_id") or None,
            "creation_time": row["creation_timestamp_ms"],
            "tags": tags,
            "params": params,
        }
        closed = {
            "id": row["model_id"],
            "status": _LOGGED.get(row["status"], "LOGGED_MODEL_READY"),
            "status_message": row.get("status_message") or "",
            "last_update_time": row["last_updated_timestamp_ms"],
            "deleted": row.get("lifecycle_stage") == "deleted",
        }
        measured = [
            HistoryItem(
                id=point["run_id"],
                key=point["metric_name"],
                points=(
                    (
                        point["metric_timestamp_ms"],
                        point["metric_step"],
                        _value_of(point["metric_value"]),
                    ),
                ),
                model=row["model_id"],
                dataset_name=point.get("dataset_name"),
                dataset_digest=point.get("dataset_digest"),
            )
            for point in points
        ]
        root = row.get("artifact_location") or ""
        whole = {"made": made, "closed": closed, "root": root, "points": codec.builtins(measured)}
        return _shaped(whole, ForeignLoggedModel, self.address)

    # --------------------------------------------------------------------------------------------- registry

    def models(self) -> Iterator[ForeignModel]:
        """All registered models, in the order of names."""
        mine = self._mine("registered_models")
        found = self._all("registered_models", self._where("registered_models", ""), mine)
        of = self._where("registered_model_tags", ""), self._mine("registered_model_tags")
        tags = _grouped(self._all("registered_model_tags", *of), "name", "key", "value")
        aliases: dict[str, dict[str, int]] = {}
        if self._tables.columns("registered_model_aliases"):
            of = self._where("registered_model_aliases", ""), self._mine("registered_model_aliases")
            for row in self._all("registered_model_aliases", *of):
                aliases.setdefault(row["name"], {})[row["alias"]] = row["version"]
        for row in sorted(found, key=lambda row: str(row["name"])):
            created = row.get("creation_time") or 0
            whole = {
                "name": row["name"],
                "description": row.get("description") or "",
                "tags": {tag["key"]: tag["value"] for tag in tags.get(row["name"], [])},
                "creation_time": created,
                "last_update_time": row.get("last_updated_time") or created,
                "aliases": aliases.get(row["name"], {}),
            }
            yield _shaped(whole, ForeignModel, self.address)

    def versions(self, model: str) -> Iterator[ForeignVersion]:
        """All versions of a model that were not deleted, in the order of numbers."""
        where = self._where("model_versions", "name = ?")
        found = self._all("model_versions", where, (model, *self._mine("model_versions")))
        where = self._where("model_version_tags", "name = ?")
        tags: dict[int, dict[str, str]] = {}
        for row in self._all("model_version_tags", where, (model, *self._mine("model_version_tags"))):
            tags.setdefault(row["version"], {})[row["key"]] = row["value"] or ""
        for row in sorted(found, key=lambda row: int(row["version"])):
            if row.get("current_stage") == DELETED_STAGE:
                continue
            created, source = row.get("creation_time") or 0, row.get("source") or ""
            whole = {
                "model": model,
                "number": row["version"],
                "description": row.get("description") or "",
                "user": row.get("user_id") or "",
                "creation_time": created,
                "last_update_time": row.get("last_updated_time") or created,
                "stage": row.get("current_stage") or "None",
                "source": source,
                "stored": row.get("storage_location") or "",
                "run": row.get("run_id") or "",
                "logged_model": source.removeprefix("models:/") if source.startswith("models:/m-") else "",
                "tags": tags.get(row["version"], {}),
            }
            yield _shaped(whole, ForeignVersion, self.address)

    # ----------------------------------------------------------------------------------------------- reading

    def _select(self, table: str, where: str) -> str:
        columns = ", ".join(f'"{name}"' for name in sorted(self._tables.columns(table)))
        rest = f" where {where}" if where and not where.startswith("order") else f" {where}"
        return f'select {columns} from "{table}"{rest}'

    def _all(self, table: str, where: str, values: Sequence[Any]) -> list[Row]:
        if not self._tables.columns(table):
            return []
        return list(self._tables.stream(self._select(table, where), values))

    def _among(self, table: str, column: str, keys: Sequence[str], also: str = "") -> list[Row]:
        """The rows whose column is one of some keys."""
        if not keys or not self._tables.columns(table):
            return []
        found: list[Row] = []
        for at in range(0, len(keys), PAGE):
            part = keys[at : at + PAGE]
            where = f"{column} in ({', '.join('?' * len(part))})" + (f" and {also}" if also else "")
            found += self._tables.stream(self._select(table, where), part)
        return found

    def _number(self, table: str, where: str, values: Sequence[Any]) -> int:
        if not self._tables.columns(table):
            return 0
        statement = f'select count(*) as many from "{table}"' + (f" where {where}" if where else "")
        return int(next(iter(self._tables.stream(statement, values)))["many"])

    def _where(self, table: str, condition: str) -> str:
        """The condition, within the workspace where the table has them."""
        if "workspace" not in self._tables.columns(table):
            return condition or "1 = 1"
        return f"{condition} and workspace = ?" if condition else "workspace = ?"

    def _mine(self, table: str) -> tuple[str, ...]:
        return (self._workspace,) if "workspace" in self._tables.columns(table) else ()


class _Inputs:
    """What one run has read and made."""

    def __init__(self) -> None:
        self.datasets: list[Row] = []
        self.models: list[Row] = []
        self.outputs: list[Row] = []


def _dataset(row: Row, tags: list[Row]) -> Row:
    named = {name: row.get(f"dataset_{name}") for name in ("source_type", "source", "schema", "profile")}
    dataset = {"name": row["name"], "digest": row["digest"], **named}
    return {"dataset": {k: v for k, v in dataset.items() if v is not None}, "tags": tags}


def _value_of(value: Any) -> Number:
    return "nan" if value is None else write_number(float(value) + 0.0)


def _grouped(rows: list[Row], owner: str, key: str, value: str) -> dict[Any, list[Row]]:
    """Tags and params by what has them."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row[owner], []).append({"key": row[key], "value": row[value] or ""})
    return found


def _shaped(row: Row, kind: type[T], address: str) -> T:
    try:
        return codec.convert(row, kind)
    except errors.MalformedBody as problem:
        raise errors.SourceUnreadable(
            f"{address} has a row that is not MLflow's: {problem.message}", source=address
        ) from problem


# ---------------------------------------------------------------------------------------------- two databases


class _Tables:
    """Rows out of a database by the driver's own interface."""

    def __init__(self, address: str, connection: Any, failures: type[Exception], *, postgres: bool) -> None:
        self.address = address
        self._connection = connection
        self._failures = failures
        self._postgres = postgres
        self._known: dict[str, frozenset[str]] = {}

    def columns(self, table: str) -> frozenset[str]:
        """The columns of a table; none where there is no such table."""
        if table not in self._known:
            if self._postgres:
                statement = (
                    "select column_name as name from information_schema.columns "
                    "where table_schema = any (current_schemas(false)) and table_name = ?"
                )
            else:
                statement = "select name from pragma_table_info(?)"
            self._known[table] = frozenset(row["name"] for row in self.stream(statement, (table,)))
        return self._known[table]

    def stream(self, statement: str, values: Sequence[Any]) -> Iterator[Row]:
        """The rows of a statement, some at a time."""
        try:
            if self._postgres:
                statement = statement.replace("?", "%s")
            cursor = self._connection.execute(statement, tuple(values))
            names = [column[0] for column in cursor.description]
            while rows := cursor.fetchmany(1_000):
                yield from (dict(zip(names, row, strict=True)) for row in rows)
        except self._failures as problem:
            first = str(problem).strip().partition("\n")[0]
            raise errors.SourceUnreadable(f"{self.address} cannot be read: {first}.") from problem

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()


def _is_postgres(url: str) -> bool:
    return urlsplit(url).scheme.partition("+")[0] in ("postgresql", "postgres")


def _open_sqlite(url: str) -> _Tables:
    import sqlite3

    path = Path(url.removeprefix("sqlite:///") if url.startswith("sqlite:") else url).absolute()
    if not path.is_file():
        raise errors.SourceUnreadable(f"There is no file {path}; name the database of the MLflow server.")
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)
        connection.execute("pragma query_only = on")
        connection.execute("select count(*) from sqlite_master").fetchone()
    except sqlite3.Error as problem:
        raise errors.SourceUnreadable(f"{path} cannot be read as a SQLite database: {problem}.") from problem
    return _Tables(f"sqlite:///{path}", connection, sqlite3.Error, postgres=False)


def _open_postgres(url: str) -> _Tables:
    try:
        import psycopg
    except ImportError as problem:
        raise errors.ExtraMissing(
            "Reading a Postgres database needs one more part: pip install 'modelkeep[server]'."
        ) from problem
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    address = f"postgresql://{parts.hostname or ''}{port}{parts.path}"
    plain = parts._replace(scheme="postgresql").geturl()
    try:
        connection = psycopg.connect(plain, autocommit=True, connect_timeout=10)
        connection.execute("set default_transaction_read_only = on")
    except psycopg.Error as problem:
        first = str(problem).strip().partition("\n")[0]
        raise errors.SourceUnreadable(f"{address} cannot be read: {first}.") from problem
    return _Tables(address, connection, psycopg.Error, postgres=True)
