"""A gateway that others can reach: nobody asks it unasked for, and nobody commands it but its owner."""

import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelkeep.core.routing import Epoch, Route, RoutingTable
from tests.serving import models
from tests.serving.control_plane import FakeControlPlane, until
from tests.serving.gateways import Gateway, live, running

pytestmark = [pytest.mark.journey, pytest.mark.network, pytest.mark.req("S1", "G10")]

ONE, TWO = ({"model.onnx": models.linear_onnx(slope)} for slope in (1.0, 2.0))
V1, V2 = models.spec(ONE, "1.0.0"), models.spec(TWO, "2.0.0")
TOKEN = "a-token-of-some-length"
PREDICT = "/endpoints/churn/predict"
GOOD = {"inputs": [[1, 1]]}


@pytest.fixture
def plane() -> Iterator[FakeControlPlane]:
    """A control plane with a canary."""
    with FakeControlPlane() as made:
        made.blobs.update({**models.blobs(ONE), **models.blobs(TWO)})
        route = Route(
            endpoint="churn", epoch=Epoch(1, 1), stable=V1.key, candidate=V2.key, candidate_ppm=500_000,
            salt="salt", rollout="ro_1", key_header="X-User",
        )  # fmt: skip
        made.publish(RoutingTable(number=1, routes=(route,), versions=(V1, V2)))
        yield made


def test_an_address_beyond_this_machine_is_refused_unasked(tmp_path: Path) -> None:
    """Without a guard, and without anybody saying that it is meant, nothing listens and nothing is left."""
    gateway = Gateway(tmp_path / "gw", None, options="host='0.0.0.0'")
    with pytest.raises(AssertionError, match="--callers-token FILE, or --open"):
        gateway.start()
    assert not (tmp_path / "gw").exists()


def test_an_open_gateway_says_so_and_takes_no_command(tmp_path: Path, plane: FakeControlPlane) -> None:
    """One line tells who may ask. What commands there are have no page under any method, and their socket is
    its owner's alone."""
    with running(tmp_path / "gw", plane.url, options="host='0.0.0.0', open=True") as gateway:
        gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=500_000)
        assert gateway.log().count("Anybody who reaches the gateway") == 1
        assert gateway.request("POST", PREDICT, GOOD).status == 200
        before = live(gateway)
        words = ("rollback", "status", "drain", "reload", "control")
        paths = [
            place % word for place in ("/%s", "/endpoints/churn/%s", "/v2/models/churn/%s") for word in words
        ]
        for method, path in itertools.product(("GET", "POST", "PUT", "DELETE"), paths):
            body = {"command": "rollback", "arguments": {"endpoint": "churn"}, "endpoint": "churn"}
            answer = gateway.request(method, path, body)
            assert answer.status in (404, 405), (method, path, answer.status)
        assert live(gateway) == before
        assert not gateway.status()["draining"]
        control = Path((gateway.data / "control.path").read_text())
        for place, kind in ((control, stat.S_IFSOCK | 0o600), (control.parent, stat.S_IFDIR | 0o700)):
            found = os.stat(place)
            assert (found.st_mode, found.st_uid) == (kind, os.getuid())


def test_a_guarded_gateway_answers_those_who_show_a_token(tmp_path: Path, plane: FakeControlPlane) -> None:
    """Predictions and pages need one of the tokens, probes do not; strangers are counted on no side, and a
    new token counts without a restart."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"# of the shop\n{TOKEN}\n")
    options = f"host='0.0.0.0', callers_token_file=Path({str(tokens)!r})"
    with running(tmp_path / "gw", plane.url, options=options) as gateway:
        gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=500_000)
        known = {"Authorization": f"Bearer {TOKEN}"}
        for method, path in (
            ("POST", PREDICT),
            ("GET", "/metrics"),
            ("GET", "/endpoints"),
            ("GET", "/nothing"),
        ):
            for headers in ({}, {"Authorization": f"Bearer {TOKEN}x"}):
                answer = gateway.request(method, path, GOOD, headers)
                assert (answer.status, answer.json()["code"]) == (401, "NOT_AUTHENTICATED")
                assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/health", "/ready", "/v2/health/live", "/v2/health/ready"):
            assert gateway.request("GET", path).status == 200
        assert gateway.request("POST", PREDICT, GOOD, known).json()["outputs"]
        assert gateway.request("GET", "/endpoints", None, known).status == 200
        assert "Anybody" not in gateway.log()
        until(lambda: _requests(plane) > 0, "the request is reported")
        assert _requests(plane) == 1

        newer = {"Authorization": "Bearer the-token-that-follows"}
        tokens.write_text("the-token-that-follows\n")
        until(lambda: gateway.request("POST", PREDICT, GOOD, newer).status == 200, "the new token counts")
        assert gateway.request("POST", PREDICT, GOOD, known).status == 401


def _requests(plane: FakeControlPlane) -> int:
    """Requests that were reported, on both sides."""
    ticks = plane.ticks.get(("churn", "ro_1"), [])
    return sum(tick.stable.requests + tick.candidate.requests for tick in ticks)
