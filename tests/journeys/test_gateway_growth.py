"""A version that keeps memory with every request, on a real gateway: replaced by a fresh process before it
comes to its limit, and ended where it is there already. Nobody else's requests fail for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelkeep import telemetry
from modelkeep.core.routing import Epoch, Route, RoutingTable
from modelkeep.serving.growth import Growth
from tests.serving import models
from tests.serving.control_plane import FakeControlPlane, until
from tests.serving.gateways import Gateway, Load, running

pytestmark = [pytest.mark.journey, pytest.mark.network, pytest.mark.req("S2")]

LIMIT = 12 << 30
"""Of what a worker maps: it starts with one or two."""
_KEPT = "self.__dict__.setdefault('kept', []).append(__import__('numpy').empty(int(x[0, 1]) << 20, 'u1'))"
"""Of as many MiB as the request says. Nothing is written there, so the machine's own memory stays free."""
LEAKS = f"[x[0, 0] > 100 and {_KEPT}, {models.ECHO}][1]"
LEAKY = {"model.joblib": models.misbehaving(LEAKS)}
V1 = models.spec(LEAKY, "1.0.0")
REQUESTS_MAX = 400


@pytest.fixture
def plane() -> Iterator[FakeControlPlane]:
    """A control plane with the version that leaks."""
    with FakeControlPlane() as made:
        made.blobs.update(models.blobs(LEAKY))
        yield made


def table(workers: int) -> RoutingTable:
    """One endpoint, with so many processes of its version."""
    route = Route(endpoint="churn", epoch=Epoch(1, 1), stable=V1.key, workers=workers)
    return RoutingTable(number=1, routes=(route,), versions=(V1,))


def counted(gateway: Gateway, what: str) -> int:
    """Of the version's report."""
    return int(gateway.version("churn:1.0.0").get(what, 0))


def loaded(gateway: Gateway, workers: int) -> list[int]:
    """The version's processes, when there are so many that answer."""

    def ready() -> list[int]:
        return [
            one["pid"] for one in gateway.version("churn:1.0.0").get("workers", ()) if one["phase"] == "ready"
        ]

    until(lambda: len(ready()) == workers, f"{workers} are ready; {gateway.log()[-2000:]}")
    return ready()


@pytest.mark.hostile("foreign-models")
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.long), 2])
def test_a_worker_that_leaks_is_replaced_before_its_limit(
    tmp_path: Path, plane: FakeControlPlane, workers: int
) -> None:
    """A fresh one is loaded beside it and takes its place under load: no request fails, nothing crashes, and
    metrics and reports say so."""
    plane.publish(table(workers))
    options = f"worker_memory_bytes={LIMIT}, tick_s=0.05"
    with running(tmp_path / "gw", plane.url, options=options) as gateway:
        gateway.wait_route("churn", stable="churn:1.0.0")
        with Load(gateway, callers=2) as load:
            grown = {pid: Growth(LIMIT, telemetry.mapped_bytes(pid)) for pid in loaded(gateway, workers)}
            for _ in range(REQUESTS_MAX):
                if any(growth.past(telemetry.mapped_bytes(pid)) for pid, growth in grown.items()):
                    break  # however long the gateway takes to see it, it does not come nearer to its limit
                assert gateway.predict([[120, 128]]).status == 200
            until(lambda: counted(gateway, "replaced") >= 1, f"another in its place; {gateway.log()[-2000:]}")
            load.settled(answers=20)
        assert load.statuses.keys() == {200}, load.statuses
        assert not load.broken
        assert counted(gateway, "crashes") == 0
        page = gateway.request("GET", "/metrics").body.decode()
        assert 'modelkeep_gateway_version_replacements_total{version="churn:1.0.0"}' in page
        until(
            lambda: any(v.replaced for report in plane.reports for v in report.versions),
            "the control plane is told",
        )


@pytest.mark.hostile("foreign-models")
@pytest.mark.parametrize(("hold_s", "status"), [pytest.param(30.0, 200, marks=pytest.mark.long), (0.0, 503)])
def test_a_worker_at_its_limit_ends(
    tmp_path: Path, plane: FakeControlPlane, hold_s: float, status: int
) -> None:
    """Where it came there too quickly, its process ends: what it had is answered by the next one, or told to
    come again where nobody waits for that; and the next one answers all."""
    plane.publish(table(1))
    options = f"worker_memory_bytes={LIMIT}, tick_s=60.0, hold_s={hold_s}, backoff_first_s=0.02"
    with running(tmp_path / "gw", plane.url, options=options) as gateway:
        gateway.wait_route("churn", stable="churn:1.0.0")
        answers = []
        for _ in range(REQUESTS_MAX):
            answers.append(gateway.predict([[120, 1_024]]))
            if counted(gateway, "crashes") or answers[-1].status != 200:
                break
        assert [one.status for one in answers[:-1]] == [200] * (len(answers) - 1)
        last = answers[-1]
        assert last.status == status
        assert (last.headers.get("retry-after") == "1") == (status == 503)
        until(lambda: counted(gateway, "crashes") == 1, "its end is counted")
        gateway.wait_ready("churn:1.0.0")
        until(lambda: gateway.predict([[10, 0]]).status == 200, "the next one answers")
        assert "used up its limit of memory" in gateway.log()
