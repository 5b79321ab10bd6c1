"""Who may do what through the MLflow door: every row, every role, on one's own project, another one, and
nothing.

It is the table of `test_authorisation` for the other door: the same people, the same letters, the same rights
behind it. What the verbs do is tested elsewhere.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from modelkeep.core.webhooks import Style
from modelkeep.web.app import create_app
from modelkeep.web.mlflow import absent, artifacts
from modelkeep.web.mlflow.rows import ROWS
from tests.web.inprocess import InProcess, Reply, in_process
from tests.web.test_authorisation import TARGETS, WHO
from tests.web.world import World, fill, hooked, opened, rehearsing

pytestmark = pytest.mark.req("G10")

API = "/api/2.0/mlflow/"
STORE = "/api/2.0/mlflow-artifacts/"
NOWHERE = "0" * 32
MEANING = {200: "y", 400: "b", 401: "x", 403: "f", 404: "h", 409: "c", 501: "-"}


@dataclass
class Things:
    """The ids of what stands in each project."""

    world: World
    ids: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Aim:
    """What a request is aimed at."""

    things: Things
    target: str

    def _id(self, kind: str, missing: str) -> str:
        return self.things.ids[self.target][kind] if self.target != "missing" else missing

    @property
    def project(self) -> str:
        return "other" if self.target == "other" else "own"

    @property
    def experiment(self) -> dict[str, str]:
        return {"experiment_id": self._id("experiment", "99999")}

    @property
    def run(self) -> dict[str, str]:
        return {"run_id": self._id("run", NOWHERE)}

    @property
    def logged(self) -> str:
        return self._id("model", f"m-{NOWHERE}")

    @property
    def webhook(self) -> str:
        return self._id("webhook", "hook_nothing")

    @property
    def model(self) -> dict[str, str]:
        return {"name": "nothing" if self.target == "missing" else "churn"}

    @property
    def version(self) -> dict[str, str]:
        return {**self.model, "version": "3"}

    @property
    def folder(self) -> str:
        return f"{self.experiment['experiment_id']}/{self.run['run_id']}/artifacts"

    @property
    def file(self) -> str:
        return f"{self.folder}/notes.txt"


@dataclass(frozen=True)
class Ask:
    """A request: JSON for what changes, a query for what reads."""

    method: str
    path: str
    body: Any = None
    query: Any = None
    raw: bytes | None = None


def _post(path: str, body: Any, method: str = "POST") -> Ask:
    return Ask(method, API + path, body)


def _get(path: str, **query: Any) -> Ask:
    return Ask("GET", API + path, query=query)


POINT = {"key": "auc", "value": 0.5, "timestamp": 1}
PAIR = {"key": "a", "value": "b"}
HOOK = {
    "name": "hook",
    "url": "https://8.8.8.8/",
    "events": [{"entity": "MODEL_VERSION", "action": "CREATED"}],
}
DATASET = {"dataset": {"name": "d", "digest": "1", "source_type": "local", "source": "{}"}}

ASKS: dict[str, Callable[[Aim], Ask]] = {
    "experiments_create_post": lambda a: _post("experiments/create", {"name": "fresh"}),
    "experiments_get_get": lambda a: _get("experiments/get", **a.experiment),
    "experiments_get_by_name_get": lambda a: _get(
        "experiments/get-by-name", experiment_name="nothing" if a.target == "missing" else "churn"
    ),
    "experiments_update_post": lambda a: _post("experiments/update", {**a.experiment, "new_name": "new"}),
    "experiments_delete_post": lambda a: _post("experiments/delete", a.experiment),
    "experiments_restore_post": lambda a: _post("experiments/restore", a.experiment),
    "experiments_set_experiment_tag_post": lambda a: _post(
        "experiments/set-experiment-tag", {**a.experiment, **PAIR}
    ),
    "experiments_delete_experiment_tag_post": lambda a: _post(
        "experiments/delete-experiment-tag", {**a.experiment, "key": "team"}
    ),
    "experiments_search_post": lambda a: _post("experiments/search", {"max_results": 5}),
    "experiments_search_get": lambda a: _get("experiments/search", max_results=5),
    "runs_create_post": lambda a: _post("runs/create", a.experiment),
    "runs_get_get": lambda a: _get("runs/get", **a.run),
    "runs_update_post": lambda a: _post("runs/update", {**a.run, "status": "FINISHED"}),
    "runs_delete_post": lambda a: _post("runs/delete", a.run),
    "runs_restore_post": lambda a: _post("runs/restore", a.run),
    "runs_log_metric_post": lambda a: _post("runs/log-metric", {**a.run, **POINT}),
    "runs_log_parameter_post": lambda a: _post("runs/log-parameter", {**a.run, **PAIR}),
    "runs_set_tag_post": lambda a: _post("runs/set-tag", {**a.run, **PAIR}),
    "runs_delete_tag_post": lambda a: _post("runs/delete-tag", {**a.run, "key": "team"}),
    "runs_log_batch_post": lambda a: _post("runs/log-batch", {**a.run, "metrics": [POINT]}),
    "runs_log_inputs_post": lambda a: _post("runs/log-inputs", {**a.run, "datasets": [DATASET]}),
    "runs_outputs_post": lambda a: _post("runs/outputs", {**a.run, "models": [{"model_id": a.logged}]}),
    "runs_log_model_post": lambda a: _post("runs/log-model", {**a.run, "model_json": "{}"}),
    "runs_search_post": lambda a: _post("runs/search", {"experiment_ids": [*a.experiment.values()]}),
    "metrics_get_history_get": lambda a: _get("metrics/get-history", **a.run, metric_key="auc"),
    "metrics_get_history_bulk_get": lambda a: _get("metrics/get-history-bulk", **a.run, metric_key="auc"),
    "metrics_get_history_bulk_interval_get": lambda a: _get(
        "metrics/get-history-bulk-interval", run_ids=a.run["run_id"], metric_key="auc"
    ),
    "logged_models_post": lambda a: _post("logged-models", {**a.experiment, "name": "gbm"}),
    "logged_models_search_post": lambda a: _post(
        "logged-models/search", {"experiment_ids": [*a.experiment.values()]}
    ),
    "logged_models_model_id_get": lambda a: _get(f"logged-models/{a.logged}"),
    "logged_models_model_id_patch": lambda a: _post(
        f"logged-models/{a.logged}", {"status": "LOGGED_MODEL_READY"}, "PATCH"
    ),
    "logged_models_model_id_delete": lambda a: Ask("DELETE", f"{API}logged-models/{a.logged}"),
    "logged_models_model_id_tags_patch": lambda a: _post(
        f"logged-models/{a.logged}/tags", {"tags": [PAIR]}, "PATCH"
    ),
    "logged_models_model_id_tags_tag_key_delete": lambda a: Ask(
        "DELETE", f"{API}logged-models/{a.logged}/tags/team"
    ),
    "logged_models_model_id_params_post": lambda a: _post(
        f"logged-models/{a.logged}/params", {"params": [PAIR]}
    ),
    "registered_models_create_post": lambda a: _post("registered-models/create", {"name": "fresh"}),
    "registered_models_get_get": lambda a: _get("registered-models/get", **a.model),
    "registered_models_update_patch": lambda a: _post(
        "registered-models/update", {**a.model, "description": "new"}, "PATCH"
    ),
    "registered_models_rename_post": lambda a: _post(
        "registered-models/rename", {**a.model, "new_name": "new"}
    ),
    "registered_models_delete_delete": lambda a: _post("registered-models/delete", a.model, "DELETE"),
    "registered_models_search_get": lambda a: _get("registered-models/search"),
    "registered_models_get_latest_versions_get": lambda a: _get(
        "registered-models/get-latest-versions", **a.model
    ),
    "registered_models_get_latest_versions_post": lambda a: _post(
        "registered-models/get-latest-versions", a.model
    ),
    "registered_models_set_tag_post": lambda a: _post("registered-models/set-tag", {**a.model, **PAIR}),
    "registered_models_delete_tag_delete": lambda a: _post(
        "registered-models/delete-tag", {**a.model, "key": "a"}, "DELETE"
    ),
    "registered_models_alias_post": lambda a: _post(
        "registered-models/alias", {**a.version, "alias": "best"}
    ),
    "registered_models_alias_delete": lambda a: _post(
        "registered-models/alias", {**a.model, "alias": "champion"}, "DELETE"
    ),
    "registered_models_alias_get": lambda a: _get("registered-models/alias", **a.model, alias="champion"),
    "model_versions_create_post": lambda a: _post(
        "model-versions/create", {**a.model, "source": f"models:/{a.logged}", "model_id": a.logged}
    ),
    "model_versions_get_get": lambda a: _get("model-versions/get", **a.version),
    "model_versions_update_patch": lambda a: _post(
        "model-versions/update", {**a.version, "description": "new"}, "PATCH"
    ),
    "model_versions_delete_delete": lambda a: _post("model-versions/delete", a.version, "DELETE"),
    "model_versions_search_get": lambda a: _get("model-versions/search"),
    "model_versions_get_download_uri_get": lambda a: _get("model-versions/get-download-uri", **a.version),
    "model_versions_transition_stage_post": lambda a: _post(
        "model-versions/transition-stage",
        {**a.version, "stage": "Staging", "archive_existing_versions": False},
    ),
    "model_versions_set_tag_post": lambda a: _post("model-versions/set-tag", {**a.version, **PAIR}),
    "model_versions_delete_tag_delete": lambda a: _post(
        "model-versions/delete-tag", {**a.version, "key": "a"}, "DELETE"
    ),
    "webhooks_post": lambda a: _post("webhooks", HOOK),
    "webhooks_get": lambda a: _get("webhooks"),
    "webhooks_webhook_id_get": lambda a: _get(f"webhooks/{a.webhook}"),
    "webhooks_webhook_id_patch": lambda a: _post(f"webhooks/{a.webhook}", {"description": "new"}, "PATCH"),
    "webhooks_webhook_id_delete": lambda a: Ask("DELETE", f"{API}webhooks/{a.webhook}"),
    "webhooks_webhook_id_test_post": lambda a: _post(f"webhooks/{a.webhook}/test", {}),
    "v3_workspaces_get": lambda a: Ask("GET", "/api/3.0/mlflow/workspaces"),
    "v3_workspaces_workspace_get": lambda a: Ask("GET", f"/api/3.0/mlflow/workspaces/{a.project}"),
    "mlflow_artifacts_artifacts_get": lambda a: Ask("GET", f"{STORE}artifacts", query={"path": a.folder}),
    "mlflow_artifacts_artifacts_path_get": lambda a: Ask("GET", f"{STORE}artifacts/{a.file}"),
    "mlflow_artifacts_artifacts_path_head": lambda a: Ask("HEAD", f"{STORE}artifacts/{a.file}"),
    "mlflow_artifacts_artifacts_path_put": lambda a: Ask(
        "PUT", f"{STORE}artifacts/{a.file}.new", raw=b"text"
    ),
    "mlflow_artifacts_artifacts_path_delete": lambda a: Ask("DELETE", f"{STORE}artifacts/{a.file}"),
    "mlflow_artifacts_mpu_create_path_post": lambda a: Ask(
        "POST", f"{STORE}mpu/create/{a.folder}", {"path": "big.bin", "num_parts": 1}
    ),
    "artifacts_list_get": lambda a: _get("artifacts/list", **a.run),
    "logged_models_model_id_artifacts_directories_get": lambda a: _get(
        f"logged-models/{a.logged}/artifacts/directories"
    ),
    "get_artifact_get": lambda a: Ask("GET", "/get-artifact", query={**a.run, "path": "notes.txt"}),
    "model_versions_get_artifact_get": lambda a: Ask(
        "GET", "/model-versions/get-artifact", query={**a.version, "path": "model.bin"}
    ),
}


# The letters and columns of `test_authorisation`, with b for what is asked wrongly.
#
#                      on own      on other    on nothing
TABLE: dict[str, str] = {
    "experiments_create_post": "fyyfyfffyfx ffffffffyfx fyyfyfffyfx",
    "experiments_get_get": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "experiments_get_by_name_get": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "experiments_update_post": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "experiments_delete_post": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "experiments_restore_post": "fhhfhfhhhfx hhhhhhhhhfx hhhhhhhhhhx",
    "experiments_set_experiment_tag_post": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "experiments_delete_experiment_tag_post": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "experiments_search_post": "yyyyyyyyyyx yyyyyyyyyyx yyyyyyyyyyx",
    "experiments_search_get": "yyyyyyyyyyx yyyyyyyyyyx yyyyyyyyyyx",
    "runs_create_post": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "runs_get_get": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "runs_update_post": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "runs_delete_post": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "runs_restore_post": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "runs_log_metric_post": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "runs_log_parameter_post": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "runs_set_tag_post": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "runs_delete_tag_post": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "runs_log_batch_post": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "runs_log_inputs_post": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "runs_outputs_post": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "runs_log_model_post": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "runs_search_post": "yyyyyyyyyyx yyyyyyyyyyx yyyyyyyyyyx",
    "metrics_get_history_get": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "metrics_get_history_bulk_get": "yyyyyyyyyyx yyyyyyyyyyx yyyyyyyyyyx",
    "metrics_get_history_bulk_interval_get": "yyyyyyyyyyx yyyyyyyyyyx yyyyyyyyyyx",
    "logged_models_post": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "logged_models_search_post": "yyyyyyyyyyx yyyyyyyyyyx yyyyyyyyyyx",
    "logged_models_model_id_get": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "logged_models_model_id_patch": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "logged_models_model_id_delete": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "logged_models_model_id_tags_patch": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "logged_models_model_id_tags_tag_key_delete": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "logged_models_model_id_params_post": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "registered_models_create_post": "fyyfyfffyfx ffffffffyfx fyyfyfffyfx",
    "registered_models_get_get": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "registered_models_update_patch": "fyyfyfhhyfx hhhhhhhhyfx fhhfhfhhhfx",
    "registered_models_rename_post": "ffcfcfhhcfx hhhhhhhhcfx ffhfhfhhhfx",
    "registered_models_delete_delete": "ffcfcfhhcfx hhhhhhhhcfx ffhfhfhhhfx",
    "registered_models_search_get": "yyyyyyyyyyx yyyyyyyyyyx yyyyyyyyyyx",
    "registered_models_get_latest_versions_get": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "registered_models_get_latest_versions_post": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "registered_models_set_tag_post": "fyyfyfhhyfx hhhhhhhhyfx fhhfhfhhhfx",
    "registered_models_delete_tag_delete": "fyyfyfhhyfx hhhhhhhhyfx fhhfhfhhhfx",
    "registered_models_alias_post": "fyyfyfhhyfx hhhhhhhhyfx fhhfhfhhhfx",
    "registered_models_alias_delete": "fyyfyfhhyfx hhhhhhhhyfx fhhfhfhhhfx",
    "registered_models_alias_get": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "model_versions_create_post": "fyyfyfhhyfx hhhhhhhhyfx fhhfhfhhhfx",
    "model_versions_get_get": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "model_versions_update_patch": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "model_versions_delete_delete": "ffyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "model_versions_search_get": "yyyyyyyyyyx yyyyyyyyyyx yyyyyyyyyyx",
    "model_versions_get_download_uri_get": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "model_versions_transition_stage_post": "ffyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "model_versions_set_tag_post": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "model_versions_delete_tag_delete": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "webhooks_post": "ffyfyfffyfx ffffffffyfx ffyfyfffyfx",
    "webhooks_get": "yyyyyyyyyyx yyyyyyyyyyx yyyyyyyyyyx",
    "webhooks_webhook_id_get": "hhyhyhhhyhx hhhhhhhhyhx hhhhhhhhhhx",
    "webhooks_webhook_id_patch": "hhyhyhhhyhx hhhhhhhhyhx hhhhhhhhhhx",
    "webhooks_webhook_id_delete": "hhyhyhhhyhx hhhhhhhhyhx hhhhhhhhhhx",
    "webhooks_webhook_id_test_post": "hhyhyhhhyhx hhhhhhhhyhx hhhhhhhhhhx",
    "v3_workspaces_get": "yyyyyyyyyyx yyyyyyyyyyx yyyyyyyyyyx",
    "v3_workspaces_workspace_get": "yyyyyyhhyyx hhhhhhhhyyx yyyyyyhhyyx",
    "mlflow_artifacts_artifacts_get": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "mlflow_artifacts_artifacts_path_get": "yyyyyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "mlflow_artifacts_artifacts_path_head": "yyyyyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "mlflow_artifacts_artifacts_path_put": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "mlflow_artifacts_artifacts_path_delete": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "mlflow_artifacts_mpu_create_path_post": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "artifacts_list_get": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "logged_models_model_id_artifacts_directories_get": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "get_artifact_get": "yyyyyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "model_versions_get_artifact_get": "yyyyyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
}


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Things]:
    """An installation that nothing in this file changes, with a run and all that belongs to it in each
    project."""
    with opened(tmp_path_factory.mktemp("data"), "token") as house:
        found = Things(fill(house))
        with in_process(create_app(house), found.world.tokens["root"]) as client:
            for project in ("own", "other"):
                found.ids[project] = _fill(client, project)
                found.ids[project]["webhook"] = hooked(house, project, Style.MLFLOW)
        yield found


def _fill(client: InProcess, project: str) -> dict[str, str]:
    headers = {"x-mlflow-workspace": project}

    def post(path: str, body: Any, method: str = "POST") -> Any:
        reply = client(method, API + path, body, headers=headers)
        assert reply.status == 200, (path, reply.body)
        return reply.json()

    tags = [{"key": "team", "value": "risk"}]
    experiment = post("experiments/create", {"name": "churn", "tags": tags})["experiment_id"]
    run = post("runs/create", {"experiment_id": experiment, "tags": tags})["run"]["info"]["run_id"]
    post("runs/log-metric", {"run_id": run, **POINT})
    made = post("logged-models", {"experiment_id": experiment, "name": "gbm", "tags": tags})
    model = made["model"]["info"]["model_id"]
    for address in (f"{experiment}/{run}", f"{experiment}/models/{model}"):
        path = f"{STORE}artifacts/{address}/artifacts/notes.txt"
        assert client("PUT", path, raw=b"some text").status == 200
    post(f"logged-models/{model}", {"status": "LOGGED_MODEL_READY"}, "PATCH")
    return {"experiment": experiment, "run": run, "model": model}


@pytest.fixture(scope="module")
def client(things: Things) -> Iterator[InProcess]:
    """Its application, whose writes are taken back."""
    with in_process(create_app(rehearsing(things.world.house))) as found:
        yield found


def _send(client: InProcess, ask: Ask, who: str, aim: Aim) -> Reply:
    return client(
        ask.method,
        ask.path,
        ask.body,
        query=ask.query,
        raw=ask.raw,
        headers={"x-mlflow-workspace": aim.project},
        token=aim.things.world.tokens.get(who),
    )


def _named(name: str) -> str:
    return name.removeprefix("mlflow_")


BASE = {_named(row.name) for row in ROWS if not row.name.endswith("_ajax") and "_ajax_api_" not in row.name}
OF_UPLOADS = {
    f"mlflow_artifacts_mpu_{step}" for step in ("part_path_put", "complete_path_post", "abort_path_post")
}
"""They need an upload that was begun, and have its rights; the tests of artifacts walk through one."""


def test_every_row_has_its_table() -> None:
    """A row that nobody has thought about is not open by accident: it stands here, or is off, or is open."""
    off = {
        _named(row.name)
        for row in ROWS
        if row.handler in (absent.absent, absent.no_workspaces, absent.no_spans, absent.no_graphql)
        or row.handler in (artifacts.presigned, artifacts.presigned_upload, artifacts.presigned_download)
    }
    open_to_all = {_named(row.name) for row in ROWS if row.open}
    assert BASE - off - open_to_all - OF_UPLOADS == set(TABLE) == set(ASKS)
    assert {name.removesuffix("_ajax") for name in open_to_all} == {
        "first_page_get", "version_get", "v3_server_info_get",
    }  # fmt: skip


@pytest.mark.parametrize("operation", list(ASKS))
@pytest.mark.hostile("other-people")
def test_who_may_do_what(things: Things, client: InProcess, operation: str) -> None:
    """Each role gets what the table says, on each kind of object."""
    found = []
    for target in TARGETS:
        aim = Aim(things, target)
        replies = [_send(client, ASKS[operation](aim), who, aim) for who in WHO]
        found.append("".join(MEANING.get(reply.status, str(reply.status)) for reply in replies))
    assert " ".join(found) == TABLE[operation]


@pytest.mark.parametrize("operation", [name for name, row in TABLE.items() if row.split()[1].startswith("h")])
@pytest.mark.hostile("other-people")
def test_what_is_hidden_reads_as_if_it_were_not_there(
    things: Things, client: InProcess, operation: str
) -> None:
    """For a stranger, an object of another project and one that never was give the same code and words."""
    told = []
    for target in ("other", "missing"):
        aim = Aim(things, target)
        reply = _send(client, ASKS[operation](aim), "stranger", aim)
        if operation == "v3_workspaces_workspace_get" and target == "missing":
            aim = Aim(things, "own")  # no project is missing: one that the stranger may not read is as good
        text = reply.body.decode().partition(',"modelkeep"')[0]
        names = [
            *aim.experiment.values(),
            *aim.run.values(),
            aim.logged,
            aim.webhook,
            f"{aim.project}/{aim.model['name']}",
        ]
        for name in sorted((*names, aim.model["name"], aim.project), key=len, reverse=True):
            text = text.replace(name, "NAME")
        told.append((reply.status, text))
    assert told[0] == told[1]


@pytest.mark.hostile("other-people")
def test_lists_hold_only_what_may_be_read(things: Things, client: InProcess) -> None:
    """Searches are filtered in the query: another project's rows are not there, and nobody is told."""
    ids = [things.ids[project]["experiment"] for project in ("own", "other")]
    runs = [things.ids[project]["run"] for project in ("own", "other")]
    for who, seen in (("viewer", runs[:1]), ("stranger", []), ("root", runs)):
        token = things.world.tokens[who]
        found = client("POST", API + "runs/search", {"experiment_ids": ids}, token=token).json()
        assert {run["info"]["run_id"] for run in found.get("runs", ())} == set(seen), who
        models = client("POST", API + "logged-models/search", {"experiment_ids": ids}, token=token).json()
        assert len(models.get("models", ())) == len(seen), who
        query = f"run_id={runs[0]}&run_id={runs[1]}&metric_key=auc"
        points = client("GET", API + "metrics/get-history-bulk", query=query, token=token).json()
        assert {point["run_id"] for point in points.get("metrics", ())} == set(seen), who
        spaces = client("GET", "/api/3.0/mlflow/workspaces", token=token).json()["workspaces"]
        names = {"viewer": ["own"], "stranger": [], "root": ["default", "other", "own"]}
        assert [space["name"] for space in spaces] == names[who], who
