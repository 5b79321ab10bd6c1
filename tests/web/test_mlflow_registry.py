"""The registry through the MLflow door: the same requests as to MLflow's own server, and what is ours on top.

`WRITE_GOLDEN=1` with MLflow at hand asks its server anew what it answers.
"""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from modelkeep.core.events import EventKind
from modelkeep.core.values import ModelName, parse_ref
from modelkeep.service.house import House
from modelkeep.web.app import create_app
from modelkeep.web.dispatch import Dispatcher
from tests.web.inprocess import InProcess, Reply, in_process
from tests.web.mlflow_registry_table import DIFFERENCES, STEPS, WORDS, carry_out
from tests.web.world import OWN, World, context_of, fill, opened, register

pytestmark = pytest.mark.req("T4")

GOLDEN = Path(__file__).parents[1] / "golden" / "mlflow_registry.json"
API = "/api/2.0/mlflow/"
CHURN = ModelName("default", "churn")


def ask(client: InProcess, method: str, path: str, sent: Any, **more: Any) -> Reply:
    """One request of the door."""
    if method == "GET":
        return client("GET", API + path, query=urlencode(sent, doseq=True), **more)
    return client(method, API + path, sent, **more)


def done(client: InProcess, method: str, path: str, sent: Any, **more: Any) -> Any:
    """A request that is granted; its answer."""
    reply = ask(client, method, path, sent, **more)
    assert reply.status == 200, reply.body
    return reply.json()


def refused(client: InProcess, method: str, path: str, sent: Any, **more: Any) -> tuple[int, str, str]:
    """A request that is refused: status, error code and sentence."""
    reply = ask(client, method, path, sent, **more)
    document = reply.json()
    assert reply.headers["content-type"] == "application/json"
    assert "Traceback" not in document["message"]
    return reply.status, document["error_code"], document["message"]


def new_run(client: InProcess, name: str = "model", data: bytes = b"flavors: {}\n") -> str:
    """A run with one file in a folder."""
    run = done(client, "POST", "runs/create", {"experiment_id": "0"})["run"]["info"]["run_id"]
    place = f"/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts/{name}/MLmodel"
    assert client("PUT", place, raw=data).status == 200
    return str(run)


@pytest.fixture
def churn(house: House) -> ModelName:
    """A model with two versions, registered by our own door."""
    register(house, CHURN, b"first")
    register(house, CHURN, b"second")
    return CHURN


# --------------------------------------------------------------------------------------------- the same table


def test_every_answer_is_mlflows_or_a_difference_on_purpose(client: InProcess) -> None:
    """Over a hundred requests, errors included, answered as MLflow's own server answered them."""
    golden = json.loads(GOLDEN.read_text())

    def ours(method: str, path: str, sent: Any) -> tuple[int, Any]:
        reply = ask(client, method, path, sent)
        return reply.status, reply.json()

    found = carry_out(ours, new_run(client))
    assert list(golden) == [step.name for step in STEPS], "write the golden answers anew"
    for name, theirs in golden.items():
        wanted = DIFFERENCES.get(name, theirs)
        assert found[name] == wanted, name
    assert all(golden[name] != ours for name, ours in DIFFERENCES.items()), "this is a difference no more"
    told = (GOLDEN.parents[2] / "docs" / "reference" / "mlflow.md").read_text()
    assert DIFFERENCES.keys() == WORDS.keys()
    assert all(f"| `{word}` |" in told for word in WORDS.values())


