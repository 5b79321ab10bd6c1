"""Webhooks through MLflow's real client: the same script against ours and against MLflow's own server, and
what a receiver was told by each.

MLflow's own server sends without an order and not at all over a restart; what is compared is what it says.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from modelkeep.core import webhooks
from tests.mlflow_client import MlflowClient, clean_environment, run_mlflow_server
from tests.receivers import OK, Taken, answering, receiving
from tests.web.processes import Server

pytestmark = [pytest.mark.journey, pytest.mark.req("T4", "G16")]

SETTINGS = ("env", "MODELKEEP_WEBHOOK_HTTP=true", "MODELKEEP_WEBHOOK_ALLOW=127.0.0.0/8")
OPENED = {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}
SECRET = "a word that both know"
PATIENCE_S = 60.0

SCRIPT = """
import json, sys
import mlflow
from mlflow import MlflowClient
from mlflow.entities.webhook import WebhookEvent, WebhookStatus
from mlflow.exceptions import MlflowException

url, secret = sys.argv[1:]
client = MlflowClient()
words = ["registered_model.created", "model_version.created", "model_version_tag.set",
         "model_version_tag.deleted", "model_version_alias.created", "model_version_alias.deleted"]
hook = client.create_webhook(name="ci", url=url, events=words, description="for CI", secret=secret)
assert hook.status == WebhookStatus.ACTIVE and hook.secret is None and hook.description == "for CI"
assert {str(event) for event in hook.events} == set(words)
assert client.get_webhook(hook.webhook_id).url == url
assert [one.webhook_id for one in client.list_webhooks()] == [hook.webhook_id]
changed = client.update_webhook(hook.webhook_id, description="new", name="ci-2")
assert (changed.name, changed.description, changed.url) == ("ci-2", "new", url)
tried = client.test_webhook(hook.webhook_id, event=WebhookEvent.from_str("model_version_tag.set"))
assert tried.success and tried.response_status == 204, tried
off = client.update_webhook(hook.webhook_id, status=WebhookStatus.DISABLED)
assert off.status == WebhookStatus.DISABLED
client.update_webhook(hook.webhook_id, status="ACTIVE" and WebhookStatus.ACTIVE)

client.create_registered_model("churn", tags={"team": "risk"}, description="who leaves")
with mlflow.start_run() as run:
    mlflow.log_text("weights", "model/model.bin")
made = client.create_model_version("churn", f"runs:/{run.info.run_id}/model", run.info.run_id,
                                   tags={"a": "b"}, description="first")
client.set_model_version_tag("churn", made.version, "stage", "checked")
client.delete_model_version_tag("churn", made.version, "stage")
client.set_registered_model_alias("churn", "champion", made.version)
client.delete_registered_model_alias("churn", "champion")

other = client.create_webhook(name="gone", url=url, events=["prompt.created"])
client.delete_webhook(other.webhook_id)

def refused(call, *args, **more):
    try:
        call(*args, **more)
    except MlflowException as problem:
        return problem.error_code
    return "nothing refused it"

print(json.dumps({
    "run": run.info.run_id,
    "refused": [
        refused(client.get_webhook, other.webhook_id),
        refused(client.delete_webhook, "none"),
        refused(client.create_webhook, name="a b", url=url, events=["prompt.created"]),
        refused(client.create_webhook, name="x", url="ftp://127.0.0.1/", events=["prompt.created"]),
        refused(client.create_webhook, name="x", url="", events=["prompt.created"]),
        refused(client.create_webhook, name="x" * 64, url=url, events=["prompt.created"]),
        refused(client.list_webhooks, max_results=5000),
    ],
}))
"""


def carried_out(client: MlflowClient, address: str, tmp_path: Path) -> tuple[dict[str, Any], list[Taken]]:
    """Run the script against a server; what it printed, and what the receiver was told by the end."""
    taken: list[Taken] = []
    tmp_path.mkdir()
    with receiving(answering(OK, taken)) as receiver:
        url = f"http://127.0.0.1:{receiver.port}/in"
        said = json.loads(client.run(SCRIPT, address, url, SECRET, folder=tmp_path).splitlines()[-1])
        deadline = time.monotonic() + PATIENCE_S
        while len(taken) < 7 and time.monotonic() < deadline:
            time.sleep(0.05)
    return said, taken


def told(said: dict[str, Any], taken: list[Taken]) -> list[tuple[str, dict[str, Any]]]:
    """What the messages say, without times and ids."""
    found = []
    for message in taken:
        document = message.json()
        assert set(document) == {"entity", "action", "timestamp", "data"}
        text = json.dumps(document["data"]).replace(said["run"], "RUN")
        found.append((f"{document['entity']}.{document['action']}", json.loads(text)))
    return found


@contextmanager
def ours(folder: Path) -> Iterator[str]:
    """A server that may deliver to this machine."""
    server = Server(folder, before=SETTINGS).ready()
    try:
        yield server.url
    finally:
        server.stop()


@pytest.mark.long
def test_the_real_client_makes_webhooks(mlflow_client: MlflowClient, tmp_path: Path) -> None:
    """Make, read, change, try, disable, delete; what happens is told in MLflow's words, in order, signed as
    it signs; what is wrong is refused under its codes."""
    with ours(tmp_path / "data") as address:
        said, taken = carried_out(mlflow_client, address, tmp_path / "client")
    assert said["refused"][:2] == ["RESOURCE_DOES_NOT_EXIST"] * 2
    assert set(said["refused"][2:]) == {"INVALID_PARAMETER_VALUE"}
    trial, *rest = taken
    assert trial.json()["data"]["key"] == "example_key"
    version = {"name": "churn", "version": "1"}
    assert told(said, rest) == [
        (
            "registered_model.created",
            {"name": "churn", "tags": {"team": "risk"}, "description": "who leaves"},
        ),
        (
            "model_version.created",
            {
                **version,
                "source": "runs:/RUN/model",
                "run_id": "RUN",
                "tags": {"a": "b"},
                "description": "first",
            },
        ),
        ("model_version_tag.set", {**version, "key": "stage", "value": "checked"}),
        ("model_version_tag.deleted", {**version, "key": "stage"}),
        ("model_version_alias.created", {**version, "alias": "champion"}),
        ("model_version_alias.deleted", {"name": "churn", "alias": "champion"}),
    ]
    for message in taken:
        delivery, stamp = message.headers["x-mlflow-delivery-id"], int(message.headers["x-mlflow-timestamp"])
        expected = webhooks.sign(SECRET.encode(), delivery, stamp, message.body)
        assert message.headers["x-mlflow-signature"] == message.headers["webhook-signature"] == expected


@pytest.mark.long
def test_mlflow_s_own_server_says_the_same(
    mlflow_client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same script against both: the same refusals, and the same messages but for their order."""
    with ours(tmp_path / "data") as address:
        said, taken = carried_out(mlflow_client, address, tmp_path / "client")
    monkeypatch.setattr(
        "tests.mlflow_client.clean_environment", lambda **more: clean_environment(**OPENED, **more)
    )
    with run_mlflow_server(tmp_path / "mlflow") as address:
        theirs, told_by_them = carried_out(mlflow_client, address, tmp_path / "other")
    assert said["refused"] == theirs["refused"]
    mine, others = told(said, taken[1:]), told(theirs, told_by_them[1:])
    for _, data in others:
        if "source" in data:  # where artifacts lie is each server's own
            data["source"] = "runs:/RUN/model"
    assert sorted(mine, key=str) == sorted(others, key=str)
    assert os.path.basename(taken[0].url) == os.path.basename(told_by_them[0].url)
