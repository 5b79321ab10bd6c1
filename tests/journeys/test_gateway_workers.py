"""Several workers of one version on a real gateway: requests spread over them, one that dies costs nobody
anything, and their number changes under load."""

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from modelkeep.core.routing import Epoch, Route, RoutingTable
from tests.serving import models
from tests.serving.control_plane import FakeControlPlane, until
from tests.serving.gateways import Answer, Gateway, Load, gone, kill, running

pytestmark = [pytest.mark.journey, pytest.mark.network, pytest.mark.req("S2")]

_PID = "__import__('os').getpid()"
WHO = {"model.joblib": models.misbehaving(f"__import__('numpy').full(len(x), {_PID}, dtype='float32')")}
_SLOW_AND_MORTAL = f"[__import__('time').sleep(0.05), {models.DIES_ABOVE_100}][1]"
MORTAL = {"model.joblib": models.misbehaving(_SLOW_AND_MORTAL)}
V1, V2 = models.spec(WHO, "1.0.0"), models.spec(MORTAL, "2.0.0")


def table(number: int, workers: int, *, mortal: bool = False) -> RoutingTable:
    """One endpoint, with so many processes of its version."""
    stable = (V2 if mortal else V1).key
    route = Route(endpoint="churn", epoch=Epoch(1, number), stable=stable, workers=workers)
    return RoutingTable(number=number, routes=(route,), versions=(V1, V2))


@pytest.fixture
def plane() -> Iterator[FakeControlPlane]:
    """A control plane with the versions of these tests."""
    with FakeControlPlane() as made:
        for files in (WHO, MORTAL):
            made.blobs.update(models.blobs(files))
        yield made


def pids(gateway: Gateway, label: str = "churn:1.0.0") -> list[int]:
    """The version's processes that serve."""
    workers: list[dict[str, Any]] = gateway.version(label).get("workers", [])
    return [worker["pid"] for worker in workers if worker["phase"] == "ready"]


def replaced(gateway: Gateway, gone_pid: int, kept: int) -> bool:
    """Whether there is another worker in the place of one, beside the one that stayed."""
    found = pids(gateway)
    return len(found) == 2 and gone_pid not in found and kept in found


def answered_by(answers: list[tuple[str, Answer]]) -> set[int]:
    """The processes that answered."""
    return {int(answer.json()["outputs"][0]) for _, answer in answers if answer.status == 200}


def test_one_of_two_workers_killed_costs_no_request(tmp_path: Path, plane: FakeControlPlane) -> None:
    """kill -9 of one worker after the other under load: what it had is answered by its sibling, each comes
    back, and both share the work."""
    plane.publish(table(1, 2))
    with running(tmp_path / "gw", plane.url) as gateway:
        gateway.wait_route("churn", stable="churn:1.0.0")
        until(lambda: len(pids(gateway)) == 2, "both workers are ready")
        with Load(gateway, callers=8) as load:
            for _ in range(2):
                first, second = pids(gateway)
                kill(first)
                until(partial(gone, first), "the worker is gone")
                load.settled()
                until(partial(replaced, gateway, first, second), "another worker in its place")
                since = len(load.answers)
                until(
                    lambda since=since: answered_by(load.answers[since:]) >= set(pids(gateway)),
                    "both share the work",
                )
                load.settled(answers=20)
        assert load.statuses.keys() == {200}, load.statuses
        assert not load.broken
        assert answered_by(load.answers[-100:]) == set(pids(gateway))
        assert gateway.version("churn:1.0.0")["crashes"] == 2


def test_their_number_changes_under_load(tmp_path: Path, plane: FakeControlPlane) -> None:
    """One, three, one: more are started beside the first, those that are too many finish what they have."""
    plane.publish(table(1, 1))
    with running(tmp_path / "gw", plane.url) as gateway:
        gateway.wait_route("churn", stable="churn:1.0.0")
        (first,) = pids(gateway)
        with Load(gateway) as load:
            plane.publish(table(2, 3))
            until(lambda: len(pids(gateway)) == 3, "three workers are ready")
            others = set(pids(gateway)) - {first}
            until(lambda: answered_by(load.answers) == others | {first}, "all three share the work")
            plane.publish(table(3, 1))
            until(lambda: all(gone(pid) for pid in others), "the others are gone")
            load.settled()
        assert load.statuses.keys() == {200}, load.statuses
        assert not load.broken
        assert pids(gateway) == [first]
        assert answered_by(load.answers) == others | {first}
        version = gateway.version("churn:1.0.0")
        assert (version["phase"], version["crashes"]) == ("ready", 0)


@pytest.mark.hostile("foreign-models")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_poisonous_request_takes_nobody_with_it(
    tmp_path: Path, plane: FakeControlPlane, workers: int
) -> None:
    """It kills a worker among others and another one alone, and gets 503; whoever waited with it is
    answered."""
    plane.publish(table(1, workers, mortal=True))
    with running(tmp_path / "gw", plane.url, options="backoff_first_s=0.02, hold_s=30.0") as gateway:
        gateway.wait_route("churn", stable="churn:2.0.0")
        until(lambda: len(pids(gateway, "churn:2.0.0")) == workers, "the workers are ready")
        answers: dict[int, Answer] = {}

        def one(place: int) -> None:
            answers[place] = gateway.predict([[120 if place == 7 else place, 0]])

        threads = [threading.Thread(target=one, args=(place,)) for place in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers[7].status == 503
        assert answers[7].headers["retry-after"] == "1"
        assert [answers[place].status for place in range(16) if place != 7] == [200] * 15
        until(lambda: gateway.version("churn:2.0.0")["crashes"] >= 2, "both ends are noticed")
        assert gateway.version("churn:2.0.0")["crashes"] == 2