def test_the_golden_answers_are_those_of_mlflow(mlflow_server: str) -> None:
    """MLflow's own server, asked now, answers as it is written down."""

    def theirs(method: str, path: str, sent: Any) -> tuple[int, Any]:
        url = mlflow_server + API + path
        data = None if method == "GET" else json.dumps(sent).encode()
        url += f"?{urlencode(sent, doseq=True)}" if method == "GET" else ""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(url, data=data, method=method, headers=headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as problem:
            return problem.code, json.loads(problem.read())

    _, made = theirs("POST", "runs/create", {"experiment_id": "0"})
    found = carry_out(theirs, made["run"]["info"]["run_id"])
    if os.environ.get("WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(GOLDEN.read_text())


# -------------------------------------------------------------------------------------- one registry, not two


def test_a_version_of_our_own_door_is_one_of_mlflows(client: InProcess, churn: ModelName) -> None:
    """It has a number, a stage, a source that is read from the registry, and what MLflow has no field for."""
    version = done(client, "GET", "model-versions/get", {"name": "churn", "version": "2"})["model_version"]
    tags = {tag["key"]: tag["value"] for tag in version["tags"]}
    assert tags.pop("modelkeep.digest").startswith("sha256:")
    assert tags == {"modelkeep.semver": "1.1.0", "modelkeep.reference": "churn:1.1.0"}
    assert version["source"] == "mlflow-artifacts:/registered-models/default/churn/2"
    assert (version["user_id"], version["status"], version["current_stage"]) == ("root", "READY", "None")


def test_a_version_of_mlflows_door_is_one_of_ours(client: InProcess, house: House) -> None:
    """It has a semver, a digest, and where it came from; equal bytes again are a new number."""
    run = new_run(client)
    done(client, "POST", "registered-models/create", {"name": "m"})
    for _ in range(2):
        sent = {"name": "m", "source": f"runs:/{run}/model", "run_id": run}
        made = done(client, "POST", "model-versions/create", sent)["model_version"]
    tags = {tag["key"]: tag["value"] for tag in made["tags"]}
    assert (made["version"], tags["modelkeep.duplicate_of"]) == ("2", "m:1.0.0")
    version = house.desk.read(context_of("root"), house.catalog.resolve, parse_ref("m:#2"))
    assert (version.semver, version.digest) == (tags["modelkeep.semver"], tags["modelkeep.digest"])
    assert version.provenance is not None
    assert version.provenance.run_id == run


def test_where_a_run_is_to_be_looked_at_is_kept(client: InProcess) -> None:
    """`run_link` is a field in MLflow; nobody sees how it is kept."""
    run = new_run(client)
    done(client, "POST", "registered-models/create", {"name": "m"})
    sent = {"name": "m", "source": f"runs:/{run}/model", "run_id": run, "run_link": "https://x/y"}
    done(client, "POST", "model-versions/create", sent)
    version = done(client, "GET", "model-versions/get", {"name": "m", "version": "1"})["model_version"]
    assert version["run_link"] == "https://x/y"
    assert "modelkeep.run_link" not in {tag["key"] for tag in version["tags"]}


@pytest.mark.parametrize("key", ["modelkeep.semver", "modelkeep.digest", "modelkeep.rollout", "modelkeep.x"])
@pytest.mark.differs("own-tags")
def test_what_is_modelkeeps_own_is_refused_on_every_way_in(
    client: InProcess, churn: ModelName, key: str
) -> None:
    """On models and versions, set, deleted, or given at birth; nothing has changed afterwards."""
    run = new_run(client)
    before = done(client, "GET", "registered-models/get", {"name": "churn"})
    one = {"key": key, "value": "9.9.9"}
    name, version = {"name": "churn"}, {"name": "churn", "version": "1"}
    for method, path, sent in (
        ("POST", "registered-models/set-tag", {**name, **one}),
        ("DELETE", "registered-models/delete-tag", {**name, "key": key}),
        ("POST", "model-versions/set-tag", {**version, **one}),
        ("DELETE", "model-versions/delete-tag", {**version, "key": key}),
        ("POST", "registered-models/create", {"name": "other", "tags": [one]}),
        ("POST", "model-versions/create", {**name, "source": f"runs:/{run}/model", "tags": [one]}),
    ):
        status, code, said = refused(client, method, path, sent)
        assert (status, code) == (400, "INVALID_PARAMETER_VALUE"), path
        assert key in said
    assert done(client, "GET", "registered-models/get", {"name": "churn"}) == before
    assert refused(client, "GET", "registered-models/get", {"name": "other"})[0] == 404


def test_a_workspace_is_a_project(client: InProcess, house: House) -> None:
    """Names of one are not seen from another."""
    register(house, OWN, b"theirs")
    own = {"x-mlflow-workspace": "own"}
    assert done(client, "GET", "registered-models/get", {"name": "churn"}, headers=own)
    assert refused(client, "GET", "registered-models/get", {"name": "churn"})[0] == 404
    assert done(client, "GET", "registered-models/search", {}) == {}
    found = done(client, "GET", "registered-models/search", {}, headers=own)
    assert [model["name"] for model in found["registered_models"]] == ["churn"]


# ---------------------------------------------------------------------------------------------- safer than it


@pytest.mark.differs("relied-on", "numbers-stay")
def test_what_is_relied_on_is_not_deleted(client: InProcess, house: House, churn: ModelName) -> None:
    """A version in a protected stage or behind a protected alias, and its model; then it goes, and its number
    is not given again."""
    production = {"name": "churn", "version": "1", "stage": "Production"}
    done(client, "POST", "model-versions/transition-stage", production)
    house.desk.do(
        context_of("root"), house.catalog.set_alias, churn, "champion", parse_ref("churn:#2"), protected=True
    )
    for version, why in (("1", "production"), ("2", "champion")):
        sent = {"name": "churn", "version": version}
        status, code, said = refused(client, "DELETE", "model-versions/delete", sent)
        assert (status, code) == (409, "RESOURCE_CONFLICT")
        assert why in said
    assert refused(client, "DELETE", "registered-models/delete", {"name": "churn"})[0] == 409
    done(client, "POST", "model-versions/transition-stage", {**production, "stage": "Archived"})
    done(client, "DELETE", "registered-models/alias", {"name": "churn", "alias": "champion"})
    done(client, "DELETE", "registered-models/delete", {"name": "churn"})
    register(house, churn, b"third")
    found = done(client, "GET", "registered-models/get", {"name": "churn"})["registered_model"]
    assert [each["version"] for each in found["latest_versions"]] == ["3"]


@pytest.fixture
def team(tmp_path: Path) -> Iterator[World]:
    """A server with users, where production asks for one other person."""
    with opened(tmp_path / "data", "token") as house:
        yield fill(house)


@pytest.mark.differs("by-policy", "approval")
def test_a_policy_speaks_through_the_client(team: World) -> None:
    """Approval is asked for, with the request's id; whoever may not, may not; the unreadable is not there."""
    headers = {"x-mlflow-workspace": "own"}
    with in_process(create_app(team.house), team.tokens["maintainer"]) as client:
        sent = {"name": "churn", "version": "3", "stage": "Production"}
        path = "model-versions/transition-stage"
        status, code, said = refused(client, "POST", path, sent, headers=headers)
        assert (status, code) == (403, "PERMISSION_DENIED")
        assert "modelkeep review req_" in said
        assert "Gates: files_verified passed" in said
        again = refused(client, "POST", path, sent, headers=headers)[2]
        assert again.split("'")[1] == said.split("'")[1], "the same request"
        viewer = {"token": team.tokens["viewer"], "headers": headers}
        assert refused(client, "POST", path, sent, **viewer)[:2] == (403, "PERMISSION_DENIED")
        stranger = {"token": team.tokens["stranger"], "headers": headers}
        hidden = refused(client, "POST", path, sent, **stranger)
        assert hidden[:2] == (404, "RESOURCE_DOES_NOT_EXIST")
        missing = refused(client, "POST", path, {**sent, "name": "nope"}, **stranger)
        assert missing[2] == hidden[2].replace("churn", "nope")


@pytest.mark.differs("traffic-first")
def test_a_rollout_is_named_where_an_endpoint_follows(
    client: InProcess, house: House, churn: ModelName
) -> None:
    """The answer of the transition and every later look at the version have its id, until it has ended."""
    house.desk.do(context_of("root"), house.rollouts.put_endpoint, "live", churn)
    sent = {"name": "churn", "version": "2", "stage": "Production"}
    begun = done(client, "POST", "model-versions/transition-stage", sent)["model_version"]
    tags = {tag["key"]: tag["value"] for tag in begun["tags"]}
    assert begun["current_stage"] == "None"
    assert tags["modelkeep.rollout"].startswith("rol_")
    later = done(client, "GET", "model-versions/get", {"name": "churn", "version": "2"})["model_version"]
    assert later["tags"] == begun["tags"]


@pytest.mark.hostile("steering-text")
def test_an_event_says_which_client_moved_a_version(
    client: InProcess, house: House, churn: ModelName
) -> None:
    """The program's name is in the reason, and nothing else that a header could say."""
    said = "evil\x07<script> mlflow-python-client/3.18.0 (x)"
    done(client, "POST", "model-versions/transition-stage", {
        "name": "churn", "version": "1", "stage": "Staging"}, headers={"user-agent": said})  # fmt: skip
    moved = house.desk.database.read(lambda tx: tx.events.after(0, kind=EventKind.STAGE_MOVED, limit=9))
    assert [stored.event.reason for stored in moved] == [
        "transition by MLflow client (mlflow-python-client/3.18.0)"
    ]


@pytest.mark.differs("moves-there-are")
def test_production_is_left_for_where_a_trace_stays(client: InProcess, churn: ModelName) -> None:
    """From production to no stage leads no way, and the refusal says where one does."""
    path, sent = "model-versions/transition-stage", {"name": "churn", "version": "1"}
    done(client, "POST", path, {**sent, "stage": "Production"})
    status, code, said = refused(client, "POST", path, {**sent, "stage": "None"})
    assert (status, code) == (400, "INVALID_PARAMETER_VALUE")
    assert "archived" in said
    assert "staging" in said
    done(client, "POST", path, {**sent, "stage": "Archived"})
    done(client, "POST", path, {**sent, "stage": "None"})


@pytest.mark.differs("newest-first")
def test_versions_come_as_they_were_registered(client: InProcess, churn: ModelName) -> None:
    """Without an order the last registered stands first, whatever has changed since."""
    done(client, "PATCH", "model-versions/update", {"name": "churn", "version": "1", "description": "d"})
    found = done(client, "GET", "model-versions/search", {"filter": "name='churn'"})
    assert [each["version"] for each in found["model_versions"]] == ["2", "1"]


# ---------------------------------------------------------------------------------------------- hostile input

LONG = "x" * 200_000
BAD_NAMES = (
    "",
    " ",
    "a/b",
    "../x",
    "a\x00b",
    "a\nb",
    "é",
    "\u202eabc",
    "a%2fb",
    LONG[:129],
    "<b>",
    "a'b",
    "..",
    "\\",
)
BAD_VERSIONS = ("", "0x1", "-1", "1e3", "١", "9" * 40, "1;drop", "latest", "1.0.0.0", "\x00", LONG[:5_000])
BAD_SOURCES = (
    "file:///etc/passwd", "/etc/passwd", "C:\\x", "http://169.254.169.254/latest", "s3://bucket/x", "dbfs:/x",
    "ftp://host/x", "runs:/../x", "runs:/{run}/..", "runs:/{run}/%2e%2e/x", "runs://host/{run}/model",
    "mlflow-artifacts:/0/{run}/artifacts/../../x", "mlflow-artifacts://evil/0/{run}/artifacts/model",
    "mlflow-artifacts:/0/{run}/artifacts/model\x00", "models:/m/1/../2", "models://host/m/1", "models:/",
    "mlflow-artifacts:/1/{run}/artifacts/model", "runs:/{run}/nothing", "runs:/0123/model", LONG[:3_000], "?",
)  # fmt: skip


@pytest.mark.req("G10")
@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.hostile("look-alikes")
@pytest.mark.differs("names-of-models")
def test_names_that_are_none(client: InProcess, name: str) -> None:
    """Refused at every place a name is given, never with a 500, and nothing is made."""
    for method, path, sent in (
        ("POST", "registered-models/create", {"name": name}),
        ("GET", "registered-models/get", {"name": name}),
        ("DELETE", "registered-models/delete", {"name": name}),
        ("GET", "model-versions/get", {"name": name, "version": "1"}),
        ("POST", "registered-models/get-latest-versions", {"name": name}),
    ):
        status, code, _ = refused(client, method, path, sent)
        assert (status, code) == (400, "INVALID_PARAMETER_VALUE"), path
    assert done(client, "GET", "registered-models/search", {}) == {}


@pytest.mark.parametrize("version", BAD_VERSIONS)
@pytest.mark.hostile("numbers")
def test_versions_that_are_none(client: InProcess, churn: ModelName, version: str) -> None:
    """No number is read out of them."""
    for method, path in (
        ("GET", "model-versions/get"),
        ("GET", "model-versions/get-download-uri"),
        ("DELETE", "model-versions/delete"),
    ):
        status, code, _ = refused(client, method, path, {"name": "churn", "version": version})
        assert (status, code) == (400, "INVALID_PARAMETER_VALUE"), path


@pytest.mark.req("G10")
@pytest.mark.parametrize("source", BAD_SOURCES)
@pytest.mark.hostile("other-places")
@pytest.mark.differs("files-first", "sources-of-this-server")
def test_sources_that_lead_elsewhere(client: InProcess, source: str) -> None:
    """Local files, other hosts, metadata addresses, paths with tricks: refused, and no number is used up."""
    run = new_run(client)
    done(client, "POST", "registered-models/create", {"name": "m"})
    sent = {"name": "m", "source": source.replace("{run}", run), "run_id": run}
    status, code, _ = refused(client, "POST", "model-versions/create", sent)
    assert (status, code) in ((400, "INVALID_PARAMETER_VALUE"), (404, "RESOURCE_DOES_NOT_EXIST"))
    good = {"name": "m", "source": f"runs:/{run}/model", "run_id": run}
    assert done(client, "POST", "model-versions/create", good)["model_version"]["version"] == "1"


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("registered-models/create", {"name": "a", "tags": [{"key": "k" * 251, "value": "v"}]}),
        ("registered-models/create", {"name": "a", "tags": [{"key": "k", "value": LONG}]}),
        ("registered-models/create", {"name": "a", "description": LONG}),
        ("registered-models/create", {"name": "a", "description": "\u202e"}),
        ("registered-models/create", {"name": "a", "tags": [{"key": f"k{n}"} for n in range(500)]}),
        ("registered-models/create", {"name": "a", "tags": {"k": "v"}}),
        ("registered-models/create", {"name": "a", "tags": [["k", "v"]]}),
        ("registered-models/create", {"name": "a", "tags": [{"key": "k", "value": 5}]}),
        ("registered-models/create", {"name": "a", "unknown": 1}),
        ("registered-models/create", {"name": True}),
        ("registered-models/create", {"name": None}),
        ("registered-models/get-latest-versions", {"name": "churn", "stages": "Production"}),
        ("registered-models/get-latest-versions", {"name": "churn", "stages": ["Production' or 1=1"]}),
        ("registered-models/get-latest-versions", {"name": "churn", "stages": [">" * 5_000]}),
        ("model-versions/transition-stage", {"name": "churn", "version": "1", "stage": ""}),
        ("model-versions/transition-stage", {"name": "churn", "version": 1, "stage": "Staging"}),
        ("model-versions/transition-stage", {
            "name": "churn", "version": "1", "stage": "Staging", "archive_existing_versions": "yes"}),
        ("registered-models/alias", {"name": "churn", "alias": "a" * 300, "version": "1"}),
        ("registered-models/alias", {"name": "churn", "alias": "../x", "version": "1"}),
    ],
)  # fmt: skip
@pytest.mark.hostile("wrong-kinds")
def test_values_that_do_not_fit(client: InProcess, churn: ModelName, path: str, sent: Any) -> None:
    """Too long, of another kind, unknown, or made to explode: one sentence, and nothing has changed."""
    before = done(client, "GET", "registered-models/search", {})
    status, code, said = refused(client, "POST", path, sent)
    assert (status, code) == (400, "INVALID_PARAMETER_VALUE")
    assert len(said) < 1_000
    assert done(client, "GET", "registered-models/search", {}) == before


