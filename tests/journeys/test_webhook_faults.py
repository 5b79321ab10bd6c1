"""Webhooks under faults, as real processes: a server that is killed at random moments while it delivers.

What is looked at is what the receiver took: every event that somebody was told was done arrives at least
once, first in the order of the log, under one id, with a good signature; and nothing arrives that is not in
the log.
"""

import contextlib
import http.client
import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from modelkeep.core import webhooks
from tests.receivers import OK, Taken, answering, receiving
from tests.web.processes import Server

pytestmark = [pytest.mark.journey, pytest.mark.req("G16", "I9")]

SETTINGS = ("env", "MODELKEEP_WEBHOOK_HTTP=true", "MODELKEEP_WEBHOOK_ALLOW=127.0.0.0/8")
LIVES = 3
LOAD_S = (0.1, 0.5)
"""How long a server lives under load, once it is, before it is killed."""
PATIENCE_S = 90.0


class Caller:
    """One connection to a server; no retry hides what happened."""

    def __init__(self, server: Server) -> None:
        self._connection = http.client.HTTPConnection(*server.address, timeout=20)

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json"} if data is not None else {}
        self._connection.request(method, "/api/v1" + path, data, headers)
        answer = self._connection.getresponse()
        found = json.loads(answer.read())
        assert answer.status < 400, found
        return found

    def __enter__(self) -> "Caller":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def write_until_killed(server: Server, life: int, done: list[str]) -> threading.Thread:
    """Create models, one after the other; `done` has those that were acknowledged."""

    def work() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException), Caller(server) as caller:
            for count in range(10_000):
                name = f"m{life}-{count}"
                caller("POST", "/models", {"name": name})
                done.append(name)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.long
def test_none_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    """Killed again and again while it takes writes and delivers them."""
    chance = random.Random(7)
    taken: list[Taken] = []
    done: list[str] = []
    with receiving(answering(OK, taken)) as receiver:
        server = Server(tmp_path, before=SETTINGS).ready()
        url = f"http://127.0.0.1:{receiver.port}/hook"
        with Caller(server) as caller:
            made = caller("POST", "/webhooks", {"name": "ci", "url": url, "events": ["model.created"]})
        for life in range(LIVES):
            known = len(done)
            writer = write_until_killed(server, life, done)
            while len(done) < known + 2 and writer.is_alive():
                time.sleep(0.001)
            time.sleep(chance.uniform(*LOAD_S))
            server.kill()
            writer.join(60)
            server = Server(tmp_path, before=SETTINGS).ready()
        try:
            deadline = time.monotonic() + PATIENCE_S
            while time.monotonic() < deadline and not set(done) <= {one.json()["model"] for one in taken}:
                time.sleep(0.05)
            with Caller(server) as caller:
                log = logged(caller)
                assert caller("GET", "/audit/verification")["intact"]
        finally:
            server.stop()
    assert len(done) > LIVES, "it was under load"
    first = list({one.id: one for one in taken}.values())
    sequences = [one.json()["sequence"] for one in first]
    assert set(done) <= {one.json()["model"] for one in first}, "what was acknowledged was told"
    assert sequences == sorted(set(sequences)), "in the order of the log, each under one id"
    key = webhooks.key_of(made["secret"])
    for one in taken:
        message = one.json()
        assert log[message["sequence"]] == ("model.created", message["model"]), "it is in the log"
        stamp = int(one.headers["webhook-timestamp"])
        assert one.headers["webhook-signature"] == webhooks.sign(key, one.id, stamp, one.body)
    created = [sequence for sequence, (kind, _) in sorted(log.items()) if kind == "model.created"]
    assert sequences == created, "none is left out, acknowledged or not"


def logged(caller: Caller) -> dict[int, tuple[str, str]]:
    """Every event's kind and subject by its number."""
    found: dict[int, tuple[str, str]] = {}
    after = 0
    while True:
        page = caller("GET", f"/audit/events?after={after}&limit=1000")
        for one in page["items"]:
            event = one["event"]
            found[event["sequence"]] = (event["kind"], event["subject"])
        if page["next_after"] is None:
            return found
        after = page["next_after"]
