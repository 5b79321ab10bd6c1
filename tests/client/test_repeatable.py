"""A write whose connection broke is sent again under its key, and the server answers what it answered the
first time: nobody promotes, asks, votes or takes back twice.
"""

from collections.abc import Callable

import pytest

from modelkeep.client import Client
from modelkeep.core import errors
from modelkeep.web.app import OPERATIONS
from modelkeep.web.operations import Mode
from tests.client.fake_server import Asked, BreakOff, FakeServer

pytestmark = [pytest.mark.req("U2", "G3"), pytest.mark.network]

V1 = "/api/v1"
WITHOUT_KEY = {
    "upload_file", "send_file", "verify_version", "fsck", "missing_files", "test_webhook", "ask_verdict",
    "judge_counts", "simulate_rollout",
}  # fmt: skip
"""What is sent under no key that the server keeps: bytes, which have an offset or a digest, questions, which
change nothing, and a test message."""
WRITES: dict[str, tuple[str, str, Callable[[Client], object]]] = {
    "promote": ("POST", "/promotions", lambda c: c.promote("churn:1.1.0", "production", "why")),
    "rollback": ("POST", "/rollbacks", lambda c: c.rollback("churn", "why")),
    "clear": ("POST", "/version/clear", lambda c: c.clear_version("churn:1.1.0", "why")),
    "request": ("POST", "/requests", lambda c: c.open_request("churn:1.1.0", "production", "why")),
    "review": ("POST", "/requests/req_1/reviews", lambda c: c.review("req_1", "approve")),
    "withdraw": ("POST", "/requests/req_1/withdrawal", lambda c: c.withdraw("req_1", "why")),
    "policy": ("PUT", "/policy", lambda c: c.set_policy(None, "name: p")),
    "endpoint": ("PUT", "/endpoints/churn", lambda c: c.put_endpoint("churn", "churn")),
    "delete": ("DELETE", "/endpoints/churn", lambda c: c.delete_endpoint("churn")),
    "abort": ("POST", "/endpoints/churn/rollout/abort", lambda c: c.rollout_abort("churn", "why")),
    "pause": ("POST", "/endpoints/churn/rollout/pause", lambda c: c.rollout_pause("churn", "why")),
    "resume": ("POST", "/endpoints/churn/rollout/resume", lambda c: c.rollout_resume("churn", "why")),
    "step": ("POST", "/endpoints/churn/rollout/step", lambda c: c.rollout_step("churn", "why")),
}


def test_the_server_knows_every_write_again() -> None:
    """Every row that changes something is carried out once for each key, but for those named above."""
    unsafe = [row for row in OPERATIONS if row.method not in ("GET", "HEAD") and "mlflow" not in row.path]
    assert {row.name for row in unsafe if row.mode is not Mode.WRITE} - {"preview_draft"} == WITHOUT_KEY


@pytest.mark.parametrize("name", WRITES)
def test_a_write_is_sent_again_as_the_same_write(server: FakeServer, client: Client, name: str) -> None:
    """The connection breaks before the answer: the same key, the same body, and one answer."""
    method, path, write = WRITES[name]

    def answer(_: Asked) -> object:
        if len(server.asked) == 1:
            raise BreakOff
        return errors.Conflict("It was done already.")

    server.on(method, V1 + path, answer)
    with pytest.raises(errors.Conflict, match="done already"):
        write(client)
    first, second = server.asked
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert (first.body, first.query) == (second.body, second.query)
