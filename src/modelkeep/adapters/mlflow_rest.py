"""An MLflow registry read through its server: any of MLflow 2 and 3, by its REST address.

It asks as MLflow's own client does. What the server only keeps in a folder of its own machine is asked of the
server, and never looked for on this one; a path that leads elsewhere is refused. Logged models and versions
that were deleted are not shown by a server; of logged models, a database shows them.
"""

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from modelkeep.adapters.mlflow_answers import (
    ExperimentOut,
    Experiments,
    FileOut,
    Files,
    LoggedModels,
    LoggedOut,
    Metrics,
    OneRun,
    Place,
    RegisteredModels,
    RegisteredOut,
    RunOut,
    Runs,
    VersionOut,
    Versions,
    logged_model_of,
    point_of,
    run_of,
    tags_of,
    whole,
)
from modelkeep.adapters.mlflow_http import MlflowHttp, NoSuchThing
from modelkeep.adapters.mlflow_roots import Roots, check_path
from modelkeep.client.mlflow_source import (
    DEPTH_MAX,
    FILES_MAX,
    POINTS_AT_ONCE,
    Counts,
    ForeignExperiment,
    ForeignLoggedModel,
    ForeignModel,
    ForeignRun,
    ForeignVersion,
    SourceFile,
)
from modelkeep.core import errors, values
from modelkeep.core.imports import CloseExperiment, ExperimentItem, Point

PAGE = 200
"""Runs, experiments, models or versions of one page."""
LOGGED_PAGE = 50
"""Logged models of one page, as many as MLflow allows."""

API = "/api/2.0/mlflow"
PROXY = "/api/2.0/mlflow-artifacts/artifacts"
_PROMPTS = "tags.`mlflow.prompt.is_prompt` = 'true'"


