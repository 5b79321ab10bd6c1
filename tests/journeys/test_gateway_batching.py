"""Putting requests together on a real gateway: what waits while the model computes shares its next call, a
poisonous request fails alone, and the metrics page tells how it went."""

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelkeep.core.routing import Epoch, Route, RoutingTable
from tests.serving import models
from tests.serving.control_plane import FakeControlPlane, until
from tests.serving.gateways import Answer, Gateway, running

pytestmark = [pytest.mark.journey, pytest.mark.network, pytest.mark.req("S2")]

SLOW = {"model.joblib": models.misbehaving(f"[__import__('time').sleep(0.15), {models.RAISES_ABOVE_100}][1]")}
V1 = models.spec(SLOW, "1.0.0")


def table(number: int, **changed: Any) -> RoutingTable:
    """One endpoint, one version."""
    route = Route(endpoint="churn", epoch=Epoch(1, number), stable=V1.key, **changed)
    return RoutingTable(number=number, routes=(route,), versions=(V1,))


@pytest.fixture
def plane() -> Iterator[FakeControlPlane]:
    """A control plane with the slow version."""
    with FakeControlPlane() as made:
        made.blobs.update(models.blobs(SLOW))
        made.publish(table(1))
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


def sample(gateway: Gateway, name: str) -> float:
    """The sum of a family's samples on the metrics page."""
    page = gateway.request("GET", "/metrics").body.decode()
    return sum(float(value) for value in re.findall(rf"^modelkeep_gateway_{name}.* (\S+)$", page, re.M))


def test_what_waits_shares_a_call_and_only_the_guilty_fails(tmp_path: Path, plane: FakeControlPlane) -> None:
    """Twelve requests at once to a model of 0.15 s a call take a few calls, not twelve; each has its own
    answer, the poisonous one its own error; and the page counts them."""
    with running(tmp_path / "gw", plane.url) as gateway:
        gateway.wait_route("churn", stable="churn:1.0.0")
        ages = list(range(10, 22))
        answers = at_once(gateway, ages)
        assert [answer.json() for answer in answers] == [{"outputs": [float(age)]} for age in ages]
        poisoned = [*ages[:5], 120, *ages[5:]]
        answers = at_once(gateway, poisoned)
        statuses = [answer.status for answer in answers]
        assert statuses == [500 if age == 120 else 200 for age in poisoned]
        assert [answer.json()["outputs"] for answer in answers if answer.status == 200] == [
            [float(age)] for age in ages
        ]
        until(lambda: sample(gateway, "batch_rows_sum") == len(ages) + len(poisoned), "all rows are counted")
        assert sample(gateway, "batches_total") < 12
        assert sample(gateway, "queue_delay_seconds_count") == len(ages) + len(poisoned)
        assert sample(gateway, "queue_delay_seconds_sum") > 0.1


def test_batching_can_be_turned_off(tmp_path: Path, plane: FakeControlPlane) -> None:
    """With one row a batch every request is a call of its own, and says so."""
    with running(tmp_path / "gw", plane.url, options="batch_rows_max=1") as gateway:
        gateway.wait_route("churn", stable="churn:1.0.0")
        assert [answer.status for answer in at_once(gateway, [1, 2, 3])] == [200] * 3
        until(lambda: sample(gateway, "batches_total") == 3, "three calls are counted")
