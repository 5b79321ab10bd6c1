"""Webhooks on the command line: what is sent for each command, and how answers read."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from modelkeep.core import codec, errors
from modelkeep.core.webhooks import Attempt, Delivery, DeliveryState, MadeWebhook, Replayed, Trial, Webhook
from tests.client.fake_server import FakeServer

pytestmark = [pytest.mark.network, pytest.mark.req("G16")]

Run = Callable[..., Any]
HOOKS = "/api/v1/webhooks"
NOW = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)
HOOK = Webhook(
    id="hook_1",
    name="ci",
    project="default",
    url="https://ci.example/x",
    events=("stage.*",),
    answerable="ana",
    created_at=NOW,
    created_by="ana",
    updated_at=NOW,
    cursor=7,
)


def test_a_secret_is_printed_once_and_the_receiver_s_address_is_not_the_server_s(
    server: FakeServer, modelkeep: Run
) -> None:
    """The address is an argument beside --url; without -e it hears all."""
    server.on("POST", HOOKS, MadeWebhook(webhook=HOOK, secret="whsec_word"))
    ran = modelkeep("webhook", "create", "ci", "https://ci.example/x")
    assert ran.code == 0, ran.err
    assert ran.out.count("whsec_word") == 1
    assert "only time" in ran.err
    assert "whsec_word" not in modelkeep("webhook", "create", "ci", "https://ci.example/x", "-q").out


def test_a_webhook_is_named_by_its_name_or_id(server: FakeServer, modelkeep: Run) -> None:
    """A name that several have is refused with their ids."""
    server.on("GET", HOOKS, {"items": [HOOK]})
    server.on("GET", f"{HOOKS}/hook_1", HOOK)
    assert "https://ci.example/x" in modelkeep("webhook", "show", "ci").out
    assert modelkeep("webhook", "show", "hook_1", "-q").out == "hook_1\n"
    assert "stage.*" in modelkeep("webhook", "ls").out
    server.on("GET", HOOKS, {"items": [HOOK, HOOK]})
    twice = modelkeep("webhook", "show", "ci")
    assert twice.code == 2
    assert "hook_1, hook_1" in twice.err


def test_a_trial_that_fails_is_an_error(server: FakeServer, modelkeep: Run) -> None:
    """Exit code 1, and what went wrong; 0 when the receiver took it."""
    server.on("POST", f"{HOOKS}/hook_1/test", Trial(delivered=True, status=204, duration_ms=3.0))
    assert modelkeep("webhook", "test", "hook_1").code == 0
    failed = Trial(delivered=False, error="Nothing was sent: it is private.", duration_ms=0.0)
    server.on("POST", f"{HOOKS}/hook_1/test", failed)
    ran = modelkeep("webhook", "test", "hook_1")
    assert ran.code == 1
    assert "Nothing was sent" in ran.out


def test_deliveries_say_what_the_receiver_said(server: FakeServer, modelkeep: Run) -> None:
    """One a line, with the last attempt."""
    tried = Attempt(number=1, at=NOW, status=503, duration_ms=2.0, body_sha256="0" * 64)
    one = Delivery(
        id="msg_1",
        webhook="hook_1",
        sequence=7,
        part=0,
        event="stage.moved",
        state=DeliveryState.WAITING,
        next_at=NOW,
        created_at=NOW,
        attempts=(tried,),
    )
    server.on("GET", f"{HOOKS}/hook_1/deliveries", {"items": [codec.builtins(one)]})
    out = modelkeep("webhook", "deliveries", "hook_1").out
    for word in ("msg_1", "stage.moved", "waiting", "503"):
        assert word in out


def test_a_replay_names_one_event_or_a_beginning(server: FakeServer, modelkeep: Run) -> None:
    """Neither and both are refused before anything is sent."""
    server.on("POST", f"{HOOKS}/hook_1/replay", Replayed(messages=2, cursor=7))
    assert "2" in modelkeep("webhook", "replay", "hook_1", "--event", "7").out
    assert modelkeep("webhook", "replay", "hook_1").code == 2
    assert modelkeep("webhook", "replay", "hook_1", "--event", "7", "--after", "6").code == 2


def test_an_unknown_webhook_is_not_found(server: FakeServer, modelkeep: Run) -> None:
    """The server's sentence, and the code of what is not there."""
    server.on("GET", HOOKS, {"items": []})
    server.on("DELETE", f"{HOOKS}/none", errors.WebhookNotFound("There is no webhook 'none'."))
    ran = modelkeep("webhook", "delete", "none", "--yes")
    assert ran.code == 5
    assert "There is no webhook" in ran.err