class MlflowServer:
    """The `MlflowSource` of a REST address."""

    def __init__(
        self,
        url: str,
        roots: Roots | None = None,
        *,
        token: str | None = None,
        user: str | None = None,
        password: str | None = None,
        workspace: str | None = None,
    ) -> None:
        """
        Args:
            roots: what reads files that lie in buckets.
            token, user, password: what MLflow's own client would send.
            workspace: which of its workspaces, where it has them.

        Raises:
            InvalidSetting: it is no address of an HTTP server.
        """
        self._http = MlflowHttp(url, token=token, user=user, password=password, workspace=workspace)
        self._roots = roots or Roots(local=False)

    @property
    def address(self) -> str:
        """What the server is known by."""
        return self._http.address

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    # --------------------------------------------------------------------------------------------- tracking

    def count(self) -> Counts:
        """How much there is, by walking all of it: a server does not count."""
        experiments = list(self._experiments())
        runs = sum(1 for one in experiments for _ in self._runs(one.experiment_id))
        logged = sum(1 for one in experiments for _ in self._logged(one.experiment_id))
        models = list(self._models())
        versions = sum(len(self._versions(model.name)) for model in models)
        return Counts(
            experiments=len(experiments),
            runs=runs,
            logged_models=logged,
            models=len(models),
            versions=versions,
        )

    def experiments(self) -> Iterator[ForeignExperiment]:
        """All experiments, in the order of their ids."""
        found = list(self._experiments())
        for one in sorted(found, key=lambda e: (len(e.experiment_id), e.experiment_id)):
            created = whole(one.creation_time)
            yield ForeignExperiment(
                made=ExperimentItem(
                    id=one.experiment_id, name=one.name, creation_time=created, tags=tags_of(one.tags)
                ),
                closed=CloseExperiment(
                    id=one.experiment_id,
                    deleted=one.lifecycle_stage == "deleted",
                    last_update_time=whole(one.last_update_time) or created,
                ),
            )

    def _experiments(self) -> Iterator[ExperimentOut]:
        asked = {"max_results": PAGE, "view_type": "ALL"}
        for page in self._http.pages("POST", f"{API}/experiments/search", asked, Experiments):
            yield from page.experiments

    def runs(self, experiment_id: str) -> Iterator[ForeignRun]:
        """All runs of an experiment."""
        return (run_of(run) for run in self._runs(experiment_id))

    def _runs(self, experiment_id: str) -> Iterator[RunOut]:
        asked = {"experiment_ids": [experiment_id], "run_view_type": "ALL", "max_results": PAGE}
        for page in self._http.pages("POST", f"{API}/runs/search", asked, Runs):
            yield from page.runs

    def history(self, run_id: str) -> Iterator[tuple[str, tuple[Point, ...]]]:
        """Every point of a run."""

        run = self._http.ask("GET", f"{API}/runs/get", {"run_id": run_id}, OneRun).run
        for metric in run.data.metrics:
            asked = {"run_id": run_id, "metric_key": metric.key, "max_results": POINTS_AT_ONCE}
            for page in self._http.pages("GET", f"{API}/metrics/get-history", asked, Metrics):
                for at in range(0, len(page.metrics), POINTS_AT_ONCE):
                    part = page.metrics[at : at + POINTS_AT_ONCE]
                    yield metric.key, tuple(point_of(point) for point in part)

    def logged_models(self, experiment_id: str) -> Iterator[ForeignLoggedModel]:
        """All logged models of an experiment that were not deleted; none where a server has no such thing."""
        return (logged_model_of(model) for model in self._logged(experiment_id))

    def _logged(self, experiment_id: str) -> Iterator[LoggedOut]:
        asked = {"experiment_ids": [experiment_id], "max_results": LOGGED_PAGE}
        try:
            for page in self._http.pages("POST", f"{API}/logged-models/search", asked, LoggedModels):
                yield from page.models
        except NoSuchThing:
            return

    # --------------------------------------------------------------------------------------------- registry

    def models(self) -> Iterator[ForeignModel]:
        """All registered models, prompts included, in the order of names."""
        for model in sorted(self._models(), key=lambda one: one.name):
            created = whole(model.creation_timestamp)
            yield ForeignModel(
                name=model.name,
                description=model.description,
                tags={tag.key: tag.value for tag in model.tags},
                creation_time=created,
                last_update_time=whole(model.last_updated_timestamp) or created,
                aliases={alias.alias: whole(alias.version) for alias in model.aliases},
            )

    def _models(self) -> Iterator[RegisteredOut]:
        """Registered models; prompts are shown only to whoever asks for them."""
        seen: set[str] = set()
        for condition in ("", _PROMPTS):
            asked = {"filter": condition, "max_results": PAGE}
            for page in self._http.pages("GET", f"{API}/registered-models/search", asked, RegisteredModels):
                for model in page.registered_models:
                    if model.name not in seen:
                        seen.add(model.name)
                        yield model

    def versions(self, model: str) -> Iterator[ForeignVersion]:
        """All versions of a model, in the order of numbers."""
        for one in sorted(self._versions(model), key=lambda version: whole(version.version)):
            created = whole(one.creation_timestamp)
            stored = ""
            if one.source.startswith("models:/") and not one.source.startswith("models:/m-"):
                asked = {"name": model, "version": str(one.version)}
                stored = self._http.ask(
                    "GET", f"{API}/model-versions/get-download-uri", asked, Place
                ).artifact_uri
            logged = one.source.removeprefix("models:/") if one.source.startswith("models:/m-") else ""
            yield ForeignVersion(
                model=model,
                number=whole(one.version),
                description=one.description,
                user=one.user_id,
                creation_time=created,
                last_update_time=whole(one.last_updated_timestamp) or created,
                stage=one.current_stage or "None",
                source=one.source,
                stored=stored,
                run=one.run_id,
                logged_model=one.model_id or logged.partition("/")[0],
                tags={tag.key: tag.value for tag in one.tags},
            )

    def _versions(self, model: str) -> list[VersionOut]:
        """The versions of a model; those of a prompt too are shown only to whoever asks for them."""
        mark = '"' if "'" in model else "'"
        found: list[VersionOut] = []
        for further in ("", f" and {_PROMPTS}"):
            asked = {"filter": f"name = {mark}{model}{mark}{further}", "max_results": PAGE}
            for page in self._http.pages("GET", f"{API}/model-versions/search", asked, Versions):
                found += (version for version in page.model_versions if version.name == model)
            if found:
                break
        return found

    # ------------------------------------------------------------------------------------------------ files

    def files(self, root: str, owner: str = "") -> list[SourceFile]:
        """The files below a root; see `MlflowSource.files`."""
        if urlsplit(root).scheme == "s3":
            return self._roots.files(root)
        found: list[SourceFile] = []
        try:
            self._walk(root, owner, "", found, 0)
        except NoSuchThing:
            return []
        except errors.SourceUnreadable as problem:
            raise errors.FilesUnreachable(problem.message, root=root) from problem
        return sorted(found)

    def _walk(self, root: str, owner: str, folder: str, found: list[SourceFile], depth: int) -> None:
        if depth > DEPTH_MAX:
            raise errors.FilesUnreachable(f"{root} has folders without end.", root=root)
        for file in self._listed(root, owner, folder):
            path = check_path(file.path, root)
            if file.is_dir:
                self._walk(root, owner, path, found, depth + 1)
            else:
                size = None if file.file_size is None else whole(file.file_size)
                found.append(SourceFile(path, size))
            if len(found) > FILES_MAX:
                raise errors.FilesUnreachable(f"{root} has more than {FILES_MAX:,} files.", root=root)

    def _listed(self, root: str, owner: str, folder: str) -> Iterator[FileOut]:
        """What lies directly in a folder, with whole paths below the root."""
        kind, _, id = owner.partition("/")  # noqa: A001
        parts = urlsplit(root)
        if parts.scheme == "mlflow-artifacts":
            place = "/".join(part for part in (parts.path.strip("/"), folder) if part)
            for file in self._http.ask("GET", PROXY, {"path": place}, Files).files:
                name = file.path.rstrip("/").rpartition("/")[2]
                path = f"{folder}/{name}" if folder else name
                yield FileOut(path=path, is_dir=file.is_dir, file_size=file.file_size)
            return
        asked: dict[str, Any]
        if kind == "run":
            asked, path = {"run_id": id}, f"{API}/artifacts/list"
            asked |= {"path": folder} if folder else {}
        elif kind == "logged_model":
            asked, path = {}, f"{API}/logged-models/{quote(id, safe='')}/artifacts/directories"
            asked |= {"artifact_directory_path": folder} if folder else {}
        else:
            raise _elsewhere(root)
        for page in self._http.pages("GET", path, asked, Files):
            yield from page.files

    def open(self, root: str, path: str, owner: str = "") -> Iterator[bytes]:
        """The bytes of a file; see `MlflowSource.open`."""
        check_path(path, root)
        kind, _, id = owner.partition("/")  # noqa: A001
        parts = urlsplit(root)
        if parts.scheme == "s3":
            yield from self._roots.open(root, path)
            return
        if parts.scheme == "mlflow-artifacts":
            target = f"{PROXY}/{quote(parts.path.strip('/') + '/' + path)}"
        elif kind == "run":
            target = f"/get-artifact?{urlencode({'run_uuid': id, 'path': path})}"
        elif kind == "logged_model":
            inside = urlencode({"artifact_file_path": path})
            target = f"/ajax-api/2.0/mlflow/logged-models/{quote(id, safe='')}/artifacts/files?{inside}"
        else:
            raise _elsewhere(root)
        try:
            yield from self._http.stream(target)
        except (NoSuchThing, errors.SourceUnreadable) as problem:
            raise errors.FilesUnreachable(
                f"{values.quoted(path)} below {values.quoted(root, 200)} cannot be read: {problem}", root=root
            ) from problem


def _elsewhere(root: str) -> errors.FilesUnreachable:
    return errors.FilesUnreachable(
        f"MLflow's server does not hand out what lies at {values.quoted(root, 200)}; import from its "
        "database, "
        "on a machine that can read that place.",
        root=root,
    )
