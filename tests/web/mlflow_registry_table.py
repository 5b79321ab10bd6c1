"""The table of registry requests that MLflow's server and ours are both asked, and how answers are compared.

What a run id is, when something happened and how a sentence is worded differ from day to day or from server
to server, and are masked. Every other difference stands in `DIFFERENCES`, with its reason; the same list is
in `docs/reference/mlflow.md`.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

Ask = Callable[[str, str, Any], tuple[int, Any]]
"""One request: method, path under `/api/2.0/mlflow/`, query (GET) or body; its status and its document."""


class Step(NamedTuple):
    """One request of the table, in its place: what stands before it has been done."""

    name: str
    method: str
    path: str
    sent: dict[str, Any]


SOURCE = "runs:/{run}/model"
ROOT = "mlflow-artifacts:/0/{run}/artifacts/model"

# fmt: off
_TABLE: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("create", "POST", "registered-models/create", {"name": "m"}),
    ("create again", "POST", "registered-models/create", {"name": "m"}),
    ("create with labels", "POST", "registered-models/create", {"name": "m2", "description": "hi", "tags": [
        {"key": "a", "value": "b"}, {"key": "a", "value": "c"}, {"key": "n"}]}),
    ("create with a free name", "POST", "registered-models/create", {"name": "My Model (v2)"}),
    ("create with a slash", "POST", "registered-models/create", {"name": "a/b"}),
    ("create with a colon", "POST", "registered-models/create", {"name": "a:b"}),
    ("create blank", "POST", "registered-models/create", {"name": "  "}),
    ("create dots", "POST", "registered-models/create", {"name": ".."}),
    ("create by a number", "POST", "registered-models/create", {"name": 5}),
    ("create nothing", "POST", "registered-models/create", {}),
    ("get", "GET", "registered-models/get", {"name": "m"}),
    ("get labels", "GET", "registered-models/get", {"name": "m2"}),
    ("get a missing one", "GET", "registered-models/get", {"name": "nope"}),
    ("get nothing", "GET", "registered-models/get", {}),
    ("describe", "PATCH", "registered-models/update", {"name": "m", "description": "d"}),
    ("describe no more", "PATCH", "registered-models/update", {"name": "m"}),
    ("describe a missing one", "PATCH", "registered-models/update", {"name": "zz", "description": "d"}),
    ("tag", "POST", "registered-models/set-tag", {"name": "m", "key": "k", "value": "v"}),
    ("tag without a value", "POST", "registered-models/set-tag", {"name": "m", "key": "e"}),
    ("tag without a key", "POST", "registered-models/set-tag", {"name": "m", "value": "v"}),
    ("tag with an empty key", "POST", "registered-models/set-tag", {"name": "m", "key": "", "value": "v"}),
    ("tag a missing one", "POST", "registered-models/set-tag", {"name": "nope", "key": "k", "value": "v"}),
    ("untag", "DELETE", "registered-models/delete-tag", {"name": "m", "key": "k"}),
    ("untag what is not there", "DELETE", "registered-models/delete-tag", {"name": "m", "key": "k"}),
    ("untag a missing one", "DELETE", "registered-models/delete-tag", {"name": "nope", "key": "k"}),
    ("register", "POST", "model-versions/create", {"name": "m", "source": ROOT, "run_id": "{run}"}),
    ("register with labels", "POST", "model-versions/create", {
        "name": "m", "source": SOURCE, "run_id": "{run}", "description": "x", "run_link": "http://x/y",
        "tags": [{"key": "a", "value": "1"}]}),
    ("register for a missing model", "POST", "model-versions/create", {
        "name": "nope", "source": SOURCE, "run_id": "{run}"}),
    ("register a local file", "POST", "model-versions/create", {
        "name": "m", "source": "/etc/passwd", "run_id": "{run}"}),
    ("register a file address", "POST", "model-versions/create", {
        "name": "m", "source": "file:///etc", "run_id": "{run}"}),
    ("register dots", "POST", "model-versions/create", {
        "name": "m", "source": ROOT + "/../../secret", "run_id": "{run}"}),
    ("register nothing", "POST", "model-versions/create", {"name": "m"}),
    ("copy", "POST", "model-versions/create", {"name": "m", "source": "models:/m/1"}),
    ("copy what is not there", "POST", "model-versions/create", {"name": "m", "source": "models:/m/99"}),
    ("get a version", "GET", "model-versions/get", {"name": "m", "version": "2"}),
    ("get a missing version", "GET", "model-versions/get", {"name": "m", "version": "99"}),
    ("get no number", "GET", "model-versions/get", {"name": "m", "version": "abc"}),
    ("get without a version", "GET", "model-versions/get", {"name": "m"}),
    ("get of a missing model", "GET", "model-versions/get", {"name": "nope", "version": "1"}),
    ("describe a version", "PATCH", "model-versions/update", {
        "name": "m", "version": "1", "description": "dd"}),
    ("describe a missing version", "PATCH", "model-versions/update", {
        "name": "m", "version": "77", "description": "dd"}),
    ("tag a version", "POST", "model-versions/set-tag", {
        "name": "m", "version": "1", "key": "k", "value": "v"}),
    ("tag a missing version", "POST", "model-versions/set-tag", {
        "name": "m", "version": "77", "key": "k", "value": "v"}),
    ("tag no version", "POST", "model-versions/set-tag", {"name": "m", "key": "k", "value": "v"}),
    ("untag a version", "DELETE", "model-versions/delete-tag", {"name": "m", "version": "1", "key": "zz"}),
    ("to staging", "POST", "model-versions/transition-stage", {
        "name": "m", "version": "1", "stage": "staging", "archive_existing_versions": False}),
    ("to staging again", "POST", "model-versions/transition-stage", {
        "name": "m", "version": "1", "stage": "Staging"}),
    ("to staging with the flag", "POST", "model-versions/transition-stage", {
        "name": "m", "version": "2", "stage": "Staging", "archive_existing_versions": True}),
    ("to archived with the flag", "POST", "model-versions/transition-stage", {
        "name": "m", "version": "2", "stage": "Archived", "archive_existing_versions": True}),
    ("to no stage", "POST", "model-versions/transition-stage", {
        "name": "m", "version": "2", "stage": "Foo"}),
    ("a flag that is a text", "POST", "model-versions/transition-stage", {
        "name": "m", "version": "2", "stage": "Production", "archive_existing_versions": "false"}),
    ("a missing version to production", "POST", "model-versions/transition-stage", {
        "name": "m", "version": "77", "stage": "Production"}),
    ("to production", "POST", "model-versions/transition-stage", {
        "name": "m", "version": "1", "stage": "Production", "archive_existing_versions": True}),
    ("set alias", "POST", "registered-models/alias", {"name": "m", "alias": "champion", "version": "2"}),
    ("set alias v2", "POST", "registered-models/alias", {"name": "m", "alias": "v2", "version": "2"}),
    ("set alias latest", "POST", "registered-models/alias", {
        "name": "m", "alias": "Latest", "version": "2"}),
    ("set alias with a space", "POST", "registered-models/alias", {
        "name": "m", "alias": "a b", "version": "2"}),
    ("set alias without a name", "POST", "registered-models/alias", {
        "name": "m", "alias": "", "version": "2"}),
    ("set alias to nothing", "POST", "registered-models/alias", {
        "name": "m", "alias": "champion", "version": "77"}),
    ("set alias of a missing model", "POST", "registered-models/alias", {
        "name": "nope", "alias": "champion", "version": "1"}),
    ("get by alias", "GET", "registered-models/alias", {"name": "m", "alias": "champion"}),
    ("get by a missing alias", "GET", "registered-models/alias", {"name": "m", "alias": "nope"}),
    ("get by latest", "GET", "registered-models/alias", {"name": "m", "alias": "latest"}),
    ("get by latest of a missing model", "GET", "registered-models/alias", {
        "name": "nope", "alias": "latest"}),
    ("get all", "GET", "registered-models/get", {"name": "m"}),
    ("latest", "POST", "registered-models/get-latest-versions", {"name": "m"}),
    ("latest of stages", "POST", "registered-models/get-latest-versions", {
        "name": "m", "stages": ["Production", "staging"]}),
    ("latest by GET", "GET", "registered-models/get-latest-versions", {
        "name": "m", "stages": ["Production", "None"]}),
    ("latest of no stage", "POST", "registered-models/get-latest-versions", {
        "name": "m", "stages": ["Foo"]}),
    ("latest of a missing model", "POST", "registered-models/get-latest-versions", {"name": "nope"}),
    ("latest by a semver", "POST", "registered-models/get-latest-versions", {
        "name": "m", "stages": ["1.0.0"]}),
    ("download uri", "GET", "model-versions/get-download-uri", {"name": "m", "version": "1"}),
    ("download uri of a missing one", "GET", "model-versions/get-download-uri", {
        "name": "m", "version": "99"}),
    ("download uri of nothing", "GET", "model-versions/get-download-uri", {"name": "m"}),
    ("search versions", "GET", "model-versions/search", {
        "filter": "name='m'", "order_by": ["version_number DESC"]}),
    ("search a page of versions", "GET", "model-versions/search", {
        "filter": "name='m'", "order_by": ["version_number DESC"], "max_results": 2}),
    ("search versions of a run", "GET", "model-versions/search", {
        "filter": "run_id='{run}'", "order_by": ["version_number ASC"]}),
    ("search versions by tag", "GET", "model-versions/search", {"filter": "tags.a = '1'"}),
    ("search nothing", "GET", "model-versions/search", {"filter": "name='zz'"}),
    ("search for none", "GET", "model-versions/search", {"max_results": 0}),
    ("search for too many", "GET", "model-versions/search", {"max_results": 200_001}),
    ("search by a made-up token", "GET", "model-versions/search", {"page_token": "abc"}),
    ("search by a broken filter", "GET", "model-versions/search", {"filter": "name ~ 'm'"}),
    ("search models", "GET", "registered-models/search", {}),
    ("search models by name", "GET", "registered-models/search", {
        "filter": "name LIKE 'm%'", "order_by": ["name DESC"]}),
    ("search models by tag", "GET", "registered-models/search", {"filter": "tags.a = 'c'"}),
    ("search too many models", "GET", "registered-models/search", {"max_results": 1_001}),
    ("delete alias", "DELETE", "registered-models/alias", {"name": "m", "alias": "champion"}),
    ("delete alias again", "DELETE", "registered-models/alias", {"name": "m", "alias": "champion"}),
    ("delete alias of a missing model", "DELETE", "registered-models/alias", {
        "name": "nope", "alias": "champion"}),
    ("delete a version", "DELETE", "model-versions/delete", {"name": "m", "version": "3"}),
    ("delete it again", "DELETE", "model-versions/delete", {"name": "m", "version": "3"}),
    ("delete of a missing model", "DELETE", "model-versions/delete", {"name": "nope", "version": "2"}),
    ("register after a deletion", "POST", "model-versions/create", {
        "name": "m", "source": SOURCE, "run_id": "{run}"}),
    ("rename", "POST", "registered-models/rename", {"name": "m2", "new_name": "m3"}),
    ("rename to what is taken", "POST", "registered-models/rename", {"name": "m3", "new_name": "m"}),
    ("rename to nothing", "POST", "registered-models/rename", {"name": "m3", "new_name": ""}),
    ("rename without a name", "POST", "registered-models/rename", {"name": "m3"}),
    ("rename a missing one", "POST", "registered-models/rename", {"name": "nope", "new_name": "x"}),
    ("get by the old name", "GET", "registered-models/get", {"name": "m2"}),
    ("out of production", "POST", "model-versions/transition-stage", {
        "name": "m", "version": "1", "stage": "Archived"}),
    ("delete a model", "DELETE", "registered-models/delete", {"name": "m"}),
    ("delete a model again", "DELETE", "registered-models/delete", {"name": "m"}),
    ("get a deleted model", "GET", "registered-models/get", {"name": "m"}),
    ("get a version of it", "GET", "model-versions/get", {"name": "m", "version": "1"}),
    ("register without the run", "POST", "model-versions/create", {"name": "m3", "source": SOURCE}),
)
# fmt: on
STEPS: tuple[Step, ...] = tuple(Step(*row) for row in _TABLE)

DIFFERENCES: dict[str, Any] = {
    "to archived with the flag": [400, "INVALID_PARAMETER_VALUE"],
    "download uri": [200, {"artifact_uri": "mlflow-artifacts:/registered-models/default/m/1"}],
    "register without the run": [200, {"model_version": {
        "name": "m3", "version": "1", "current_stage": "None", "description": "", "source": SOURCE,
        "run_id": "{run}", "status": "READY", "run_link": "",
    }}],
    "latest by a semver": [200, {"model_versions": [{
        "name": "m", "version": "1", "current_stage": "Production", "description": "dd", "source": ROOT,
        "run_id": "{run}", "status": "READY", "tags": [{"key": "k", "value": "v"}], "run_link": "",
    }]}],
}  # fmt: skip
"""Where ours answers otherwise on purpose, and what it answers."""
WORDS = {
    "to archived with the flag": "flag-in-vain",
    "download uri": "read-from-the-registry",
    "register without the run": "run-in-the-source",
    "latest by a semver": "semver-too",
}
"""The word by which the documentation tells each of these, with the reason."""


def carry_out(ask: Ask, run: str) -> dict[str, Any]:
    """Ask for everything in the table's order; the masked answers by their step's name."""
    found: dict[str, Any] = {}
    for step in STEPS:
        sent = json.loads(json.dumps(step.sent).replace("{run}", run))
        status, document = ask(step.method, step.path, sent)
        found[step.name] = [status, masked(document, run)]
    return found


def masked(document: Any, run: str) -> Any:
    """An answer without what differs from day to day, and without what is ours alone."""
    if isinstance(document, list):
        return [masked(each, run) for each in document]
    if not isinstance(document, dict):
        return document.replace(run, "{run}") if isinstance(document, str) else document
    if "error_code" in document:
        return document["error_code"]
    found: dict[str, Any] = {}
    for key, value in document.items():
        match key:
            case "creation_timestamp" | "last_updated_timestamp":
                assert isinstance(value, int)
                assert value > 1_600_000_000_000
            case "next_page_token":
                assert isinstance(value, str)
                found[key] = "a token"
            case "user_id":
                pass
            case "tags":
                kept = [each for each in value if not each["key"].startswith("modelkeep.")]
                if kept:
                    found[key] = masked(sorted(kept, key=lambda each: str(each["key"])), run)
            case "latest_versions" | "model_versions":
                # MLflow leaves their aliases out here and there, and gives the latest in any order.
                plain = [{k: v for k, v in each.items() if k != "aliases"} for each in value]
                if key == "latest_versions":
                    plain.sort(key=lambda each: int(each["version"]))
                found[key] = masked(plain, run)
            case _:
                found[key] = masked(value, run)
    return found
