"""Versions loaded on demand on a real gateway: asleep until somebody asks, and again when another needs their
memory."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelkeep.core.routing import Epoch, Loading, Route, RoutingTable
from modelkeep.serving import control
from tests.serving import models
from tests.serving.control_plane import FakeControlPlane, until
from tests.serving.gateways import Answer, Gateway, running

pytestmark = [pytest.mark.journey, pytest.mark.network, pytest.mark.req("S2")]

FILES = {"model.onnx": models.linear_onnx()}
BROKEN = {"model.joblib": models.misbehaving(models.ECHO, on_load="[][1]")}
NAMES = ("one", "two", "three")
SPECS = {name: models.spec(FILES, "1.0.0", model=name) for name in NAMES}
SPECS["broken"] = models.spec(BROKEN, "1.0.0", model="broken")


def table() -> RoutingTable:
    """An endpoint of each version, all loaded on demand; the third had the second before."""
    former = {"three": SPECS["two"].key}
    routes = (
        Route(
            endpoint=name,
            epoch=Epoch(1, 1),
            stable=spec.key,
            previous=former.get(name),
            load=Loading.ON_DEMAND,
        )
        for name, spec in SPECS.items()
    )
    return RoutingTable(number=1, routes=tuple(routes), versions=tuple(SPECS.values()))


@pytest.fixture
def plane() -> Iterator[FakeControlPlane]:
    """A control plane with the versions of these tests."""
    with FakeControlPlane() as made:
        made.blobs.update(models.blobs(FILES) | models.blobs(BROKEN))
        yield made


def phases(gateway: Gateway) -> dict[str, str]:
    """How far each version is, by the name of its endpoint."""
    return {each["version"].partition(":")[0]: each["phase"] for each in gateway.status()["versions"]}


def together(gateway: Gateway, endpoint: str, number: int) -> list[Answer]:
    """The answers to requests that come at the same time."""
    answers: list[Answer] = []
    callers = [
        threading.Thread(target=lambda: answers.append(gateway.predict([[10, 0]], endpoint=endpoint)))
        for _ in range(number)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return answers


@pytest.mark.long
def test_versions_sleep_until_somebody_asks_and_give_way(tmp_path: Path, plane: FakeControlPlane) -> None:
    """A gateway is ready with nothing loaded, also after a restart; the first who ask wait and are all
    answered by one load; a third version takes the place of the one that was not asked for the longest, which
    comes back when it is asked for; one that cannot be loaded is said to be so; all of it is counted; and a
    rollback to one that sleeps says so, and its callers wait for it."""
    plane.publish(table())
    with running(tmp_path / "gw", plane.url) as gateway:
        until(lambda: gateway.request("GET", "/ready").json().get("asleep") == 4, "the routes are obeyed")
        assert gateway.predict([[10, 0]], endpoint="one").status == 200
        held_bytes = gateway.version("one:1.0.0")["memory_bytes"]
    options = f"memory_budget_bytes={int(2.5 * held_bytes)}, sleep_after_s=0, tick_s=0.2"
    with running(tmp_path / "gw", plane.url, options=options) as gateway:
        until(lambda: gateway.request("GET", "/ready").json().get("asleep") == 4, "all sleep again")
        ready = gateway.request("GET", "/ready")
        assert (ready.status, ready.json()["loaded"]) == (200, 0)

        assert {answer.status for answer in together(gateway, "one", 20)} == {200}
        assert gateway.version("one:1.0.0")["loads"] == 1
        assert gateway.predict([[10, 0]], endpoint="two").status == 200
        assert [phases(gateway)[name] for name in NAMES] == ["ready", "ready", "sleeping"]
        assert gateway.predict([[10, 0]], endpoint="three").status == 200
        until(lambda: phases(gateway)["one"] == "sleeping", "the first gave way")
        assert gateway.predict([[10, 0]], endpoint="one").status == 200
        until(lambda: phases(gateway)["two"] == "sleeping", "now the second gave way")
        assert phases(gateway)["three"] == "ready"

        refused = gateway.predict([[10, 0]], endpoint="broken")
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        page = gateway.request("GET", "/metrics").body.decode()
        assert 'modelkeep_gateway_version_evictions_total{version="one:1.0.0",cause="memory"} 1' in page
        assert 'modelkeep_gateway_version_loads_total{version="one:1.0.0"} 2' in page
        assert "modelkeep_gateway_first_request_wait_seconds_count 4" in page

        result = control.call(gateway.data, "rollback", endpoint="three")
        assert (result["version"], result["loading"]) == ("two:1.0.0", True)
        answer = gateway.predict([[10, 0]], endpoint="three")
        assert (answer.status, answer.version) == (200, "two:1.0.0")
