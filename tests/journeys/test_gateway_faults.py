"""Faults on a real gateway: workers, fronts and the supervisor killed under load, the control plane gone,
leases lost, disks full, caches damaged. The stable version never suffers, and what is obeyed is what the
journal says."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelkeep.core import errors
from modelkeep.core.observation import VersionPhase
from modelkeep.core.routing import Epoch, Route, RoutingTable
from modelkeep.serving import control
from tests.serving import models
from tests.serving.control_plane import FakeControlPlane, until
from tests.serving.gateways import Gateway, Load, briefly, gone, kill, live, replayed, running

pytestmark = [pytest.mark.journey, pytest.mark.network]

ONE, TWO = ({"model.onnx": models.linear_onnx(slope)} for slope in (1.0, 2.0))
MORTAL = {"model.joblib": models.misbehaving(models.DIES_ABOVE_100)}
V1, V2, V3 = models.spec(ONE, "1.0.0"), models.spec(TWO, "2.0.0"), models.spec(MORTAL, "3.0.0")
V4 = models.spec({"model.joblib": models.misbehaving(models.HANGS_ABOVE_100)}, "4.0.0")
FILES = (ONE, TWO, MORTAL, {"model.joblib": models.misbehaving(models.HANGS_ABOVE_100)})


def route(seq: int, **changed: Any) -> Route:
    """A canary at half."""
    fields: dict[str, Any] = {
        "endpoint": "churn", "epoch": Epoch(1, seq), "stable": V1.key, "candidate": V2.key,
        "candidate_ppm": 500_000, "salt": "salt", "rollout": "ro_1", "key_header": "X-User",
    }  # fmt: skip
    return Route(**{**fields, **changed})


def table(number: int, *routes: Route) -> RoutingTable:
    """A table that describes the versions of these tests."""
    return RoutingTable(number=number, routes=routes, versions=(V1, V2, V3, V4))


@pytest.fixture
def plane() -> Iterator[FakeControlPlane]:
    """A control plane with the files of these tests."""
    with FakeControlPlane() as made:
        for files in FILES:
            made.blobs.update(models.blobs(files))
        yield made


@pytest.mark.req("S1", "S7")
def test_killed_workers_cost_no_request(tmp_path: Path, plane: FakeControlPlane) -> None:
    """kill -9 of candidate and stable workers under load: restarted with back-off, and every request is
    answered."""
    plane.publish(table(1, route(1)))
    with running(tmp_path / "gw", plane.url, options="crashes_max=50") as gateway:
        gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=500_000)
        with Load(gateway) as load:
            for label in ("churn:2.0.0", "churn:1.0.0", "churn:2.0.0", "churn:1.0.0"):
                pid = gateway.version(label)["pid"]
                kill(pid)
                until(lambda pid=pid: gone(pid), "the worker is gone")
                until(lambda label=label, pid=pid: gateway.version(label)["pid"] != pid, "another worker")
                gateway.wait_ready(label)
                time.sleep(0.2)
        assert load.statuses.keys() == {200}, load.statuses
        assert not load.broken
        assert {answer.version for _, answer in load.answers} == {"churn:1.0.0", "churn:2.0.0"}

        def crashes() -> tuple[int, int]:
            ticks = plane.ticks.get(("churn", "ro_1"), [])
            return sum(t.stable.crashes for t in ticks), sum(t.candidate.crashes for t in ticks)

        until(lambda: crashes() == (2, 2), "the crashes of both sides are reported")


@pytest.mark.hostile("foreign-models")
@pytest.mark.req("S7")
def test_a_candidate_that_keeps_dying_is_taken_back(tmp_path: Path, plane: FakeControlPlane) -> None:
    """A request that kills the candidate is answered by stable; five deaths are enough, without any
    controller."""
    plane.publish(table(1, route(1, candidate=V3.key, candidate_ppm=1_000_000)))
    options = "backoff_first_s=0.01, crashes_max=3"
    with running(tmp_path / "gw", plane.url, options=options) as gateway:
        gateway.wait_route("churn", candidate="churn:3.0.0", candidate_ppm=1_000_000)
        plane.stop()
        for _ in range(3):
            gateway.wait_ready("churn:3.0.0")
            pid = gateway.version("churn:3.0.0")["pid"]
            answer = gateway.predict([[120, 1]], X_User="u")
            assert (answer.status, answer.version, answer.json()) == (
                200,
                "churn:1.0.0",
                {"outputs": [121.0]},
            )
            until(lambda pid=pid: gateway.version("churn:3.0.0")["pid"] != pid, "its end was noticed")
        gateway.wait_route("churn", candidate=None, stable="churn:1.0.0")
        plane.start()
        until(lambda: bool(plane.rollbacks), "the rollback is reported when the control plane is back")
        rollback = plane.rollbacks[0]
        assert (rollback.cause, rollback.actor) == ("candidate crashed", "gateway")
        assert (rollback.epoch, rollback.removed, rollback.rollout) == (Epoch(2, 0), V3.key, "ro_1")
        until(
            lambda: sum(t.candidate.errors for t in plane.ticks.get(("churn", "ro_1"), [])) == 3,
            "the errors of the time without a control plane are reported",
        )
        time.sleep(0.5)  # the old table is offered again, and stays fenced off
        assert live(gateway) == [("churn", "churn:1.0.0", None, 0)]
        plane.publish(table(5, route(9, epoch=Epoch(2, 1))))
        gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=500_000)


@pytest.mark.hostile("foreign-models")
@pytest.mark.req("S7")
def test_a_candidate_that_hangs_costs_time_and_no_request(tmp_path: Path, plane: FakeControlPlane) -> None:
    """After its share of the time the request goes to stable; a hung worker is ended and started anew."""
    plane.publish(table(1, route(1, candidate=V4.key, candidate_ppm=1_000_000)))
    options = "request_deadline_s=4.0, hang_s=6.0"
    with running(tmp_path / "gw", plane.url, options=options) as gateway:
        gateway.wait_route("churn", candidate="churn:4.0.0", candidate_ppm=1_000_000)
        pid = gateway.version("churn:4.0.0")["pid"]
        began = time.monotonic()
        answer = gateway.predict([[120, 1]], X_User="u")
        assert (answer.status, answer.version) == (200, "churn:1.0.0")
        assert time.monotonic() - began > 1.6
        until(lambda: gone(pid), "the hung worker is ended")
        gateway.wait_ready("churn:4.0.0")
        # On stable there is nobody to help: the caller is told in time.
        plane.publish(table(2, Route(endpoint="churn", epoch=Epoch(1, 2), stable=V4.key)))
        gateway.wait_route("churn", stable="churn:4.0.0")
        codes: list[str] = []

        def too_late() -> bool:
            codes.append(gateway.predict([[120, 1]]).json()["code"])
            return codes[-1] == "TIMED_OUT"

        until(too_late, "a caller is told")
        assert set(codes[:-1]) <= {"WORKER_UNAVAILABLE"}, "while a hung worker is started anew"


@pytest.mark.hostile("foreign-models")
@pytest.mark.req("S1")
def test_a_request_that_kills_stable_is_tried_twice_and_no_more(
    tmp_path: Path, plane: FakeControlPlane
) -> None:
    """The poisonous request gets 503 with Retry-After; the version comes back for everybody else."""
    plane.publish(table(1, Route(endpoint="churn", epoch=Epoch(1, 1), stable=V3.key)))
    with running(tmp_path / "gw", plane.url) as gateway:
        gateway.wait_route("churn", stable="churn:3.0.0")
        answer = gateway.predict([[120, 1]])
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["code"] == "WORKER_UNAVAILABLE"
        assert gateway.predict([[10, 1]]).json() == {"outputs": [10.0]}
        assert gateway.version("churn:3.0.0")["crashes"] == 2


@pytest.mark.req("S1", "S9")
def test_a_failed_version_that_is_asked_for_anew_begins_anew(tmp_path: Path, plane: FakeControlPlane) -> None:
    """The cause is mended and the version promoted again: it is tried at once, long before its own back-off,
    and its former failure is not told under the new route. Without a newer route nothing is forgotten."""
    flag = tmp_path / "mended"
    files = {"model.joblib": models.misbehaving(models.ECHO, on_load=f"open({str(flag)!r}).close()")}
    spec = models.spec(files, "6.0.0")
    plane.blobs.update(models.blobs(files))

    def publish(number: int, seq: int, rollout: str) -> None:
        one = route(seq, candidate=spec.key, candidate_ppm=seq * 100_000, rollout=rollout)
        plane.publish(RoutingTable(number=number, routes=(one,), versions=(V1, spec)))

    def phases(table: int) -> list[VersionPhase]:
        told = [report for report in plane.reports if report.table >= table]
        return [version.phase for report in told for version in report.versions if version.key == spec.key]

    publish(1, 1, "ro_1")
    with running(tmp_path / "gw", plane.url, options="backoff_max_s=300") as gateway:
        until(lambda: VersionPhase.FAILED in phases(1), "the load fails")
        assert "No such file" in gateway.version("churn:6.0.0")["error"]
        publish(2, 1, "ro_1")
        until(lambda: bool(phases(2)), "the same route in a newer table is reported")
        assert set(phases(2)) == {VersionPhase.FAILED}
        flag.touch()
        publish(3, 2, "ro_2")
        gateway.wait_route("churn", candidate="churn:6.0.0", candidate_ppm=200_000)
        until(lambda: VersionPhase.READY in phases(3), "it is reported as ready")
        assert VersionPhase.FAILED not in phases(3)


@pytest.mark.req("S1")
def test_a_version_that_cannot_be_fetched_is_asked_for_anew(tmp_path: Path, plane: FakeControlPlane) -> None:
    """The same for bytes that nobody had: a newer route does not wait out the back-off of the fetch."""
    files = {"model.onnx": models.linear_onnx(8.0)}
    spec = models.spec(files, "8.0.0")
    plane.publish(
        RoutingTable(number=1, routes=(route(1, candidate=spec.key, candidate_ppm=0),), versions=(V1, spec))
    )
    with running(tmp_path / "gw", plane.url, options="backoff_first_s=0.02") as gateway:
        until(lambda: gateway.version("churn:8.0.0")["phase"] == "failed", "nobody has the bytes")
        plane.blobs.update(models.blobs(files))
        newer = route(2, candidate=spec.key, candidate_ppm=300_000, rollout="ro_2")
        plane.publish(RoutingTable(number=2, routes=(newer,), versions=(V1, spec)))
        gateway.wait_route("churn", candidate="churn:8.0.0", candidate_ppm=300_000)


@pytest.mark.req("S1")
def test_a_killed_front_comes_back_with_the_same_table(tmp_path: Path, plane: FakeControlPlane) -> None:
    """Callers who connect meanwhile wait in the socket that outlives the front; only requests under way are
    lost."""
    plane.publish(table(1, route(1)))
    with running(tmp_path / "gw", plane.url) as gateway:
        gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=500_000)
        before = {f"u{n}": gateway.predict([[1, 1]], X_User=f"u{n}").version for n in range(20)}
        with Load(gateway) as load:
            for _ in range(3):
                pid = gateway.status()["fronts"][0]["pid"]
                kill(pid)
                until(lambda pid=pid: gateway.status()["fronts"][0]["pid"] not in (pid, 0), "another front")
                load.settled()
        assert load.statuses.keys() == {200}
        assert len(load.broken) <= 3 * 4, load.broken
        assert {f"u{n}": gateway.predict([[1, 1]], X_User=f"u{n}").version for n in range(20)} == before
        until(
            lambda: (
                sum(
                    t.stable.new_callers + t.candidate.new_callers
                    for t in plane.ticks.get(("churn", "ro_1"), [])
                )
                >= 20  # those just asked again; how many of the others got through is the machine's business
            ),
            "the callers are counted",
        )
        assert (
            sum(t.stable.new_callers + t.candidate.new_callers for t in plane.ticks["churn", "ro_1"]) <= 180
        )


@pytest.mark.req("S7")
def test_a_killed_supervisor_leaves_nobody_and_comes_back_by_its_journal(
    tmp_path: Path, plane: FakeControlPlane
) -> None:
    """kill -9: children die with it; the next start obeys the journal's table with no candidate's weight,
    without a control plane, until one says so again."""
    plane.publish(table(1, route(1, previous=V3.key)))
    gateway = Gateway(tmp_path / "gw", plane.url).start()
    try:
        gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=500_000)
        until(lambda: briefly(replayed(gateway)) == live(gateway), "the journal has the live table")
        status = gateway.status()
        pids = [f["pid"] for f in status["fronts"]] + [v["pid"] for v in status["versions"]]
        plane.stop()
        gateway.kill()
        until(lambda: all(gone(pid) for pid in pids), "the children are gone")

        gateway.start()
        assert live(gateway) == [("churn", "churn:1.0.0", "churn:2.0.0", 0)]
        assert briefly(replayed(gateway)) == live(gateway)
        gateway.wait_ready("churn:1.0.0")
        assert {gateway.predict([[1, 1]], X_User=f"u{n}").version for n in range(30)} == {"churn:1.0.0"}
        plane.start()
        gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=500_000)

        assert gateway.stop() == 0  # a clean stop trusts itself
        plane.stop()
        gateway.start()
        assert live(gateway) == [("churn", "churn:1.0.0", "churn:2.0.0", 500_000)]
    finally:
        gateway.close()


@pytest.mark.req("S6", "S7")
def test_a_restart_does_not_make_callers_new(tmp_path: Path, plane: FakeControlPlane) -> None:
    """Killed or stopped in the middle of a rollout, the gateway knows whom it has counted; when that is lost
    it says so and counts nobody as new. When the rollout is over nothing of it is left."""
    plane.publish(table(1, route(1)))
    gateway = Gateway(tmp_path / "gw", plane.url).start()
    told = 0

    def new_callers() -> int:
        return sum(t.stable.new_callers + t.candidate.new_callers for t in plane.ticks["churn", "ro_1"])

    def meet(*users: int) -> None:
        nonlocal told
        gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=500_000)
        for user in users:
            assert gateway.predict([[1, 1]], X_User=f"u{user}").status == 200
        told += len(users)
        until(lambda: _requests(plane) == told, "all requests are reported")

    try:
        meet(*range(20))
        gateway.kill()
        gateway.start()
        meet(*range(25))
        assert gateway.stop() == 0
        gateway.start()
        meet(*range(30))
        assert new_callers() == 30
        assert gateway.status()["callers_lost"] == []
        gateway.kill()
        for path in (gateway.data / "callers").iterdir():
            path.unlink()
        gateway.start()
        assert gateway.status()["callers_lost"] == ["churn"]
        assert "nobody counts as new" in gateway.log()
        meet(*range(40))
        assert new_callers() == 30
        plane.publish(table(2, Route(endpoint="churn", epoch=Epoch(1, 2), stable=V1.key)))
        gateway.wait_route("churn", candidate=None)
        until(lambda: not (gateway.data / "callers").exists(), "nothing is left to remember")
    finally:
        gateway.close()


@pytest.mark.req("S7")
def test_killed_at_any_moment_the_journal_is_what_was_obeyed(tmp_path: Path, plane: FakeControlPlane) -> None:
    """kill -9 while the weight is being moved again and again: each start obeys a table that was
    published."""
    published = [0]
    plane.publish(table(1, route(1, candidate_ppm=0)))
    gateway = Gateway(tmp_path / "gw", plane.url).start()
    stop = threading.Event()

    def move() -> None:
        number = 1
        while not stop.is_set():
            number += 1
            published.append(number * 100)
            plane.publish(table(number, route(number, candidate_ppm=number * 100)))
            time.sleep(0.004)

    mover = threading.Thread(target=move)
    try:
        gateway.wait_route("churn", candidate="churn:2.0.0")
        mover.start()
        for pause_s in (0.35, 0.42, 0.51):
            gateway.wait_ready("churn:2.0.0")
            time.sleep(pause_s)
            gateway.kill()
            found = briefly(replayed(gateway))
            assert found[0][3] in published
            gateway.start()
        until(lambda: live(gateway)[0][3] > 0, "the control plane's word counts again")
        stop.set()
        mover.join()
        gateway.wait_route("churn", candidate_ppm=published[-1])
        until(lambda: briefly(replayed(gateway)) == live(gateway), "journal and table agree")
    finally:
        stop.set()
        gateway.close()


@pytest.mark.req("S7", "S8")
def test_a_rollback_by_hand_needs_no_control_plane(tmp_path: Path, plane: FakeControlPlane) -> None:
    """One local command under load: fronts swap, nothing more goes to the candidate, the time is measured; a
    second one goes to the former version, a third says that there is nothing left."""
    plane.publish(table(1, route(1, previous=V3.key)))
    with running(tmp_path / "gw", plane.url, fronts=2) as gateway:
        gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=500_000)
        gateway.wait_ready("churn:3.0.0")
        plane.stop()
        with Load(gateway) as load:
            began = time.monotonic()
            result = control.call(gateway.data, "rollback", endpoint="churn", actor="alice", reason="errors")
            whole_ms = (time.monotonic() - began) * 1_000
            done = len(load.answers)
            load.settled(answers=8)
        after = load.answers[done + 4 :]  # at most one a caller was under way
        assert len(after) > 20
        assert {answer.version for _, answer in after} == {"churn:1.0.0"}
        assert load.statuses.keys() == {200}
        assert (result["version"], result["loading"]) == ("churn:1.0.0", False)
        assert result["removed_version"] == "churn:2.0.0"
        assert result["fronts"] == 2
        assert result["journaled"]
        assert 0 < result["took_ms"] <= whole_ms
        assert result["last_sent_ms"] <= result["took_ms"]
        assert briefly(replayed(gateway)) == live(gateway) == [("churn", "churn:1.0.0", None, 0)]

        second = control.call(gateway.data, "rollback", endpoint="churn")
        assert second["version"] == "churn:3.0.0"
        assert gateway.predict([[7, 0]]).version == "churn:3.0.0"
        with pytest.raises(errors.NoRollbackTarget):
            control.call(gateway.data, "rollback", endpoint="churn")
        plane.start()
        until(lambda: len(plane.rollbacks) == 2, "both are reported")
        assert [r.cause for r in plane.rollbacks] == ["errors", "local command"]
        until(lambda: gateway.status()["rollbacks_waiting"] == 0, "and taken over")


@pytest.mark.req("S7")
def test_a_silent_controller_loses_its_lease(tmp_path: Path, plane: FakeControlPlane) -> None:
    """While the control plane answers nothing happens; when it falls silent the candidate is taken back."""
    plane.publish(table(1, route(1, lease_s=4.0)))
    with running(tmp_path / "gw", plane.url) as gateway:
        gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=500_000)
        time.sleep(4.5)
        assert live(gateway)[0][3] == 500_000
        plane.stop()
        gateway.wait_route("churn", candidate=None)
        until(lambda: gateway.status()["rollbacks_waiting"] == 1, "the rollback waits to be told")
        plane.start()
        until(lambda: bool(plane.rollbacks), "the rollback is reported")
        assert plane.rollbacks[0].cause == "lease lost"


@pytest.mark.req("S1")
def test_a_gateway_starts_from_its_cache_alone(tmp_path: Path, plane: FakeControlPlane) -> None:
    """With the control plane gone a restart serves from journal and cache; a changed file is refused and
    fetched anew as soon as somebody has it."""
    plane.publish(table(1, Route(endpoint="churn", epoch=Epoch(1, 1), stable=V1.key)))
    gateway = Gateway(tmp_path / "gw", plane.url, options="backoff_max_s=0.3").start()
    try:
        gateway.wait_route("churn", stable="churn:1.0.0")
        plane.stop()
        assert gateway.stop() == 0
        gateway.start()
        until(lambda: gateway.request("GET", "/ready").status == 200, "ready without a control plane")
        assert gateway.predict([[1, 1]]).json() == {"outputs": [2.0]}
        gateway.stop()

        path = next((tmp_path / "gw" / "cache" / "versions").glob("*/model.onnx"))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.chmod(0o600)
        path.write_bytes(data)
        gateway.start()
        until(
            lambda: "was changed on this machine" in str(gateway.version("churn:1.0.0").get("error")),
            "refused",
        )
        ready = gateway.request("GET", "/ready")
        assert (ready.status, ready.json()["waiting_for"]) == (503, ["churn"])
        plane.start()
        until(lambda: gateway.request("GET", "/ready").status == 200, "fetched anew")
        assert gateway.predict([[1, 1]]).json() == {"outputs": [2.0]}
    finally:
        gateway.close()


@pytest.mark.long
@pytest.mark.req("S6")
def test_lost_replies_and_an_absent_control_plane_lose_no_count(
    tmp_path: Path, plane: FakeControlPlane
) -> None:
    """Reports are sent again until they are answered, and counted once."""
    plane.publish(table(1, route(1)))
    with running(tmp_path / "gw", plane.url) as gateway:
        gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=500_000)
        plane.fail_next_replies = 3
        for number in range(30):
            gateway.predict([[1, 1]], X_User=f"u{number}")
        time.sleep(1.5)
        plane.stop()
        for number in range(30, 60):
            gateway.predict([[1, 1]], X_User=f"u{number}")
        time.sleep(1.5)
        plane.start()
        until(lambda: _requests(plane) == 60, "all requests are reported")
        time.sleep(1.5)
        assert _requests(plane) == 60
        until(lambda: gateway.status()["ticks_waiting"] <= 1, "nothing waits any more")


def _requests(plane: FakeControlPlane) -> int:
    return sum(t.stable.requests + t.candidate.requests for t in plane.ticks.get(("churn", "ro_1"), []))


@pytest.mark.req("S7")
def test_a_full_disk_stops_forward_moves_and_not_the_way_back(
    tmp_path: Path, plane: FakeControlPlane
) -> None:
    """When the journal cannot be written a step forward waits; a rollback is done and says that it is not
    written."""
    plane.publish(table(1, route(1)))
    gateway = Gateway(tmp_path / "gw", plane.url).start()
    try:
        gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=500_000)
        assert gateway.process is not None
        size = (gateway.data / "journal.jsonl").stat().st_size
        _limit_files(gateway.process.pid, size + 10)
        plane.publish(table(2, route(2, candidate_ppm=900_000)))
        until(lambda: not gateway.status()["journal_ok"], "the journal is full")
        assert live(gateway)[0][3] == 500_000
        result = control.call(gateway.data, "rollback", endpoint="churn", reason="it is bad")
        assert (result["journaled"], result["version"]) == (False, "churn:1.0.0")
        assert "COULD NOT BE WRITTEN" in gateway.log()
        assert live(gateway) == [("churn", "churn:1.0.0", None, 0)]
        _limit_files(gateway.process.pid, -1)
        until(lambda: gateway.status()["journal_ok"], "the journal is made up for")
        assert briefly(replayed(gateway)) == live(gateway)
    finally:
        gateway.close()


def _limit_files(pid: int, size: int) -> None:
    """No file of that process may grow beyond this (-1: any size)."""
    import resource

    hard = resource.RLIM_INFINITY
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size if size >= 0 else hard, hard))


@pytest.mark.hostile("exhaustion")
@pytest.mark.req("S1")
def test_too_many_requests_are_turned_away_at_once(tmp_path: Path, plane: FakeControlPlane) -> None:
    """Beyond the queue's bound callers get 503 with Retry-After immediately, and those inside get their
    answers."""
    slow = {"model.joblib": models.misbehaving(models.SLOW)}
    spec = models.spec(slow, "7.0.0")
    plane.blobs.update(models.blobs(slow))
    one = Route(endpoint="churn", epoch=Epoch(1, 1), stable=spec.key)
    plane.publish(RoutingTable(number=1, routes=(one,), versions=(spec,)))
    with running(tmp_path / "gw", plane.url, options="queue_max=2") as gateway:
        gateway.wait_route("churn", stable="churn:7.0.0")
        with Load(gateway, callers=5) as load:
            until(lambda: load.statuses[200] >= 3 and load.statuses[503] > 10, "some are turned away")
        assert load.statuses[200] >= 3
        assert load.statuses[503] > 10
        shed = next(answer for _, answer in load.answers if answer.status == 503)
        assert (shed.headers["retry-after"], shed.json()["code"]) == ("1", "OVERLOADED")
        text = gateway.request("GET", "/metrics").body.decode()
        assert 'modelkeep_gateway_shed_total{endpoint="churn"}' in text


@pytest.mark.req("S7")
def test_a_damaged_journal_is_refused_with_what_to_do(tmp_path: Path, plane: FakeControlPlane) -> None:
    """A flipped byte in the middle is not obeyed; the way on is named, and works."""
    plane.publish(table(1, route(1)))
    gateway = Gateway(tmp_path / "gw", plane.url).start()
    gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=500_000)
    gateway.stop()
    path = gateway.data / "journal.jsonl"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    try:
        with pytest.raises(AssertionError, match="Move the file away"):
            gateway.start()
        gateway.close()
        path.unlink()
        gateway.start()
        gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=500_000)
    finally:
        gateway.close()


def test_reports_say_how_every_version_stands(tmp_path: Path, plane: FakeControlPlane) -> None:
    """Phase, crashes and memory of each version, and what each route really does."""
    plane.publish(table(1, route(1)))
    with running(tmp_path / "gw", plane.url, options="name='gw-test', url='http://gw.example:80'") as gateway:
        gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=500_000)
        until(
            lambda: any(r.routes and r.routes[0].candidate_ppm for r in plane.reports),
            "a report of the route",
        )
        report = plane.reports[-1]
        assert (report.gateway, report.url, report.table) == ("gw-test", "http://gw.example:80", 1)
        assert {v.phase for v in report.versions} == {VersionPhase.READY}
        assert all(v.memory_bytes > 10_000_000 for v in report.versions)
        assert {v.key for v in report.versions} == {V1.key, V2.key}
        assert (
            json.loads(json.dumps(gateway.status()))["pid"] == gateway.process.pid
            if gateway.process
            else False
        )
