"""Writes under an Idempotency-Key: said twice, done once, and never somebody else's answer."""

import threading
from pathlib import Path
from typing import Any

import pytest

from modelkeep.core import codec
from modelkeep.core.catalog import DraftSpec
from modelkeep.core.values import ModelName
from modelkeep.service.act import SYSTEM_CONTEXT
from modelkeep.service.house import House
from modelkeep.web.app import OPERATIONS, create_app
from modelkeep.web.operations import Mode
from tests.web.asks import ASKS, POLICY, V1, Aim
from tests.web.inprocess import InProcess, in_process
from tests.web.world import SIGNATURE, digest_of, entry_of, fill, opened, register

pytestmark = pytest.mark.req("U4")

CHURN = ModelName("default", "churn")
KEY = {"idempotency-key": "key-1"}
WITH_SECRETS = {"create_token", "create_webhook", "rotate_webhook"}
"""Writes whose answer holds a secret, which is shown once."""
WRITES = [row.name for row in OPERATIONS if row.mode is Mode.WRITE]


def events_of(house: House) -> int:
    """How many events there are."""
    return house.desk.read(SYSTEM_CONTEXT, lambda act: len(act.tx.events.after(0, limit=1_000)))


@pytest.mark.parametrize("operation", WRITES)
def test_every_write_is_done_once(tmp_path: Path, operation: str) -> None:
    """The same request under the same key gives the same answer, and leaves no second event."""
    with opened(tmp_path, "token") as house:
        world = fill(house)
        who = "gateway" if operation == "gateway_report" else "root"
        with in_process(create_app(house), world.tokens[who]) as client:
            if operation == "finalize_draft":
                ASKS["upload_file"](Aim(world, "own", who)).send(client)
            ask = ASKS[operation](Aim(world, "own", who))
            first = ask.send(client, headers=KEY)
            between = events_of(house)
            second = ask.send(client, headers=KEY)
            if operation in WITH_SECRETS:
                assert (second.status, second.code) == (409, "CONFLICT"), "a secret is shown once"
                assert first.json()["secret"] not in second.body.decode()
            elif first.status < 300:
                assert (second.status, second.body) == (first.status, first.body)
            else:
                assert (second.status, second.code) == (first.status, first.code)
            assert events_of(house) == between


@pytest.mark.req("V3")
def test_an_error_that_passes_is_not_remembered(house: House, client: InProcess) -> None:
    """Bytes that were lost before finalizing are sent again, and then the same request succeeds."""
    data = b"weights"
    spec = DraftSpec(files=(entry_of("model.bin", data),), signature=SIGNATURE)
    draft = client("POST", f"{V1}/models/default/churn/drafts", codec.builtins(spec)).json()["id"]
    send = {"raw": data, "query": {"path": "model.bin"}}
    assert client("PUT", f"{V1}/drafts/{draft}/file", **send).status == 200
    house.blobs.delete(digest_of(data))

    lost = client("POST", f"{V1}/drafts/{draft}/finalize", headers=KEY)
    assert (lost.status, lost.code) == (409, "CONFLICT")
    assert client("PUT", f"{V1}/drafts/{draft}/file", **send).status == 200
    made = client("POST", f"{V1}/drafts/{draft}/finalize", headers=KEY)
    assert made.status == 200
    assert client("POST", f"{V1}/drafts/{draft}/finalize", headers=KEY).body == made.body


def test_another_request_under_the_same_key(house: House, client: InProcess) -> None:
    """A key stands for one request; another body, address or query under it is refused."""
    assert client("POST", f"{V1}/models", {"name": "churn"}, headers=KEY).status == 201
    for method, path, body in (
        ("POST", f"{V1}/models", {"name": "other"}),
        ("PATCH", f"{V1}/models/default/churn", {"description": "x"}),
        ("DELETE", f"{V1}/models/default/churn", None),
    ):
        reply = client(method, path, body, headers=KEY)
        assert (reply.status, reply.code) == (409, "IDEMPOTENCY_MISMATCH")
    assert client("GET", f"{V1}/models/default/churn").status == 200


def test_a_key_is_its_callers_own(tmp_path: Path) -> None:
    """Under somebody else's key there is nothing to be learned, and nothing in the way."""
    with opened(tmp_path, "token") as house:
        world = fill(house)
        with in_process(create_app(house)) as client:
            body = {"project": "own", "name": "mine", "description": "not for others"}
            assert (
                client("POST", f"{V1}/models", body, headers=KEY, token=world.tokens["maintainer"]).status
                == 201
            )
            reply = client("POST", f"{V1}/models", body, headers=KEY, token=world.tokens["stranger"])
            assert (reply.status, reply.code) == (403, "NOT_ALLOWED")
            twin = client("POST", f"{V1}/models", body, headers=KEY, token=world.tokens["root"])
            assert (twin.status, twin.code) == (409, "MODEL_EXISTS")


def test_a_narrower_token_learns_nothing_from_a_key(tmp_path: Path) -> None:
    """A person's second token, which may not write, does not get the answer of the first."""
    with opened(tmp_path, "token") as house:
        world = fill(house)
        with in_process(create_app(house), world.tokens["maintainer"]) as client:
            made = client("POST", f"{V1}/tokens", {"label": "narrow", "verbs": ["pull"]}).json()
            body = {"project": "own", "name": "mine"}
            assert client("POST", f"{V1}/models", body, headers=KEY).status == 201
            reply = client("POST", f"{V1}/models", body, headers=KEY, token=made["secret"])
            assert reply.code == "IDEMPOTENCY_MISMATCH"


def test_a_refused_promotion_is_recorded_once(house: House, client: InProcess) -> None:
    """An error that left a trace is an answer too: said again under its key, it leaves no second trace."""
    register(house, CHURN, b"one", signature=None)
    gates = b"""
        schema: modelkeep.policy/v1
        name: strict
        stages: {staging: {gates: [{gate: signature}]}}
    """
    assert client("PUT", f"{V1}/policy", raw=gates).status == 200
    ask: dict[str, Any] = {"ref": "churn:1.0.0", "to": "staging", "reason": "try"}
    first = client("POST", f"{V1}/promotions", ask, headers=KEY)
    assert (first.status, first.code) == (403, "POLICY_DENIED")
    between = events_of(house)
    second = client("POST", f"{V1}/promotions", ask, headers=KEY)
    assert (second.code, second.json()["details"]) == (first.code, first.json()["details"])
    assert events_of(house) == between
    client("POST", f"{V1}/promotions", ask)
    assert events_of(house) == between + 1


def test_an_answer_outlives_what_it_was_about(house: House, client: InProcess) -> None:
    """A promotion said again after its version was deleted is still the promotion that was done."""
    register(house, CHURN, b"one")
    register(house, CHURN, b"two")
    ask = {"ref": "churn:1.1.0", "to": "staging", "reason": "try"}
    first = client("POST", f"{V1}/promotions", ask, headers=KEY)
    assert first.status == 201
    assert client("DELETE", f"{V1}/version", query={"ref": "churn:1.1.0"}).status == 200
    assert client("POST", f"{V1}/promotions", ask, headers=KEY).body == first.body


def test_the_same_write_at_once(house: House, client: InProcess) -> None:
    """Sent by sixteen at the same moment under one key, a write is done once and answered sixteen times."""
    replies: list[bytes] = []

    def send() -> None:
        replies.append(client("PUT", f"{V1}/policy", raw=POLICY, headers=KEY).body)

    threads = [threading.Thread(target=send) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(replies) == 16
    assert len(set(replies)) == 1
    assert events_of(house) == 1
