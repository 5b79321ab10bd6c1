"""A random conversation of MLflow's own client with whatever server it is pointed at: run by MLflow's Python.

    python mlflow_talk.py SEED LENGTH

It prints one line of JSON for each call: what was called, with what, and the answer without ids and times.
The same seed makes the same calls wherever both servers answer alike, for each draw depends on the seed and
on what was answered before. It knows nothing of Modelkeep but one address: where a model is to share its
stages, it says so to a server that has such a thing (SHARE=1 in the environment).

What it does not do: judge. It stays within what both servers are to answer alike in the end; where they
differ on purpose is said where the two conversations are compared (test_mlflow_talk.py).
"""

import enum
import json
import math
import os
import re
import sys
import tempfile
import urllib.request
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
    ViewType,
)
from mlflow.entities._mlflow_object import _MlflowObject
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from requests import HTTPError

warnings.filterwarnings("ignore")

T = 1_700_000_000_000
LATER = 1_000
"""Times that were given lie between T and this much later; all others are the server's own."""
KEYS = ("auc", "loss", "train/f1", "m 1")
TEXTS = ("a", "B", "risk", "0.1", "ü", "it's")
VALUES = (0.0, 0.5, -1.25, 1e300, 5e-324, math.nan, math.inf, -math.inf, 3)
PATHS = ("a.txt", "notes/a.txt", "notes/deep/b c.txt", "notes/ü.json", "x/y/z.bin")
FOLDERS = (None, "", "notes", "notes/deep", "x", "nothing", "a.txt")
STAGES = ("None", "Staging", "Production", "Archived")
MOVES = {  # the moves that a model's usual stages allow
    "None": ("Staging", "Production", "Archived", "staging"),
    "Staging": ("None", "Production", "Archived"),
    "Production": ("Staging", "Archived"),
    "Archived": ("None", "Staging", "Production", "production"),
}
TIMES = frozenset(
    "creation_time last_update_time creation_timestamp last_updated_timestamp start_time end_time".split()
)
SHARED = {
    "stages": [
        {"name": "none"},
        {"name": "staging", "exclusive": False},
        {"name": "production", "exclusive": False, "protected": True},
        {"name": "archived"},
    ],
    "transitions": [[a.lower(), b.lower()] for a in STAGES for b in STAGES if a != b],
    "displaced_to": "archived",
}
"""Stages that hold many versions each, as MLflow's do, with every move there is."""


