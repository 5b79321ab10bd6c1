"""A drill on a real gateway under load: a rollback in earnest, measured, put back, and nobody notices."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelkeep.core import errors
from modelkeep.core.routing import Epoch, Route, RoutingTable
from modelkeep.serving import control
from tests.serving import models
from tests.serving.control_plane import FakeControlPlane, until
from tests.serving.gateways import Load, briefly, live, replayed, running

pytestmark = [pytest.mark.journey, pytest.mark.network, pytest.mark.req("S8")]

ONE, TWO = ({"model.onnx": models.linear_onnx(slope)} for slope in (1.0, 2.0))
V1, V2 = models.spec(ONE, "1.0.0"), models.spec(TWO, "2.0.0")


def table(number: int, **changed: Any) -> RoutingTable:
    """2.0.0 serves, and 1.0.0 is kept loaded."""
    fields: dict[str, Any] = {
        "endpoint": "churn",
        "epoch": Epoch(1, number),
        "stable": V2.key,
        "candidate": None,
        "candidate_ppm": 0,
        "previous": V1.key,
        "salt": "salt",
        "rollout": None,
        "key_header": "X-User",
    }
    return RoutingTable(number=number, routes=(Route(**(fields | changed)),), versions=(V1, V2))


@pytest.fixture
def plane() -> Iterator[FakeControlPlane]:
    """A control plane with both versions' files."""
    with FakeControlPlane() as made:
        for files in (ONE, TWO):
            made.blobs.update(models.blobs(files))
        yield made


def test_a_drill_under_load_is_a_rollback_and_back(tmp_path: Path, plane: FakeControlPlane) -> None:
    """Every request is answered with 200, some by the former version; then the standing one serves again,
    nothing was reported as a rollback, and the next order is obeyed."""
    plane.publish(table(1))
    with running(tmp_path / "gw", plane.url, fronts=2) as gateway:
        gateway.wait_route("churn", stable="churn:2.0.0")
        gateway.wait_ready("churn:1.0.0")
        before = live(gateway)
        with Load(gateway) as load:
            load.settled()
            for hold_s in (0.3, 3.0, 10.0):  # longer only where no caller got through to ask meanwhile
                began = time.monotonic()
                done = control.call(gateway.data, "drill", endpoint="churn", hold_s=hold_s)
                whole_ms = (time.monotonic() - began) * 1_000
                if "churn:1.0.0" in {answer.version for _, answer in list(load.answers)}:
                    break
            load.settled()
            passed = len(load.answers)
            load.settled()
        assert done["live"]
        assert 0 <= done["took_ms"] <= done["confirmed_ms"] <= whole_ms - hold_s * 1_000
        assert (done["stood"], done["former"], done["fronts"]) == (V2.key, V1.key, 2)
        assert done["gateway"] == gateway.status()["gateway"]
        assert load.statuses.keys() == {200}
        assert not load.broken
        assert {answer.version for _, answer in load.answers} == {"churn:1.0.0", "churn:2.0.0"}
        assert {answer.version for _, answer in load.answers[passed:]} == {"churn:2.0.0"}
        assert live(gateway) == briefly(replayed(gateway)) == before
        assert plane.rollbacks == []
        plane.publish(table(2, stable=V1.key, previous=V2.key))
        until(lambda: gateway.predict([[7, 0]]).version == "churn:1.0.0", "the next order is obeyed")


def test_a_gateway_refuses_a_drill_that_is_not_fit(tmp_path: Path, plane: FakeControlPlane) -> None:
    """A rollout under way, no former version, no such endpoint, too long; nothing moves."""
    plane.publish(
        table(1, stable=V1.key, previous=None, candidate=V2.key, candidate_ppm=500_000, rollout="r")
    )
    with running(tmp_path / "gw", plane.url) as gateway:
        gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=500_000)
        with pytest.raises(errors.RolloutActive):
            control.call(gateway.data, "drill", endpoint="churn")
        plane.publish(table(2, previous=None))
        gateway.wait_route("churn", stable="churn:2.0.0", candidate=None)
        with pytest.raises(errors.NoRollbackTarget):
            control.call(gateway.data, "drill", endpoint="churn")
        with pytest.raises(errors.RouteNotFound):
            control.call(gateway.data, "drill", endpoint="nothing")
        for wrong in (-1, 60, "long", None):
            with pytest.raises(errors.Invalid):
                control.call(gateway.data, "drill", endpoint="churn", hold_s=wrong)
        assert live(gateway) == [("churn", "churn:2.0.0", None, 0)]
