"""Putting requests together on a real gateway: what waits while the model computes shares its next call, a
poisonous request fails alone, and the metrics page tells how it went."""

import concurrent.futures
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelkeep.core.routing import Epoch, Route, RoutingTable
from tests.serving import models
from tests.serving.control_plane import FakeControlPlane, until
from tests.serving.gateways import Answer, Gateway, running

pytestmark = [pytest.mark.journey, pytest.mark.network, pytest.mark.req("S2")]


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[FakeControlPlane]:
    """A control plane with a version that waits at a gate with a 1, and raises above 100."""
    held = f"{models.held_at(tmp_path / 'gate')} if (x[:, 0] <= 100).all() else [][1]"
    files = {"model.joblib": models.misbehaving(held)}
    spec = models.spec(files, "1.0.0")
    route = Route(endpoint="churn", epoch=Epoch(1, 1), stable=spec.key)
    with FakeControlPlane() as made:
        made.blobs.update(models.blobs(files))
        made.publish(RoutingTable(number=1, routes=(route,), versions=(spec,)))
        yield made


def at_once(gateway: Gateway, ages: list[int]) -> list[Answer]:
    """Ask for all of these at the same time."""
    answers: dict[int, Answer] = {}

    def one(place: int, age: int) -> None:
        answers[place] = gateway.predict([[age, 0]])

    threads = [threading.Thread(target=one, args=each) for each in enumerate(ages)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answers[place] for place in range(len(ages))]


def while_busy(gateway: Gateway, gate: models.Gate, ages: list[int]) -> list[Answer]:
    """The same, while the model computes for somebody else until all of them wait."""
    gate.close()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        busy = pool.submit(gateway.predict, [[1, 0]])
        until(gate.reached, "the model computes")
        answers = pool.submit(at_once, gateway, ages)
        until(lambda: gateway.in_flight() == 1 + len(ages), "all wait")
        time.sleep(0.05)
        gate.open()
        assert busy.result().json() == {"outputs": [1.0]}
        return answers.result()


def sample(gateway: Gateway, name: str) -> float:
    """The sum of a family's samples on the metrics page."""
    page = gateway.request("GET", "/metrics").body.decode()
    return sum(float(value) for value in re.findall(rf"^modelkeep_gateway_{name}.* (\S+)$", page, re.M))


def test_what_waits_shares_a_call_and_only_the_guilty_fails(tmp_path: Path, plane: FakeControlPlane) -> None:
    """Twelve requests that wait for the model take a few calls, not twelve; each has its own answer, the
    poisonous one its own error; and the page counts them."""
    gate = models.Gate(tmp_path / "gate")
    with running(tmp_path / "gw", plane.url) as gateway:
        gateway.wait_route("churn", stable="churn:1.0.0")
        ages = list(range(10, 22))
        answers = while_busy(gateway, gate, ages)
        assert [answer.json() for answer in answers] == [{"outputs": [float(age)]} for age in ages]
        poisoned = [*ages[:5], 120, *ages[5:]]
        answers = while_busy(gateway, gate, poisoned)
        rows = 2 + len(ages) + len(poisoned)
        statuses = [answer.status for answer in answers]
        assert statuses == [500 if age == 120 else 200 for age in poisoned]
        assert [answer.json()["outputs"] for answer in answers if answer.status == 200] == [
            [float(age)] for age in ages
        ]
        until(lambda: sample(gateway, "batch_rows_sum") == rows, "all rows are counted")
        assert sample(gateway, "batches_total") < 12
        assert sample(gateway, "queue_delay_seconds_count") == rows
        assert sample(gateway, "queue_delay_seconds_sum") > 0.05 * (rows - 2)


def test_batching_can_be_turned_off(tmp_path: Path, plane: FakeControlPlane) -> None:
    """With one row a batch every request is a call of its own, and says so."""
    with running(tmp_path / "gw", plane.url, options="batch_rows_max=1") as gateway:
        gateway.wait_route("churn", stable="churn:1.0.0")
        assert [answer.status for answer in at_once(gateway, [2, 3, 4])] == [200] * 3
        until(lambda: sample(gateway, "batches_total") == 3, "three calls are counted")
