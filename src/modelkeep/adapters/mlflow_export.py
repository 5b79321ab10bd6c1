"""Writing a registry out to a running MLflow server, by its REST API.

What is written is read through the MLflow door of our own server, so that both sides speak the same words.
Each thing bears the tag `modelkeep.source_id` with its id here, so that an export which broke off goes on,
and the same again writes nothing. MLflow gives ids of its own to experiments, runs and logged models; numbers
of versions are kept, by giving away those between. What MLflow cannot hold is told.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from msgspec import Struct

from modelkeep.adapters.mlflow_answers import OneRun, run_of
from modelkeep.adapters.mlflow_http import MlflowHttp, NoSuchThing
from modelkeep.adapters.mlflow_rest import API, PROXY, MlflowServer
from modelkeep.client.mlflow_source import (
    ForeignExperiment,
    ForeignLoggedModel,
    ForeignModel,
    ForeignRun,
    ForeignVersion,
)
from modelkeep.client.move_report import LeftOut, Mapped, Moved, Tally
from modelkeep.core.imports import Kind, Point
from modelkeep.core.prompts import is_prompt
from modelkeep.core.tracking import DEFAULT_EXPERIMENT, LoggedModelStatus, Tag

SOURCE_ID = "modelkeep.source_id"
"""The tag that says what something is called here."""
DONE = "modelkeep.exported"
"""The tag of a run whose log and files are all there."""
PLACEHOLDER = "modelkeep.placeholder"
"""The tag of a version that only uses up a number, and goes at once."""
BATCH = 1_000
"""Points of one log-batch, as many as MLflow takes."""
TEXTS = 100
"""Params, or tags, of one log-batch, as many as MLflow takes."""
GAP_MAX = 1_000
"""Numbers that are given away before a version: more is no registry that people made."""
_STAGES = ("Staging", "Production", "Archived")
_NON_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}

T = TypeVar("T")
Progress = Callable[[str, int, int], None]


class _Nothing(Struct, frozen=True):
    """An answer that nobody reads."""


class _MadeExperiment(Struct, frozen=True):
    experiment_id: str


class _LoggedInfo(Struct, frozen=True):
    model_id: str
    artifact_uri: str = ""


class _OneLogged(Struct, frozen=True):
    info: _LoggedInfo


class _MadeLogged(Struct, frozen=True):
    model: _OneLogged


class _VersionNumber(Struct, frozen=True):
    version: str | int


class _MadeVersion(Struct, frozen=True):
    model_version: _VersionNumber


class ExportReport(Struct, frozen=True, kw_only=True):
    """What came of an export: how much of each kind, what is called otherwise there, what stayed out."""

    target: str
    kinds: dict[Kind, Moved]
    points: int
    files: int
    size_bytes: int
    mapped: tuple[Mapped, ...]
    changed: tuple[LeftOut, ...]
    left_out: tuple[LeftOut, ...]
    more: int

    @property
    def whole(self) -> bool:
        """Whether everything is there."""
        return not (self.left_out or self.more)


class Exporter:
    """One export."""

    def __init__(
        self,
        source: MlflowServer,
        url: str,
        *,
        project: str,
        token: str | None = None,
        user: str | None = None,
        password: str | None = None,
        workspace: str | None = None,
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        """
        Args:
            source: the MLflow door of our own server, and of the project.
            url: the address of the MLflow server; the rest is what its own client would send.

        Raises:
            InvalidSetting: that is no address.
        """
        given: dict[str, Any] = {
            "token": token, "user": user, "password": password, "workspace": workspace,
        }  # fmt: skip
        self._source = source
        self._there = MlflowServer(url, **given)
        self._http = MlflowHttp(url, **given)
        self._project = project
        self._progress = progress
        self._tally = Tally()
        self._runs: dict[str, ForeignRun] = {}
        self._logged: dict[str, _LoggedInfo] = {}
        self._filled: set[str] = set()

    def close(self) -> None:
        """Close the connections to MLflow."""
        self._there.close()
        self._http.close()

    def run(self) -> ExportReport:
        """Write everything out that is not there yet.

        Raises:
            SourceUnreadable: the other side is no MLflow server, or refuses. ServerUnavailable, TimedOut: it
            does not answer; the same again goes on.
        """
        counts = self._source.count()
        known = list(self._there.experiments())
        done = 0
        for experiment in self._source.experiments():
            for _ in self._experiment(experiment, known):
                done += 1
                self._progress("runs", done, counts.runs)
        done = 0
        for model in self._source.models():
            for _ in self._model(model):
                done += 1
                self._progress("versions", done, counts.versions)
        tally = self._tally
        return ExportReport(
            target=self._there.address,
            kinds={kind: Moved(**counted) for kind, counted in tally.kinds.items()},
            points=tally.points,
            files=tally.files,
            size_bytes=tally.size_bytes,
            mapped=tuple(tally.mapped),
            changed=tuple(tally.changed),
            left_out=tuple(tally.left_out),
            more=tally.more,
        )

    # --------------------------------------------------------------------------------------------- tracking

    def _experiment(self, experiment: ForeignExperiment, known: list[ForeignExperiment]) -> Iterator[None]:
        """Write an experiment with all that belongs to it."""
        made = experiment.made
        self._tally.count(Kind.EXPERIMENT, "found")
        there = next((e for e in known if _source_id(e.made.tags) == made.id), None)
        if there is None and made.name == DEFAULT_EXPERIMENT:
            there = next((e for e in known if e.made.name == DEFAULT_EXPERIMENT), None)
        if there is None and any(e.made.name == made.name for e in known):
            self._tally.leave(Kind.EXPERIMENT, made.id, f"There is an experiment {made.name!r} already.")
            return
        if there is not None and there.closed.deleted:
            self._tally.count(Kind.EXPERIMENT, "there")
            return  # it is put into the bin last
        if there is None:
            said = {"name": made.name, "tags": _texts((*made.tags, Tag(SOURCE_ID, made.id)))}
            id = self._http.tell(f"{API}/experiments/create", said, _MadeExperiment).experiment_id  # noqa: A001
            self._map(Kind.EXPERIMENT, made.id, id)
        else:
            id = there.made.id  # noqa: A001
            self._tally.count(Kind.EXPERIMENT, "there")
        before = {_source_id(run.made.tags): run for run in self._there.runs(id)}
        moved: list[tuple[ForeignRun, ForeignRun]] = []
        for run in self._source.runs(made.id):
            target = self._open_run(run, id, before.get(run.made.id))
            moved.append((run, target))
        self._logged_models(made.id, id)
        for run, target in moved:
            if DONE not in {tag.key for tag in target.made.tags}:
                self._fill_run(run, target)
            yield
        for run, target in moved:
            if run.closed.deleted_time is not None and target.closed.deleted_time is None:
                self._tell("runs/delete", {"run_id": target.made.id})
        if experiment.closed.deleted:
            self._tell("experiments/delete", {"experiment_id": id})

    def _open_run(self, run: ForeignRun, experiment: str, there: ForeignRun | None) -> ForeignRun:
        """The run at MLflow, made when it is not there."""
        self._tally.count(Kind.RUN, "found")
        if there is not None:
            self._tally.count(Kind.RUN, "there")
            self._runs[run.made.id] = there
            return there
        said = {
            "experiment_id": experiment,
            "user_id": run.made.user,
            "start_time": run.made.start_time,
            "run_name": run.made.name,
            "tags": [{"key": SOURCE_ID, "value": run.made.id}],
        }
        made = run_of(self._http.tell(f"{API}/runs/create", said, OneRun).run)
        self._map(Kind.RUN, run.made.id, made.made.id)
        self._runs[run.made.id] = made
        return made

    def _fill_run(self, run: ForeignRun, target: ForeignRun) -> None:
        """Write what a run has logged, its files, and its end. Twice is once."""
        id = target.made.id  # noqa: A001
        for key, points in self._source.history(run.made.id):
            self._tally.points += len(points)
            for part in _parts(points, BATCH):
                metrics = [_metric(key, point) for point in part]
                self._tell("runs/log-batch", {"run_id": id, "metrics": metrics})
        for params in _parts(run.made.params, TEXTS):
            self._tell("runs/log-batch", {"run_id": id, "params": _texts(params)})
        for tags in _parts(run.made.tags, TEXTS):
            self._tell("runs/log-batch", {"run_id": id, "tags": _texts(tags)})
        if run.made.datasets:
            self._tell("runs/log-inputs", {"run_id": id, "datasets": list(run.made.datasets)})
        outputs = [
            {"model_id": self._logged[one.model_id].model_id, "step": one.step}
            for one in run.made.outputs
            if one.model_id in self._logged
        ]
        if outputs:
            self._tell("runs/outputs", {"run_id": id, "models": outputs})
        self._files(Kind.RUN, run.made.id, run.root, target.root, f"run/{id}")
        self._tell(
            "runs/update",
            {"run_id": id, "status": run.closed.status, "end_time": run.closed.end_time,
             "run_name": run.made.name},
        )  # fmt: skip
        self._tell("runs/set-tag", {"run_id": id, "key": DONE, "value": "true"})

    def _logged_models(self, here: str, there: str) -> None:
        known = {_source_id(model.made.tags): model for model in self._there.logged_models(there)}
        for model in self._source.logged_models(here):
            self._tally.count(Kind.LOGGED_MODEL, "found")
            found = known.get(model.made.id)
            if found is not None:
                info = _LoggedInfo(found.made.id, found.root)
            else:
                made = self._make_logged_model(model, there)
                if made is None:
                    continue
                info = made
            self._logged[model.made.id] = info
            if found is not None and found.closed.status is not LoggedModelStatus.PENDING:
                self._tally.count(Kind.LOGGED_MODEL, "there")
                self._filled.add(model.made.id)
                continue
            self._fill_logged_model(model, info)

    def _make_logged_model(self, model: ForeignLoggedModel, experiment: str) -> _LoggedInfo | None:
        made = model.made
        run = self._runs.get(made.run or "")
        said = {
            "experiment_id": experiment,
            "name": made.name,
            "model_type": made.model_type,
            "source_run_id": run.made.id if run is not None else None,
            "params": _texts(made.params),
            "tags": _texts((*made.tags, Tag(SOURCE_ID, made.id))),
        }
        try:
            info = self._http.tell(f"{API}/logged-models", said, _MadeLogged).model.info
        except NoSuchThing:
            self._tally.leave(Kind.LOGGED_MODEL, made.id, "This MLflow has no logged models.")
            return None
        self._map(Kind.LOGGED_MODEL, made.id, info.model_id)
        return info

    def _fill_logged_model(self, model: ForeignLoggedModel, info: _LoggedInfo) -> None:
        for item in model.points:
            run = self._runs.get(item.id)
            if run is None:
                continue
            of = {"model_id": info.model_id, "dataset_name": item.dataset_name,
                  "dataset_digest": item.dataset_digest}  # fmt: skip
            metrics = [{**_metric(item.key, point), **_given(of)} for point in item.points]
            self._tell("runs/log-batch", {"run_id": run.made.id, "metrics": metrics})
        whole = self._files(
            Kind.LOGGED_MODEL, model.made.id, model.root, info.artifact_uri, f"logged_model/{info.model_id}"
        )
        if whole:
            self._filled.add(model.made.id)
        if model.closed.status is not LoggedModelStatus.PENDING:
            path = f"{API}/logged-models/{quote(info.model_id, safe='')}"
            said = {"model_id": info.model_id, "status": model.closed.status}
            self._http.tell(path, said, _Nothing, "PATCH")

    # ------------------------------------------------------------------------------------------------ files

    def _files(self, kind: Kind, id: str, root: str, target: str, owner: str) -> bool:  # noqa: A002
        """Send the files below a root; whether they are there."""
        files = self._source.files(root, f"{kind}/{id}") if root else []
        if not files:
            return False
        parts = urlsplit(target)
        if parts.scheme != "mlflow-artifacts":
            self._tally.change(
                kind, id, f"Its files stay here: MLflow keeps those of its own at {target}, past its server."
            )
            return False
        known = {file.path: file.size_bytes for file in self._there.files(target, owner)}
        for file in files:
            self._tally.files += 1
            self._tally.size_bytes += file.size_bytes or 0
            if file.path in known and (known[file.path] or 0) == (file.size_bytes or 0):
                continue
            place = f"{PROXY}/{quote(parts.path.strip('/') + '/' + file.path)}"
            chunks = self._source.open(root, file.path, f"{kind}/{id}")
            self._http.upload(place, chunks, file.size_bytes or 0)
        if kind is Kind.RUN:
            self._filled.add(id)
        return True

    # --------------------------------------------------------------------------------------------- registry

    def _model(self, model: ForeignModel) -> Iterator[None]:
        """Write a registered model with its versions."""
        self._tally.count(Kind.MODEL, "found")
        versions = list(self._source.versions(model.name))
        mine = f"{self._project}/{model.name}"
        there = next((one for one in self._there.models() if one.name == model.name), None)
        if there is None:
            tags = [Tag(key, value) for key, value in model.tags.items()]
            said = {"name": model.name, "description": model.description,
                    "tags": _texts((*tags, Tag(SOURCE_ID, mine)))}  # fmt: skip
            self._tell("registered-models/create", said)
            self._tally.count(Kind.MODEL, "new")
        elif there.tags.get(SOURCE_ID) != mine:
            self._tally.leave(Kind.MODEL, model.name, "MLflow has a registered model of that name.")
            return
        else:
            self._tally.count(Kind.MODEL, "there")
        before = list(self._there.versions(model.name))
        for version in before:
            if PLACEHOLDER in version.tags:
                self._drop(version)
        numbers = {v.tags.get(SOURCE_ID): v.number for v in before if PLACEHOLDER not in v.tags}
        following = max((version.number for version in before), default=0) + 1
        for version in versions:
            self._tally.count(Kind.VERSION, "found")
            key = f"{mine}/{version.number}"
            if key in numbers:
                self._tally.count(Kind.VERSION, "there")
            else:
                number = self._version(version, key, following)
                following = max(following, (number or 0) + 1)
                if number is not None:
                    numbers[key] = number
            yield
        for alias, number in sorted(model.aliases.items()):
            ours = numbers.get(f"{mine}/{number}")
            if ours is not None:
                said = {"name": model.name, "alias": alias, "version": str(ours)}
                self._tell("registered-models/alias", said)

    def _version(self, version: ForeignVersion, key: str, following: int) -> int | None:
        """Write a version under its number; None, and a note, where it cannot be."""
        made_of = self._made_of(version)
        if made_of is None:
            self._tally.leave(Kind.VERSION, key, "Its files cannot be sent through MLflow's server.")
            return None
        tags = [Tag(name, value) for name, value in version.tags.items()]
        said = {"name": version.model, "description": version.description, **made_of}
        if version.number - following <= GAP_MAX:
            for _ in range(following, version.number):
                self._drop_number(said, version.model)
        said["tags"] = _texts((*tags, Tag(SOURCE_ID, key)))
        found = self._http.tell(f"{API}/model-versions/create", said, _MadeVersion).model_version
        number = int(found.version)
        self._tally.count(Kind.VERSION, "new")
        if number != version.number:
            self._tally.mapped.append(Mapped(kind=Kind.VERSION, id=key, ours=str(number)))
        if version.stage in _STAGES:
            self._tell(
                "model-versions/transition-stage",
                {"name": version.model, "version": str(number), "stage": version.stage,
                 "archive_existing_versions": False},
            )  # fmt: skip
        elif version.stage != "None":
            self._tally.change(Kind.VERSION, key, f"MLflow has no stage {version.stage!r}.")
        return number

    def _drop_number(self, said: Mapping[str, Any], model: str) -> None:
        """Use up the next number of a model: the version that had it here is no more."""
        placed = {**said, "tags": [{"key": PLACEHOLDER, "value": "true"}]}
        found = self._http.tell(f"{API}/model-versions/create", placed, _MadeVersion).model_version
        self._delete_version(model, str(found.version))

    def _drop(self, version: ForeignVersion) -> None:
        self._delete_version(version.model, str(version.number))

    def _delete_version(self, model: str, number: str) -> None:
        said = {"name": model, "version": number}
        self._http.tell(f"{API}/model-versions/delete", said, _Nothing, "DELETE")

    def _made_of(self, version: ForeignVersion) -> dict[str, Any] | None:
        """What MLflow is to take a version's files from: a run or logged model that is there, or files that
        are sent for it."""
        source = version.source
        if is_prompt(version.tags):
            return {"source": "prompt-template"}
        if source.startswith("runs:/"):
            run_id, _, folder = source.removeprefix("runs:/").partition("/")
            run = self._runs.get(run_id)
            if run is not None and self._has_files(run_id, run):
                place = f"{run.root}/{folder}" if folder else run.root
                return {"source": place, "run_id": run.made.id}
        if source.startswith("models:/m-"):
            model_id, _, folder = source.removeprefix("models:/").partition("/")
            if model_id in self._filled and not folder:
                logged = self._logged[model_id].model_id
                return _given({"source": f"models:/{logged}", "model_id": logged,
                               "run_id": self._run_id(version)})  # fmt: skip
        root = f"mlflow-artifacts:/registered-models/{self._project}/{version.model}/{version.number}"
        folder = hashlib.sha256(f"{self._project}/{version.model}".encode()).hexdigest()[:24]
        target = f"mlflow-artifacts:/modelkeep/{folder}/{version.number}"
        if not self._files(Kind.VERSION, f"{version.model}/{version.number}", root, target, "version/"):
            return None
        return _given({"source": target, "run_id": self._run_id(version)})

    def _has_files(self, run_id: str, run: ForeignRun) -> bool:
        return run_id in self._filled or (
            urlsplit(run.root).scheme == "mlflow-artifacts" and DONE in {tag.key for tag in run.made.tags}
        )

    def _run_id(self, version: ForeignVersion) -> str | None:
        run = self._runs.get(version.run)
        return run.made.id if run is not None else None

    # ---------------------------------------------------------------------------------------------- telling

    def _tell(self, path: str, said: Mapping[str, Any]) -> None:
        self._http.tell(f"{API}/{path}", said, _Nothing)

    def _map(self, kind: Kind, ours: str, theirs: str) -> None:
        self._tally.count(kind, "new")
        if ours != theirs:
            self._tally.mapped.append(Mapped(kind=kind, id=ours, ours=theirs))


def _source_id(tags: Iterable[Tag]) -> str | None:
    return next((tag.value for tag in tags if tag.key == SOURCE_ID), None)


def _texts(tags: Iterable[Tag]) -> list[dict[str, str]]:
    return [{"key": tag.key, "value": tag.value} for tag in tags]


def _metric(key: str, point: Point) -> dict[str, Any]:
    timestamp, step, value = point
    shown = _NON_FINITE.get(value, value) if isinstance(value, str) else value
    return {"key": key, "value": shown, "timestamp": timestamp, "step": step}


def _given(said: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in said.items() if value is not None}


def _parts(items: tuple[T, ...], size: int) -> Iterator[tuple[T, ...]]:
    return (items[at : at + size] for at in range(0, len(items), size))