@pytest.mark.hostile("document-bombs")
def test_bodies_that_are_no_requests(client: InProcess) -> None:
    """Not JSON, a key twice, nested too deep, a list."""
    path = API + "registered-models/create"
    headers = {"content-type": "application/json"}
    for raw in (
        b"{",
        b"[]",
        b'{"name": "a", "name": "b"}',
        b'{"name":' + b"[" * 5_000,
        b'"x"',
        b"\xff\xfe",
        b"1",
    ):
        reply = client("POST", path, raw=raw, headers=headers)
        assert reply.status == 400, raw[:40]
        assert reply.json()["error_code"] == "INVALID_PARAMETER_VALUE"
    assert done(client, "GET", "registered-models/search", {}) == {}


def test_one_models_versions_are_listed_where_the_store_does_not_wait(
    client: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search for some versions of one model takes no thread of those for long reads; any other does."""
    looked: list[str] = []
    look = Dispatcher.look

    async def seen(self: Dispatcher, work: Any) -> Any:
        looked.append("look")
        return await look(self, work)

    monkeypatch.setattr(Dispatcher, "look", seen)
    for text, most, looks in (
        ("name='churn'", 200, 0),
        ("name='churn'", 201, 1),
        ("name LIKE 'churn'", 100, 2),
        ("run_id = 'churn'", 100, 3),
    ):
        assert done(client, "GET", "model-versions/search", {"filter": text, "max_results": most}) == {}
        assert len(looked) == looks, text
