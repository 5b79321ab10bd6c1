"""A gateway that is killed again and again, and one that runs for a while: with real processes, under load.

Whoever dies, and whenever: a request on the stable version fails only when it was under way in the process
that was killed (front or supervisor; a worker's are sent once more), and what is obeyed is what the journal
says. Over time neither memory nor descriptors grow.
"""

import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelkeep.core.routing import Epoch, Route, RoutingTable
from modelkeep.serving import control, moves
from tests.serving import models
from tests.serving.control_plane import FakeControlPlane, until
from tests.serving.gateways import Gateway, Load, briefly, gone, kill, live, replayed

pytestmark = [pytest.mark.journey, pytest.mark.network]

ONE, TWO = ({"model.onnx": models.linear_onnx(slope)} for slope in (1.0, 2.0))
V1, V2 = models.spec(ONE, "1.0.0"), models.spec(TWO, "2.0.0")
CALLERS = 4
VICTIMS = ("front", "churn:1.0.0", "churn:2.0.0", "supervisor")


@pytest.fixture
def plane() -> Iterator[FakeControlPlane]:
    """A control plane with two versions."""
    with FakeControlPlane() as made:
        made.blobs.update({**models.blobs(ONE), **models.blobs(TWO)})
        yield made


def publish(plane: FakeControlPlane, number: int) -> int:
    """A canary whose weight is another one in every table. Returns the weight."""
    ppm = 300_000 + number * 100
    route = Route(
        endpoint="churn", epoch=Epoch(1, number), stable=V1.key, candidate=V2.key, candidate_ppm=ppm,
        salt="salt", rollout="ro_1", key_header="X-User",
    )  # fmt: skip
    plane.publish(RoutingTable(number=number, routes=(route,), versions=(V1, V2)))
    return ppm


def pid_of(gateway: Gateway, victim: str) -> int:
    """The process to be killed."""
    if victim == "front":
        return int(gateway.status()["fronts"][0]["pid"])
    return int(gateway.version(victim)["pid"])


def agreed(gateway: Gateway, ppm: int) -> None:
    """Until the last published weight is obeyed, and the journal says what is obeyed."""
    gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=ppm)
    until(lambda: briefly(replayed(gateway)) == live(gateway), "the journal has the live table")


@pytest.mark.req("S1", "S7")
@pytest.mark.parametrize("rounds", [8, pytest.param(100, marks=pytest.mark.long)])
def test_whoever_is_killed_stable_answers_and_the_journal_is_right(
    tmp_path: Path, plane: FakeControlPlane, rounds: int
) -> None:
    """kill -9 of front, workers and supervisor in turns, each somewhere in a move of the weight."""
    chance = random.Random(20260125)
    victims = list(itertools.islice(itertools.cycle(VICTIMS), rounds))
    chance.shuffle(victims)
    number = 1
    ppm = publish(plane, number)
    options = "backoff_max_s=0.2, crashes_max=1000"  # it is not the versions that are bad here
    gateway = Gateway(tmp_path / "gw", plane.url, options=options).start()
    try:
        agreed(gateway, ppm)
        with Load(gateway, callers=CALLERS) as load:
            for done, victim in enumerate(victims):
                told = f"round {done}, {victim}"
                pid = pid_of(gateway, victim) if victim != "supervisor" else 0
                broken = len(load.broken)
                number += 1
                ppm = publish(plane, number)
                time.sleep(chance.uniform(0.0, 0.08))
                if victim == "supervisor":
                    gateway.kill()
                    kept = replayed(gateway)
                    assert kept.routes[0].candidate_ppm in (ppm, ppm - 100), told
                    gateway.start()
                    started = {(candidate, ppm) for _, _, candidate, ppm in live(gateway)}
                    assert started <= {("churn:2.0.0", 0), ("churn:2.0.0", ppm)}, told
                    assert briefly(moves.stable_only(kept))[0][:3] == live(gateway)[0][:3], told
                else:
                    kill(pid)
                    until(lambda pid=pid: gone(pid), "it is gone")
                load.settled()
                allowed = {"front": CALLERS, "supervisor": len(load.broken)}.get(victim, 0)
                assert len(load.broken) - broken <= allowed, (told, load.broken[broken:])
                assert set(load.statuses) == {200}, (told, load.statuses)
                agreed(gateway, ppm)
                for label in VICTIMS[1:3]:
                    gateway.wait_ready(label)
        assert {answer.version for _, answer in load.answers} == {"churn:1.0.0", "churn:2.0.0"}
    finally:
        gateway.close()


def use_of(pid: int) -> tuple[int, int]:
    """Resident bytes and open descriptors of a process."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.long
@pytest.mark.req("S1")
def test_a_gateway_does_not_grow(tmp_path: Path, plane: FakeControlPlane) -> None:
    """Started as the module that it is: new connections all the time, new tables, killed candidates, pages;
    after it has warmed up no process of it holds more."""
    seconds = float(os.environ.get("SOAK_S", "20"))
    number = 1
    ppm = publish(plane, number)
    gateway = Gateway(tmp_path / "gw", plane.url)
    words = ["--data", str(gateway.data), "--port", "0", "--server", plane.url, "--log-level", "WARNING"]
    with (tmp_path / "gw.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "modelkeep.serving.main", *words],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert process.stdout is not None
        gateway.port = int(process.stdout.readline().strip().rpartition(":")[2])
        agreed(gateway, ppm)

        def uses() -> dict[str, tuple[int, int]]:
            status: dict[str, Any] = gateway.status()
            pids = {"supervisor": status["pid"], "front": status["fronts"][0]["pid"]}
            pids |= {version["version"]: version["pid"] for version in status["versions"]}
            return {name: use_of(pid) for name, pid in pids.items()}

        with Load(gateway, callers=CALLERS) as load:
            until(lambda: len(load.answers) > 2_000, "it is warm", timeout_s=60)
            before, end = uses(), time.monotonic() + seconds
            while time.monotonic() < end:
                number += 1
                ppm = publish(plane, number)
                assert gateway.request("GET", "/metrics").status == 200
                agreed(gateway, ppm)
            answered = len(load.answers)
        after = uses()
        assert set(load.statuses) == {200}
        assert not load.broken
        for name, (memory, descriptors) in before.items():
            told = (name, before[name], after[name], answered)
            assert after[name][0] - memory < 8 * 1024 * 1024, told
            assert after[name][1] - descriptors <= CALLERS, told
        assert control.call(gateway.data, "rollback", endpoint="churn")["version"] == "churn:1.0.0"
        process.terminate()
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()