class Talk:
    """One conversation."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._random = Random(seed)
        self._client = MlflowClient()
        self._named: dict[str, str] = {}
        self._experiments: list[str] = []
        self._runs: list[Any] = []
        self._logged: list[str] = []
        self._folders: list[tuple[str, str]] = []
        self._models: list[str] = []
        self._versions: list[tuple[str, str]] = []
        self._prompts: list[str] = []
        self._count = 0
        self._refused = False

    def carry_on(self, length: int) -> None:
        """So many calls, after a few that the others need."""
        self._do_experiment()
        self._do_run()
        self._do_files_of_a_model()
        self._do_registered_model()
        self._do_version()
        kinds = sorted(name for name in dir(self) if name.startswith("_do_"))
        while self._count < length:
            getattr(self, self._random.choice(kinds))()

    # ------------------------------------------------------------------------------------------ one call

    def _call(
        self,
        what: str | Callable[..., Any],
        *words: Any,
        of: Any = None,
        keep: Callable[[Any], Any] | None = None,
        **named: Any,
    ) -> Any:
        """Call a method of the client, or of another object, and tell what came of it.

        Args:
            keep: notes what was made before it is told, so that its id is known.

        Returns:
            The answer; None when it was refused.
        """
        method = getattr(of or self._client, what) if isinstance(what, str) else what
        result: Any = None
        self._refused = True
        try:
            result = method(*words, **named)
            if keep is not None:
                keep(result)
            told = self._told(result)
            self._refused = False
        except MlflowException as refused:
            told = {"refused": refused.error_code}
        except HTTPError as refused:
            told = {"refused": refused.response.status_code}
        self._count += 1
        said = [self._told(each) for each in words] + [{k: self._told(v) for k, v in named.items()}]
        line = json.dumps([method.__name__, said, told], sort_keys=True)
        sys.stdout.write(line + "\n")
        return result

    def _told(self, value: Any, key: str = "") -> Any:
        """A value as JSON without ids and times."""
        match value:
            case None | bool():
                return value
            case enum.Enum():
                return str(value.value)
            case float() if not math.isfinite(value):
                return str(value)
            case int() | float():
                return "TIME" if key in TIMES and not T <= value <= T + LATER else value
            case str():
                return self._plain(value, key)
            case Mapping():
                return {str(k): self._told(v, str(k)) for k, v in value.items()}
            case _MlflowObject():
                return {k: self._told(v, k) for k, v in value}
            case Iterable():
                return [self._told(each, key) for each in value]
        return repr(value)

    def _plain(self, text: str, key: str) -> str:
        for id_, label in self._named.items():
            text = text.replace(id_, label)
        if key == "experiment_id" and text in self._experiments:
            return f"e{self._experiments.index(text)}"
        found = re.fullmatch(r"mlflow-artifacts:/(\d+)(/.*)?", text)
        if found and found[1] in self._experiments:
            return f"mlflow-artifacts:/e{self._experiments.index(found[1])}{found[2] or ''}"
        return text

    # -------------------------------------------------------------------------------------------- draws

    def _some(self, known: list[Any], other: Any) -> Any:
        """One of what there is, or now and then something that is not there."""
        return self._random.choice(known) if known and self._random.random() < 0.95 else other

    def _fresh(self, kind: str, known: list[str]) -> str:
        """A new name, or now and then one that is taken."""
        if known and self._random.random() < 0.1:
            return self._random.choice(known)
        return f"{kind} {self._random.randrange(10**6)} of {self._seed}"

    def _pair(self) -> tuple[str, str]:
        return self._random.choice(KEYS), self._random.choice(TEXTS)

    def _pairs(self) -> dict[str, str]:
        return dict(self._pair() for _ in range(self._random.randrange(3)))

    def _point(self) -> Metric:
        draw = self._random
        return Metric(draw.choice(KEYS), draw.choice(VALUES), T + draw.randrange(4), draw.randrange(-1, 3))

    def _run_id(self) -> str:
        return str(self._some(self._runs, "f" * 32))

    # -------------------------------------------------------------------------------------- experiments

    def _do_experiment(self) -> None:
        name = f"experiment {self._random.randrange(8)} of {self._seed}"
        tags = self._pairs()

        def create_experiment() -> dict[str, str]:
            self._experiments.append(self._client.create_experiment(name, tags=tags))
            return {"experiment_id": self._experiments[-1]}

        self._call(create_experiment)

    def _experiment(self) -> str:
        return str(self._some(self._experiments, "987654321"))

    def _do_experiment_look(self) -> None:
        self._call("get_experiment", self._experiment())
        self._call("get_experiment_by_name", f"experiment {self._random.randrange(8)} of {self._seed}")

    def _do_experiment_life(self) -> None:
        action = self._random.choice(("delete_experiment", "restore_experiment", "restore_experiment"))
        self._call(action, self._experiment())

    def _do_experiment_change(self) -> None:
        self._call("set_experiment_tag", self._experiment(), *self._pair())
        self._call("delete_experiment_tag", self._experiment(), self._random.choice(KEYS))
        if self._random.random() < 0.3:
            name = f"experiment {self._random.randrange(8)} of {self._seed}"
            self._call("rename_experiment", self._experiment(), name)

    def _do_experiment_search(self) -> None:
        clause = self._random.choice(("", " AND tags.loss = 'a'", " AND tags.auc LIKE '%r%'"))
        self._call(
            "search_experiments",
            view_type=self._random.choice((ViewType.ALL, ViewType.ACTIVE_ONLY, ViewType.DELETED_ONLY)),
            filter_string=f"name LIKE '% of {self._seed}'{clause}",
            order_by=[self._random.choice(("name ASC", "name DESC"))],
        )

    # --------------------------------------------------------------------------------------------- runs

    def _do_run(self) -> None:
        number = len(self._runs)

        def keep(made: Any) -> None:
            self._runs.append(made.info.run_id)
            self._named[made.info.run_id] = f"RUN{number}"

        self._call(
            "create_run",
            self._experiment(),
            start_time=T + number,
            run_name=f"r{number}",
            tags={**self._pairs(), "mlflow.user": "ann"},
            keep=keep,
        )

    def _do_run_look(self) -> None:
        self._call("get_run", self._run_id())

    def _do_run_life(self) -> None:
        self._call(self._random.choice(("delete_run", "restore_run", "restore_run")), self._run_id())

    def _do_run_change(self) -> None:
        status = self._random.choice(("FINISHED", "FAILED", "KILLED"))
        self._call("set_terminated", self._run_id(), status, T + self._random.randrange(100))
        self._call("update_run", self._run_id(), self._random.choice(("RUNNING", "SCHEDULED")), "renamed")

    def _do_logging(self) -> None:
        key, value = self._pair()
        point = self._point()
        self._call("log_param", self._run_id(), key, value)
        self._call("log_metric", self._run_id(), point.key, point.value, point.timestamp, point.step)
        self._call("set_tag", self._run_id(), *self._pair())
        self._call("delete_tag", self._run_id(), self._random.choice(KEYS))

    def _do_batch(self) -> None:
        metrics = [self._point() for _ in range(self._random.randrange(8))]
        params = [Param(*pair) for pair in self._pairs().items()]
        tags = [RunTag(*pair) for pair in self._pairs().items()]
        self._call("log_batch", self._run_id(), metrics, params, tags)

    def _do_history(self) -> None:
        self._call("get_metric_history", self._some(self._runs[:], self._runs[0]), self._random.choice(KEYS))

    def _do_inputs(self) -> None:
        number = self._random.randrange(3)
        data = Dataset(f"data {number}", f"digest{number}", "local", '{"uri": "x"}', profile="{}")
        tags = [InputTag("mlflow.data.context", self._random.choice(("training", "eval")))]
        self._call("log_inputs", self._run_id(), [DatasetInput(data, tags)])

    def _do_run_search(self) -> None:
        clause = self._random.choice((
            "", "metrics.auc > 0", "params.`m 1` = 'a'", "tags.loss ILIKE '%R%'", "run_name LIKE 'r%'",
            "attributes.status = 'FINISHED'", "metrics.auc >= 0 and params.loss != '0.1'",
            "dataset.name = 'data 1'", "tags.`m 1` IS NULL", f"attributes.run_id IN ('{self._runs[0]}')",
        ))  # fmt: skip
        order = self._random.choice(([], ["metrics.auc DESC"], ["params.loss ASC"], ["run_name ASC"]))
        view = self._random.choice((ViewType.ALL, ViewType.ACTIVE_ONLY, ViewType.DELETED_ONLY))
        most, within = self._random.choice((2, 50)), self._experiments[:]
        found = self._call("search_runs", within, clause, view, most, order)
        if found is not None and found.token:
            self._call("search_runs", within, clause, view, most, order, found.token)

    # ---------------------------------------------------------------------------------------- artifacts

    def _open_run(self) -> str | None:
        """A run that is not deleted; None when chance has found none."""
        run_id = str(self._random.choice(self._runs))
        return run_id if self._client.get_run(run_id).info.lifecycle_stage == "active" else None

    def _do_file(self) -> None:
        if (run_id := self._open_run()) is not None:
            self._call("log_text", run_id, self._random.choice(TEXTS) * 9, self._random.choice(PATHS))

    def _do_folder(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "files"  # a name that is the same each time
            for path in self._random.sample(PATHS, 2):
                (place / path).parent.mkdir(parents=True, exist_ok=True)
                (place / path).write_bytes(self._random.randbytes(self._random.choice((0, 1, 5_000))))
            run_id, under = self._open_run(), self._random.choice((None, "deep/er", "notes"))
            if run_id is None:
                return

            def log_artifacts() -> None:
                self._client.log_artifacts(run_id, str(place), under)

            self._call(log_artifacts)

    def _do_listing(self) -> None:
        self._call("list_artifacts", self._run_id(), self._random.choice(FOLDERS))

    def _do_download(self) -> None:
        run_id, path = self._run_id(), self._random.choice((*PATHS, "notes", "x", "nothing", ""))
        self._call(self._downloading("download of a run's file", f"runs:/{run_id}/{path}"))

    def _downloading(self, name: str, address: str) -> Callable[[], dict[str, str]]:
        """The files behind an address by their paths."""

        def download() -> dict[str, str]:
            with tempfile.TemporaryDirectory() as folder:
                found = Path(mlflow.artifacts.download_artifacts(address, dst_path=folder))
                files = [found] if found.is_file() else sorted(p for p in found.rglob("*") if p.is_file())
                return {str(p.relative_to(folder)): p.read_bytes().hex()[:200] for p in files}

        download.__name__ = f"{name} {self._told(address)}"
        return download

    def _do_file_deleted(self) -> None:
        if (run_id := self._open_run()) is not None and self._random.random() < 0.5:
            place = self._client.get_run(run_id).info.artifact_uri
            path = self._random.choice(("notes", "x/y", "notes/a.txt"))
            self._call("delete_artifacts", path, of=get_artifact_repository(place))

    # ------------------------------------------------------------------------------------ logged models

    def _do_logged_model(self) -> None:
        number = len(self._logged)

        def keep(made: Any) -> None:
            self._logged.append(made.model_id)
            self._named[made.model_id] = f"MODEL{number}"

        made = self._call(
            "create_logged_model",
            self._experiment(),
            f"m{number}",
            source_run_id=self._random.choice(self._runs),
            tags=self._pairs(),
            params=self._pairs(),
            model_type=self._random.choice((None, "classifier")),
            keep=keep,
        )
        if made is not None:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "weights.bin").write_bytes(self._random.randbytes(100))
                (Path(folder) / "MLmodel").write_text("flavors: {}\n")
                self._call(self._filling(made.model_id, folder))
            self._call("finalize_logged_model", made.model_id, "READY")
            self._call("log_outputs", self._random.choice(self._runs), [LoggedModelOutput(made.model_id, 2)])

    def _filling(self, model_id: str, folder: str) -> Callable[[], None]:
        def log_model_artifacts() -> None:
            self._client.log_model_artifacts(model_id, folder)

        return log_model_artifacts

    def _model_id(self) -> str:
        return str(self._some(self._logged, "m-" + "f" * 32))

    def _do_logged_model_look(self) -> None:
        model_id = self._model_id()
        self._call("get_logged_model", model_id)
        self._call("list_logged_model_artifacts", model_id)
        self._call(self._downloading("download of a logged model", f"models:/{model_id}"))

    def _do_logged_model_change(self) -> None:
        self._call("set_logged_model_tags", self._model_id(), dict([self._pair()]))
        self._call("delete_logged_model_tag", self._model_id(), self._random.choice(KEYS))
        point = self._point()
        self._call(
            "log_metric", self._run_id(), "auc", 0.5, point.timestamp, point.step,
            model_id=self._model_id(), dataset_name="data 1", dataset_digest="digest1",
        )  # fmt: skip

    def _do_logged_model_search(self) -> None:
        self._call(
            "search_logged_models",
            self._experiments[:],
            filter_string=self._random.choice(
                (None, "name LIKE 'm%'", "params.loss = 'a'", "tags.auc != 'a'")
            ),
            order_by=[{"field_name": "name", "ascending": self._random.random() < 0.5}],
        )

    def _do_logged_model_deleted(self) -> None:
        if self._random.random() < 0.2:
            self._call("delete_logged_model", self._model_id())

    # --------------------------------------------------------------------------------- registered models

    def _do_registered_model(self) -> None:
        name = self._fresh(self._random.choice(("solo", "shared")), self._models)
        if self._call("create_registered_model", name, self._pairs(), "what it is for") is not None:
            self._models.append(name)
            self._share(name)

    def _share(self, name: str) -> None:
        """Let the stages of some models hold many versions, where the server needs to be told."""
        if name.startswith("shared") and os.environ.get("SHARE"):
            place = urllib.request.quote(name)
            url = f"{os.environ['MLFLOW_TRACKING_URI']}/api/v1/models/default/{place}/stages"
            headers = {"Content-Type": "application/json"}
            asked = urllib.request.Request(url, json.dumps(SHARED).encode(), headers, method="PUT")
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=30):
                pass

    def _model(self) -> str:
        return str(self._some(self._models, f"no model of {self._seed}"))

    def _do_model_look(self) -> None:
        self._call("get_registered_model", self._model())
        stages = self._random.choice((None, ["Production"], ["None", "staging"], ["Nowhere"]))
        self._call("get_latest_versions", self._model(), stages)

    def _do_model_change(self) -> None:
        self._call("update_registered_model", self._model(), self._random.choice(TEXTS))
        self._call("set_registered_model_tag", self._model(), *self._pair())
        self._call("delete_registered_model_tag", self._model(), self._random.choice(KEYS))

    def _do_model_renamed(self) -> None:
        if self._random.random() < 0.3:
            name, new = self._model(), self._fresh("solo", self._models)
            if name.startswith("shared"):
                new = new.replace("solo", "shared")
            self._call("rename_registered_model", name, new)
            if not self._refused:
                self._models[self._models.index(name)] = new
                self._versions = [(new if model == name else model, v) for model, v in self._versions]

    def _do_model_search(self) -> None:
        clause = self._random.choice(("", " AND tags.loss = 'a'", " AND tags.`m 1` != 'B'"))
        order = [self._random.choice(("name ASC", "name DESC"))]
        most = self._random.choice((1, 100))
        clause = f"name LIKE '% of {self._seed}'{clause}"
        found = self._call("search_registered_models", clause, most, order)
        if found is not None and found.token:
            self._call("search_registered_models", clause, most, order, found.token)

    def _do_model_deleted(self) -> None:
        name = self._model()
        served = any(self._stage(v) == "Production" for v in self._versions if v[0] == name)
        if not served and self._random.random() < 0.2:
            self._call("delete_registered_model", name)
            self._models = [each for each in self._models if each != name]
            self._versions = [each for each in self._versions if each[0] != name]

    # -------------------------------------------------------------------------------------------- versions

    def _do_files_of_a_model(self) -> None:
        """Files in a folder of their own, which nobody changes afterwards."""
        run_id, folder = self._open_run(), f"model{len(self._folders)}"
        if run_id is None:
            return
        for name, text in (("MLmodel", "flavors: {}\n"), ("weights.bin", f"{self._random.random()}")):
            self._call("log_text", run_id, text, f"{folder}/{name}")
        self._folders.append((run_id, folder))

    def _do_version(self) -> None:
        run_id, folder = self._random.choice(self._folders)
        name = self._model()
        source, of_run, of_model = f"runs:/{run_id}/{folder}", run_id, None
        if self._logged and self._random.random() < 0.3:
            of_model = self._random.choice(self._logged)
            source, of_run = f"models:/{of_model}", None
        made = self._call(
            "create_model_version", name, source, of_run,
            tags=self._pairs(), description=self._random.choice(TEXTS), model_id=of_model,
        )  # fmt: skip
        if made is not None:
            self._versions.append((name, made.version))

    def _do_copy(self) -> None:
        name, version = self._version()
        into = self._fresh("solo", [each for each in self._models if each != name])
        made = self._call("copy_model_version", f"models:/{name}/{version}", into)
        if made is not None:
            self._versions.append((into, made.version))
            if into not in self._models:
                self._models.append(into)

    def _version(self) -> tuple[str, str]:
        found: tuple[str, str] = self._some(self._versions, (self._model(), self._random.choice(("99", "0"))))
        return found

    def _do_version_look(self) -> None:
        name, version = self._version()
        self._call("get_model_version", name, version)
        self._call("get_model_version_download_uri", name, version)
        self._call(self._downloading("download of a version", f"models:/{name}/{version}"))

    def _do_version_change(self) -> None:
        self._call("update_model_version", *self._version(), self._random.choice(TEXTS))
        self._call("set_model_version_tag", *self._version(), *self._pair())
        self._call("delete_model_version_tag", *self._version(), self._random.choice(KEYS))

    def _stage(self, version: tuple[str, str]) -> str:
        return str(self._client.get_model_version(*version).current_stage)

    def _do_transition(self) -> None:
        if not self._versions:
            return
        name, version = self._random.choice(self._versions)
        shared = name.startswith("shared")
        stage = self._random.choice(STAGES if shared else MOVES[self._stage((name, version))])
        archive = stage.capitalize() in ("Staging", "Production")
        if shared and self._random.random() < 0.5:
            archive = False
        self._call("transition_model_version_stage", name, version, stage, archive_existing_versions=archive)

    def _do_transition_of_nothing(self) -> None:
        if self._random.random() < 0.3:
            self._call("transition_model_version_stage", self._model(), "99", "Production")
            if self._versions:
                self._call("transition_model_version_stage", *self._random.choice(self._versions), "Nowhere")

    def _do_alias(self) -> None:
        alias = self._random.choice(("champion", "challenger", "Best_1", "v1", "a b"))
        self._call("set_registered_model_alias", self._version()[0], alias, self._version()[1])

    def _do_alias_look(self) -> None:
        name, alias = self._model(), self._random.choice(("champion", "challenger", "Best_1", "latest"))
        self._call("get_model_version_by_alias", name, alias)
        if alias != "latest":
            self._call(self._downloading("download by an alias", f"models:/{name}@{alias}"))
        if self._random.random() < 0.3:
            self._call("delete_registered_model_alias", name, alias)

    def _do_version_search(self) -> None:
        name = self._model()
        clause = self._random.choice((
            f"name = '{name}'", f"name LIKE '% of {self._seed}'", f"name ILIKE 'SOLO % OF {self._seed}'",
            f"name = '{name}' AND tags.auc = 'a'", f"run_id = '{self._runs[0]}'",
            f"name LIKE '% of {self._seed}' AND tags.`m 1` != 'a'", f"run_id IN ('{self._runs[-1]}')",
        ))  # fmt: skip
        order = ["name ASC", self._random.choice(("version_number ASC", "version_number DESC"))]
        most = self._random.choice((2, 100))
        found = self._call("search_model_versions", clause, most, order)
        if found is not None and found.token:
            self._call("search_model_versions", clause, most, order, found.token)

    def _do_version_deleted(self) -> None:
        if self._versions and self._random.random() < 0.4:
            version = self._random.choice(self._versions)
            if self._stage(version) != "Production":
                self._call("delete_model_version", *version)
                self._versions.remove(version)

    # --------------------------------------------------------------------------------------------- prompts

    def _do_prompt(self) -> None:
        name = f"prompt{self._random.randrange(3)}-of-{self._seed}"
        text = self._random.choice(("Hello {{name}}", "Say {{word}}!", "x"))
        tags = self._pairs()

        def register_prompt() -> dict[str, Any]:
            return _shown(self._client.register_prompt(name, text, commit_message="why", tags=tags))

        self._call(register_prompt)
        if not self._refused and name not in self._prompts:
            self._prompts.append(name)

    def _do_prompt_look(self) -> None:
        name = str(self._some(self._prompts, f"nobodys-of-{self._seed}"))
        self._call("set_prompt_alias", name, "prod", 1)
        address = f"prompts:/{name}{self._random.choice(('/1', '/2', '/9', '@prod', '@nobody'))}"

        def load_prompt() -> dict[str, Any]:
            return _shown(self._client.load_prompt(address, cache_ttl_seconds=0))

        load_prompt.__name__ = f"load_prompt {address}"
        self._call(load_prompt)


def _shown(prompt: Any) -> dict[str, Any]:
    return {name: getattr(prompt, name) for name in ("name", "version", "template", "tags", "aliases")}


if __name__ == "__main__":
    Talk(int(sys.argv[1])).carry_on(int(sys.argv[2]))
