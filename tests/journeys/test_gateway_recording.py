"""A real gateway with a prediction log, feedback and a shadow: what is written down and compared, and that
no caller ever notices. Its control plane is a small fake on this machine."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from modelkeep.core.observation import PairCounts
from modelkeep.core.recording import Privacy, Treatment
from modelkeep.core.routing import (
    CANDIDATE_PLACE,
    WHOLE_PPM,
    Epoch,
    Route,
    RoutingTable,
    VersionSpec,
    place,
)
from modelkeep.serving import control
from modelkeep.serving.labels import read_labels
from modelkeep.serving.prediction_log import PARQUET, STREAM, endpoint_folder, read
from tests.serving import models
from tests.serving.control_plane import FakeControlPlane, until
from tests.serving.gateways import Gateway, Load, gone, kill, running

pytestmark = [pytest.mark.journey, pytest.mark.network]

ONE, TWO = ({"model.onnx": models.linear_onnx(slope)} for slope in (1.0, 2.0))
HANGING = {"model.joblib": models.misbehaving(models.HANGS_ABOVE_100)}
RAISING = {"model.joblib": models.misbehaving(models.RAISES_ABOVE_100)}
V1, V2 = models.spec(ONE, "1.0.0"), models.spec(TWO, "2.0.0")
V3, V4 = models.spec(HANGING, "3.0.0"), models.spec(RAISING, "4.0.0")


@pytest.fixture
def plane() -> Iterator[FakeControlPlane]:
    """A control plane with the files of these tests."""
    with FakeControlPlane() as made:
        for files in (ONE, TWO, HANGING, RAISING):
            made.blobs.update(models.blobs(files))
        yield made


def publish(plane: FakeControlPlane, number: int, route: Route) -> None:
    """A table of this route."""
    versions = tuple(spec for spec in (V1, V2, V3, V4) if spec.key in route.keys)
    plane.publish(RoutingTable(number=number, routes=(route,), versions=versions))


def route(seq: int = 1, **more: Any) -> Route:
    """Everybody on one version."""
    return Route(endpoint="churn", epoch=Epoch(1, seq), stable=V1.key, **more)


def recorder(gateway: Gateway) -> dict[str, Any]:
    """How the recorder stands."""
    return gateway.status()["recorder"] or {"pid": 0, "rows": 0, "starts": 0, "lost": 0}


def wait_recorder(gateway: Gateway) -> None:
    """Until all fronts have reached it. Which of two takes a connection is a toss, so many are made."""
    until(lambda: recorder(gateway)["pid"], "there is a recorder")
    good = {"request_id": "nobody", "label": 0}
    path = "/endpoints/churn/feedback"
    tosses = 24 if len(gateway.status()["fronts"]) > 1 else 1
    until(
        lambda: all(gateway.request("POST", path, good).status == 200 for _ in range(tosses)),
        "it is reached",
    )


def wait_rows(gateway: Gateway, rows: int) -> None:
    """Until so many rows are written."""
    until(lambda: recorder(gateway)["rows"] >= rows, f"{rows} rows are written; {recorder(gateway)}")


def rows_of(gateway: Gateway) -> list[dict[str, Any]]:
    """What a reader finds."""
    return [row for part in read(gateway.data, "churn") for row in part.to_pylist()]


@pytest.mark.req("S11")
def test_what_is_answered_is_written_down_as_privacy_lets_it(tmp_path: Path, plane: FakeControlPlane) -> None:
    """Both sides of a canary with their weights, refusals, all rows of a batch; a dropped field nowhere, a
    hashed one not as itself; and when the gateway stops, plain Parquet is left."""
    privacy = Privacy(fields={"age": Treatment.HASH, "income": Treatment.DROP})
    split = route(
        candidate=V2.key, candidate_ppm=250_000, rollout="ro_1", salt="s", key_header="X-User",
        log_ppm=WHOLE_PPM, privacy=privacy,
    )  # fmt: skip
    publish(plane, 1, split)
    users = [f"u{number}" for number in range(30)]
    with running(tmp_path / "gw", plane.url, fronts=2) as gateway:
        gateway.wait_route("churn", candidate_ppm=250_000)
        wait_recorder(gateway)
        for user in users:
            assert gateway.predict([[10, 77]], X_User=user, X_Request_Id=user).status == 200
        assert gateway.predict([[10, 77], [20, 77]], X_User="u0", X_Request_Id="two").status == 200
        assert gateway.predict([[999, 77]], X_User="u0", X_Request_Id="bad").status == 422
        wait_rows(gateway, 33)
        found = {(row["request_id"], row["row"]): row for row in rows_of(gateway)}
        assert len(found) == 33
        for user in users:
            row = found[user, 0]
            candidate = place(split, user.encode()) == CANDIDATE_PLACE
            assert (row["side"], row["propensity"]) == (
                ("candidate", 0.25) if candidate else ("stable", 0.75)
            )
            assert row["version"] == ("churn:2.0.0" if candidate else "churn:1.0.0")
            assert row["output.score"] == (97.0 if candidate else 87.0)
            assert (row["status"], row["rollout"]) == (200, "ro_1")
            assert 0 < row["latency_ms"] < 30_000
        assert found["bad", 0]["status"] == 422
        assert found["bad", 0]["output.score"] is None
        assert found["two", 0]["input.age"] == found["u1", 0]["input.age"] != found["two", 1]["input.age"]
        assert "input.income" not in found["u0", 0]
        metrics = gateway.request("GET", "/metrics").body.decode()
        assert "modelkeep_gateway_log_rows_total 33" in metrics
        pid = recorder(gateway)["pid"]
        assert gateway.stop() == 0
        assert gone(pid)
    folder = endpoint_folder(gateway.data, "churn")
    assert not list(folder.glob(f"*{STREAM}"))
    assert list(folder.glob(f"*{PARQUET}"))
    assert len(rows_of(gateway)) == 33


@pytest.mark.req("S11")
def test_a_sample_is_the_same_on_every_front(tmp_path: Path, plane: FakeControlPlane) -> None:
    """Whether a request is logged depends on its id alone, so about its share is, and again the same ones."""
    publish(plane, 1, route(log_ppm=400_000))
    with running(tmp_path / "gw", plane.url, fronts=2) as gateway:
        gateway.wait_route("churn", stable="churn:1.0.0")
        wait_recorder(gateway)
        for _ in range(2):
            for number in range(150):
                gateway.predict([[1, 1]], X_Request_Id=f"id-{number}")
        gateway.stop()
    logged = [row["request_id"] for row in rows_of(gateway)]
    assert sorted(logged) == sorted([*set(logged)] * 2)
    assert 30 <= len(set(logged)) <= 90


@pytest.mark.req("S11")
def test_feedback_comes_late_and_as_often_as_it_likes(tmp_path: Path, plane: FakeControlPlane) -> None:
    """News, repetition and correction are told apart, also after a restart; without a log none is taken."""
    publish(plane, 1, route())
    path = "/endpoints/churn/feedback"
    with running(tmp_path / "gw", plane.url) as gateway:
        gateway.wait_route("churn", stable="churn:1.0.0")
        refused = gateway.request("POST", path, {"request_id": "a", "label": 1})
        assert (refused.status, refused.json()["code"]) == (409, "INVALID_STATE")
        publish(plane, 2, route(2, log_ppm=WHOLE_PPM))
        until(lambda: gateway.status()["recorder"] is not None, "the recorder is started when it is wanted")
        wait_recorder(gateway)
        asked = gateway.predict([[1, 1]]).headers["x-request-id"]
        one = {"request_id": asked, "label": True}
        assert gateway.request("POST", path, one).json() == {
            "received": 1, "new": 1, "changed": 0, "unchanged": 0,
        }  # fmt: skip
        assert gateway.request("POST", path, one).json()["unchanged"] == 1
        several = {
            "labels": [{**one, "label": False}, {"request_id": "other", "label": {"y": 2.5}, "row": 1}]
        }
        assert gateway.request("POST", path, several).json() == {
            "received": 2, "new": 1, "changed": 1, "unchanged": 0,
        }  # fmt: skip
        for body, status, code in (
            (b"{", 400, "MALFORMED_BODY"),
            ({"labels": []}, 413, "LIMIT_EXCEEDED"),
            ({"request_id": "x y", "label": 1}, 422, "INVALID"),
        ):
            answer = gateway.request("POST", path, body)
            assert (answer.status, answer.json()["code"]) == (status, code)
        assert gateway.request("GET", path).status == 405
        assert gateway.request("POST", "/endpoints/nothing/feedback", one).status == 404
        gateway.stop()
        gateway.start()
        until(lambda: recorder(gateway)["pid"], "there is a recorder again")
        wait_recorder(gateway)
        assert gateway.request("POST", path, several).json()["unchanged"] == 2
    held = {(stored.request_id, stored.row): stored.label for stored in read_labels(gateway.data, "churn")}
    assert (held[asked, 0], held["other", 1]) == (False, {"y": 2.5})


@pytest.mark.long
@pytest.mark.req("S11", "S5")
def test_a_killed_recorder_costs_callers_nothing(tmp_path: Path, plane: FakeControlPlane) -> None:
    """Under load the recorder is killed twice: every caller is answered, what was flushed is readable at any
    moment, and the next one goes on."""
    publish(plane, 1, route(log_ppm=WHOLE_PPM))
    with running(tmp_path / "gw", plane.url, fronts=2) as gateway:
        gateway.wait_route("churn", stable="churn:1.0.0")
        wait_recorder(gateway)
        with Load(gateway) as load:
            for starts in (1, 2):
                wait_rows(gateway, 20)
                kill(recorder(gateway)["pid"])
                rows_of(gateway)
                until(lambda n=starts: recorder(gateway)["starts"] == n + 1, "another one is started")
                wait_recorder(gateway)
            load.settled()
        assert set(load.statuses) == {200}
        assert not load.broken
        wait_rows(gateway, 1)
        before = len(rows_of(gateway))
        assert before >= 40
        gateway.predict([[1, 1]], X_Request_Id="after")
        until(lambda: "after" in {row["request_id"] for row in rows_of(gateway)}, "it goes on")


def pairs(plane: FakeControlPlane) -> PairCounts:
    """All that was compared."""
    total = PairCounts(version=V2.key)
    for tick in [tick for ticks in plane.ticks.values() for tick in ticks]:
        if tick.pairs is not None:
            total = total.plus(tick.pairs)
    return total


def shadowed(seq: int, spec: VersionSpec, **more: Any) -> Route:
    """Everybody on one version, and a copy of everything to another."""
    return route(seq, shadow=spec.key, shadow_ppm=WHOLE_PPM, **more)


@pytest.mark.req("S5")
def test_a_shadow_is_compared_and_answers_nobody(tmp_path: Path, plane: FakeControlPlane) -> None:
    """Copies go to another version, its answers go home as pairs and into the log as its own, and every
    caller has the stable version's."""
    publish(plane, 1, shadowed(1, V2, log_ppm=WHOLE_PPM))
    with running(tmp_path / "gw", plane.url, fronts=2) as gateway:
        gateway.wait_route("churn", stable="churn:1.0.0")
        gateway.wait_ready("churn:2.0.0")
        wait_recorder(gateway)
        for number in range(40):
            answer = gateway.predict([[0 if number % 2 else 10, 5]], X_Request_Id=f"id-{number}")
            assert (answer.status, answer.version) == (200, "churn:1.0.0")
        assert gateway.predict([[999, 5]]).status == 422  # the caller's own mistake is nobody's pair
        until(lambda: pairs(plane).pairs + pairs(plane).dropped >= 40, f"all are compared; {pairs(plane)}")
        found = pairs(plane)
        assert found.compared == found.pairs == found.values
        assert found.disagreements == pytest.approx(found.pairs / 2, abs=found.dropped + 1)
        assert found.difference_max == 10.0
        assert found.difference_sum == 10.0 * found.disagreements
        assert (found.only_shadow_failed, found.only_stable_failed, found.both_failed) == (0, 0, 0)
        wait_rows(gateway, 41 + found.pairs)
        by_side: dict[str, dict[str, Any]] = {"stable": {}, "shadow": {}}
        for row in rows_of(gateway):
            by_side[row["side"]][row["request_id"]] = row
        assert len(by_side["shadow"]) == found.pairs
        for request_id, row in by_side["shadow"].items():
            assert row["version"] == "churn:2.0.0"
            assert row["input.age"] == by_side["stable"][request_id]["input.age"]
            assert row["output.score"] == 2 * row["input.age"] + 5

        def requests() -> int:
            return sum(tick.stable.requests for ticks in plane.ticks.values() for tick in ticks)

        until(lambda: requests() >= 41, "all are reported")
        assert requests() == 41, "a copy is no request of anybody"


@pytest.mark.req("S5")
def test_a_shadow_that_fails_fails_alone(tmp_path: Path, plane: FakeControlPlane) -> None:
    """What it raises is counted as its failure; the caller has had the answer long before."""
    publish(plane, 1, shadowed(1, V4))
    with running(tmp_path / "gw", plane.url) as gateway:
        gateway.wait_route("churn", stable="churn:1.0.0")
        gateway.wait_ready("churn:4.0.0")
        wait_recorder(gateway)

        def told() -> bool:
            assert gateway.predict([[120, 1]]).json() == {"outputs": [121.0]}
            return pairs(plane).pairs >= 10

        until(told, "ten are told")
        found = pairs(plane)
        assert (found.only_shadow_failed, found.compared) == (found.pairs, 0)


@pytest.mark.long
@pytest.mark.req("S5")
def test_a_shadow_that_hangs_slows_nobody(tmp_path: Path, plane: FakeControlPlane) -> None:
    """It answers nothing for a minute: callers are answered as fast as before, its copies stay few, the rest
    is dropped and counted, and those that were too late are its failures."""
    publish(plane, 1, shadowed(1, V3))
    with running(tmp_path / "gw", plane.url) as gateway:
        gateway.wait_route("churn", stable="churn:1.0.0")
        gateway.wait_ready("churn:3.0.0")
        wait_recorder(gateway)
        took_s = []
        for _ in range(100):
            began = time.monotonic()
            assert gateway.predict([[120, 1]]).version == "churn:1.0.0"
            took_s.append(time.monotonic() - began)
        slow = [each for each in took_s if each > 2.5]
        assert len(slow) < 3, (
            "each of the first 16 would take 5 s if it waited; the machine may stall for one"
        )
        until(lambda: pairs(plane).pairs > 0, "what was too late is told")
        assert pairs(plane).only_shadow_failed == pairs(plane).pairs <= 16
        metrics = gateway.request("GET", "/metrics").body.decode()
        assert 'modelkeep_gateway_shadow_dropped_total{endpoint="churn"}' in metrics


@pytest.mark.req("S5", "S8")
def test_a_rollback_leaves_no_shadow_and_keeps_the_log(tmp_path: Path, plane: FakeControlPlane) -> None:
    """After it nothing is copied any more; what callers meet is still written down."""
    both = structs.replace(
        shadowed(1, V4, log_ppm=WHOLE_PPM), candidate=V2.key, candidate_ppm=500_000, rollout="ro_1", salt="s"
    )
    publish(plane, 1, both)
    with running(tmp_path / "gw", plane.url) as gateway:
        gateway.wait_route("churn", candidate_ppm=500_000)
        wait_recorder(gateway)
        control.call(gateway.data, "rollback", endpoint="churn")
        gateway.wait_route("churn", candidate=None)
        before = recorder(gateway)["rows"]
        assert gateway.predict([[10, 1]], X_Request_Id="after").version == "churn:1.0.0"
        wait_rows(gateway, before + 1)
        (row,) = [row for row in rows_of(gateway) if row["request_id"] == "after"]
        assert (row["side"], row["propensity"]) == ("stable", 1.0)
