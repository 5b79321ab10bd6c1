"""A real gateway from its first table to its last answer: all doors, sticky canaries, counts that come home,
pages, and a stop that leaves nothing behind. Its control plane is a small fake on this machine."""

import concurrent.futures
import http.client
import signal
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from modelkeep.core import errors
from modelkeep.core.observation import SideCounts, VersionPhase
from modelkeep.core.routing import CANDIDATE_PLACE, Epoch, Route, RoutingTable, VersionSpec, place
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.serving import control
from modelkeep.serving.main import open_listeners, run_gateway
from modelkeep.serving.options import GatewayOptions
from tests.serving import models
from tests.serving.control_plane import FakeControlPlane, until
from tests.serving.gateways import Gateway, gone, running

pytestmark = [pytest.mark.journey, pytest.mark.network]

ONE, TWO = ({"model.onnx": models.linear_onnx(slope)} for slope in (1.0, 2.0))
V1, V2 = models.spec(ONE, "1.0.0"), models.spec(TWO, "2.0.0")
FRAIL = {"model.joblib": models.misbehaving(models.RAISES_ABOVE_100)}
V3 = models.spec(FRAIL, "3.0.0")


def stable_route(seq: int = 1, spec: VersionSpec = V1) -> Route:
    """Everybody on one version."""
    return Route(endpoint="churn", epoch=Epoch(1, seq), stable=spec.key)


def canary(seq: int, candidate: VersionSpec = V2, ppm: int = 500_000) -> Route:
    """A rollout keyed by X-User."""
    return Route(
        endpoint="churn",
        epoch=Epoch(1, seq),
        stable=V1.key,
        candidate=candidate.key,
        candidate_ppm=ppm,
        salt="salt",
        rollout="ro_1",
        key_header="X-User",
        key_field="/customer/id",
    )


@pytest.fixture
def plane() -> Iterator[FakeControlPlane]:
    """A control plane with the files of these tests."""
    with FakeControlPlane() as made:
        made.blobs.update({**models.blobs(ONE), **models.blobs(TWO), **models.blobs(FRAIL)})
        yield made


def publish(plane: FakeControlPlane, number: int, *routes: Route) -> None:
    """A table of these routes."""
    named = frozenset().union(*(route.keys for route in routes)) if routes else frozenset()
    versions = tuple(spec for spec in (V1, V2, V3) if spec.key in named)
    plane.publish(RoutingTable(number=number, routes=routes, versions=versions))


def counted(plane: FakeControlPlane, rollout: str | None) -> tuple[SideCounts, SideCounts]:
    """All that was reported of a rollout: stable, candidate."""
    stable, candidate = SideCounts(), SideCounts()
    for tick in plane.ticks.get(("churn", rollout), []):
        stable, candidate = stable.plus(tick.stable), candidate.plus(tick.candidate)
    return stable, candidate


@pytest.mark.req("S1")
def test_every_door_and_every_page(tmp_path: Path, plane: FakeControlPlane) -> None:
    """Before the first table nothing is ready; after it the same model answers by all three protocols."""
    with running(tmp_path / "gw", plane.url) as gateway:
        assert gateway.request("GET", "/health").status == 200
        ready = gateway.request("GET", "/ready")
        assert (ready.status, ready.json()["waiting_for"]) == (503, ["the first routing table"])
        publish(plane, 1, stable_route())
        gateway.wait_route("churn", stable="churn:1.0.0")
        assert gateway.request("GET", "/ready").status == 200

        answer = gateway.predict([{"age": 40, "income": 2}], X_Request_Id="abc-1")
        assert (answer.status, answer.json()) == (200, {"outputs": [42.0]})
        assert answer.headers["x-request-id"] == "abc-1"
        assert answer.version == "churn:1.0.0"
        assert "x-modelkeep-rollout" not in answer.headers
        made_up = gateway.predict([[1, 1]], X_Request_Id="bad id\twith tab").headers["x-request-id"]
        assert made_up != "bad id\twith tab"
        tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [40, 2]}
        for path in ("/v2/models/churn/infer", "/v2/models/churn/versions/1.0.0/infer"):
            answer = gateway.request("POST", path, {"id": "7", "inputs": [tensor]})
            assert answer.json()["outputs"][0]["data"] == [42.0]
            assert (answer.json()["id"], answer.json()["model_name"]) == ("7", "churn")
        split = {"dataframe_split": {"columns": ["income", "age"], "data": [[2, 40]]}}
        assert gateway.request("POST", "/endpoints/churn/invocations", split).json() == {
            "predictions": [42.0]
        }
        csv = gateway.request(
            "POST", "/endpoints/churn/invocations", b"age,income\n40,2\n", {"Content-Type": "text/csv"}
        )
        assert csv.json() == {"predictions": [42.0]}

        assert gateway.request("GET", "/v2").json()["name"] == "modelkeep"
        assert gateway.request("GET", "/v2/health/live").status == 200
        assert gateway.request("GET", "/v2/health/ready").status == 200
        described = gateway.request("GET", "/v2/models/churn").json()
        assert described["versions"] == ["1.0.0"]
        assert described["inputs"][0] == {"name": "age", "datatype": "FP32", "shape": [-1]}
        assert described["parameters"] == {"devices": ["cpu"]}
        where = 'modelkeep_gateway_version_device{version="churn:1.0.0",device="cpu"} 1'
        assert where in gateway.request("GET", "/metrics").body.decode()
        assert gateway.version("churn:1.0.0")["workers"][0]["device"] == "cpu"
        assert gateway.request("GET", "/v2/models/churn/ready").json()["ready"]
        assert gateway.request("GET", "/v2/models/churn/versions/1.0.0/ready").json()["ready"]
        listed = gateway.request("GET", "/endpoints").json()
        assert listed["endpoints"][0]["versions"][0]["version"] == "churn:1.0.0"


@pytest.mark.hostile("wrong-kinds")
@pytest.mark.req("S1", "S6")
def test_what_is_asked_wrongly_is_said_clearly(tmp_path: Path, plane: FakeControlPlane) -> None:
    """Unknown names, methods, types, sizes and rows: problem+json with a stable code, and counted against
    nobody."""
    publish(plane, 1, stable_route())
    with running(tmp_path / "gw", plane.url, options="body_max_bytes=2000") as gateway:
        gateway.wait_route("churn", stable="churn:1.0.0")
        good = {"inputs": [[1, 1]]}
        path = "/endpoints/churn/predict"
        cases = [
            ("POST", "/endpoints/nothing/predict", good, {}, 404, "ENDPOINT_NOT_FOUND"),
            ("POST", "/v2/models/churn/versions/9.9.9/infer", good, {}, 404, "VERSION_NOT_FOUND"),
            ("GET", "/v2/models/nothing", None, {}, 404, "ENDPOINT_NOT_FOUND"),
            ("GET", "/", None, {}, 404, "NOT_FOUND"),
            ("GET", "/admin/../endpoints", None, {}, 404, "NOT_FOUND"),
            ("GET", path, None, {}, 405, "METHOD"),
            ("DELETE", "/endpoints", None, {}, 405, "METHOD"),
            ("POST", path, b"", {}, 400, "MALFORMED_BODY"),
            ("POST", path, b"{", {}, 400, "MALFORMED_BODY"),
            ("POST", path, good, {"Content-Type": "text/html"}, 415, "MALFORMED_BODY"),
            ("POST", path, b"x" * 2001, {}, 413, "LIMIT_EXCEEDED"),
            ("POST", path, {"inputs": [{"age": 999, "income": 1}]}, {}, 422, "INVALID_INPUT"),
        ]
        for method, where, body, headers, status, code in cases:
            answer = gateway.request(method, where, body, headers)
            assert (answer.status, answer.json()["code"]) == (status, code), (method, where, answer.body)
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["request_id"]
            assert answer.json()["error"] == answer.json()["detail"]  # the Open Inference Protocol's word
        row = gateway.request("POST", path, {"inputs": [[1, 1], [999, 1]]}).json()
        assert row["details"] == {"row": 1, "field": "age"}
        until(
            lambda: counted(plane, None)[0].requests == 3, "the refusals that reached the version are counted"
        )
        stable = counted(plane, None)[0]
        assert (stable.refused, stable.errors) == (3, 0)


@pytest.mark.req("S2", "S3", "S6")
def test_a_canary_is_sticky_and_its_counts_come_home(tmp_path: Path, plane: FakeControlPlane) -> None:
    """Each caller keeps its side over requests, fronts and weights; requests and callers are reported exactly
    once."""
    publish(plane, 1, canary(1))
    users = [f"user-{number}" for number in range(60)]
    with running(tmp_path / "gw", plane.url, fronts=2) as gateway:
        gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=500_000)
        seen: dict[str, set[str]] = {user: set() for user in users}
        for _ in range(3):
            for user in users:
                answer = gateway.predict([[10, 0]], X_User=user)
                assert answer.headers["x-modelkeep-rollout"] == "ro_1"
                assert answer.json() == {"outputs": [10.0 if answer.version == "churn:1.0.0" else 20.0]}
                seen[user].add(str(answer.version))
        for user, versions in seen.items():
            at = place(canary(1), user.encode())
            assert versions == {"churn:2.0.0" if at == CANDIDATE_PLACE else "churn:1.0.0"}
        for user in users[:10]:  # by a member of the body as well, which no version minds
            for door in ("endpoints/churn/predict", "endpoints/churn/invocations"):
                body = {"customer": {"id": user}, "inputs": [[10, 0]]}
                answer = gateway.request("POST", f"/{door}", body)
                assert (answer.status, {answer.version}) == (200, seen[user]), answer.body
        on_candidate = sum(place(canary(1), user.encode()) == CANDIDATE_PLACE for user in users)
        until(lambda: sum(s.requests for s in counted(plane, "ro_1")) == 200, "all requests are reported")
        stable, candidate = counted(plane, "ro_1")
        again = 2 * sum(place(canary(1), user.encode()) == CANDIDATE_PLACE for user in users[:10])
        asked = 3 * on_candidate + again
        assert (candidate.requests, candidate.new_callers) == (asked, on_candidate)
        assert (stable.requests, stable.new_callers) == (200 - asked, 60 - on_candidate)
        assert (candidate.errors, candidate.callers_first_error) == (0, 0)

        publish(plane, 2, canary(2, ppm=900_000))
        gateway.wait_route("churn", candidate_ppm=900_000)
        for user in users:
            version = str(gateway.predict([[10, 0]], X_User=user).version)
            assert version == "churn:2.0.0" or "churn:2.0.0" not in seen[user]
        until(lambda: sum(s.requests for s in counted(plane, "ro_1")) == 260, "and those after the step")
        assert sum(side.new_callers for side in counted(plane, "ro_1")) >= 60
        ticks = plane.ticks["churn", "ro_1"]
        assert [tick.number for tick in ticks] == list(range(ticks[0].number, ticks[0].number + len(ticks)))
        for tick in ticks:
            weight = 500_000 if tick.epoch == Epoch(1, 1) else 900_000
            before_it_was_loaded = tick.candidate_ppm == 0 and tick.candidate.requests == 0
            assert tick.candidate_ppm == weight or before_it_was_loaded
        pinned = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [10, 0]}]}
        before = sum(s.requests for s in counted(plane, "ro_1"))
        for semver, value in (("1.0.0", 10.0), ("2.0.0", 20.0)):
            answer = gateway.request("POST", f"/v2/models/churn/versions/{semver}/infer", pinned)
            assert answer.json()["outputs"][0]["data"] == [value]
        time.sleep(1.3)
        assert sum(s.requests for s in counted(plane, "ro_1")) == before


@pytest.mark.req("S1", "S2")
def test_versions_of_equal_bytes_answer_each_as_itself(tmp_path: Path, plane: FakeControlPlane) -> None:
    """A canary to a version with the same files and a narrower signature, and another model with the same
    files beside it: three workers, three labels, three signatures, three accounts, one copy of the bytes."""
    narrow = (Field(name="age", type=DataType.FLOAT32, minimum=0, maximum=50), models.AGE_INCOME[1])
    wide = (Field(name="age", type=DataType.FLOAT32), models.AGE_INCOME[1])
    patched = models.spec(ONE, "1.0.1", signature=Signature(inputs=narrow, outputs=models.SCORE))
    other = models.spec(ONE, "1.0.0", model="risk", signature=Signature(inputs=wide, outputs=models.SCORE))
    assert len({V1.digest, patched.digest, other.digest}) == 1
    beside = Route(endpoint="risk", epoch=Epoch(1, 1), stable=other.key)
    plane.publish(RoutingTable(number=1, routes=(canary(1, patched), beside), versions=(V1, patched, other)))
    with running(tmp_path / "gw", plane.url) as gateway:
        gateway.wait_route("churn", stable="churn:1.0.0", candidate="churn:1.0.1", candidate_ppm=500_000)
        gateway.wait_route("risk", stable="risk:1.0.0")
        assert len({version["pid"] for version in gateway.status()["versions"]}) == 3
        blobs = list((gateway.data / "cache" / "blobs").iterdir())
        assert [blob.stat().st_nlink for blob in blobs] == [4], "one copy, linked by three versions"
        seen: set[str | None] = set()
        for number in range(40):
            user = f"u{number}"
            candidate = place(canary(1, patched), user.encode()) == CANDIDATE_PLACE
            answers = [gateway.predict([[age, 0]], X_User=user) for age in (40, 120)]
            label = "churn:1.0.1" if candidate else "churn:1.0.0"
            assert [answer.version for answer in answers] == [label, label]
            assert [answer.status for answer in answers] == [200, 422 if candidate else 200]
            seen.add(label)
        assert seen == {"churn:1.0.0", "churn:1.0.1"}
        answer = gateway.predict([[200, 0]], endpoint="risk")
        assert (answer.status, answer.version) == (200, "risk:1.0.0")
        until(lambda: sum(s.requests for s in counted(plane, "ro_1")) == 80, "both sides are counted")
        stable, candidate_side = counted(plane, "ro_1")
        assert (stable.refused, candidate_side.refused) == (0, candidate_side.requests // 2)
        undone = control.call(gateway.data, "rollback", endpoint="churn")
        assert (undone["version"], undone["removed_version"]) == ("churn:1.0.0", "churn:1.0.1")
        assert {gateway.predict([[120, 0]], X_User=f"u{n}").version for n in range(10)} == {"churn:1.0.0"}
    assert (plane.rollbacks[0].stable, plane.rollbacks[0].removed) == (V1.key, patched.key)


@pytest.mark.req("S6")
def test_a_candidate_that_raises_is_counted_and_nobody_notices(
    tmp_path: Path, plane: FakeControlPlane
) -> None:
    """Its errors go to its account with what was said; the callers get stable's answer, which says whose it
    is."""
    publish(plane, 1, canary(1, V3, ppm=1_000_000))
    with running(tmp_path / "gw", plane.url) as gateway:
        gateway.wait_route("churn", candidate="churn:3.0.0", candidate_ppm=1_000_000)
        for user in range(10):
            good = gateway.predict([[50, 0]], X_User=f"u{user}")
            bad = gateway.predict([[120, 7]], X_User=f"u{user}")
            assert (good.status, good.version) == (200, "churn:3.0.0")
            assert (bad.status, bad.version, bad.json()) == (200, "churn:1.0.0", {"outputs": [127.0]})
        until(lambda: counted(plane, "ro_1")[1].requests == 20, "all are counted")
        stable, candidate = counted(plane, "ro_1")
        assert (candidate.errors, candidate.callers_first_error, candidate.new_callers) == (10, 10, 10)
        assert (candidate.new_callers_failed, stable.requests) == (0, 0)
        texts = {text for tick in plane.ticks["churn", "ro_1"] for text in tick.errors_seen}
        assert any("IndexError" in text for text in texts)
        metrics = gateway.request("GET", "/metrics").body.decode()
        assert 'requests_total{endpoint="churn",version="churn:3.0.0",outcome="error"} 10' in metrics
        assert 'modelkeep_gateway_retries_total{endpoint="churn"} 10' in metrics
        # On stable itself the same mistake is the caller's to see.
        publish(plane, 2, Route(endpoint="churn", epoch=Epoch(1, 2), stable=V3.key))
        gateway.wait_route("churn", stable="churn:3.0.0")
        answer = gateway.predict([[120, 7]])
        assert (answer.status, answer.json()["code"]) == (500, "MODEL_FAILED")
        assert "IndexError" in answer.json()["detail"]


@pytest.mark.req("S6")
def test_metrics_keep_prometheus_rules(tmp_path: Path, plane: FakeControlPlane) -> None:
    """Names, help, types, cumulative buckets; labels hold only what the table names, whatever callers
    send."""
    publish(plane, 1, canary(1))
    with running(tmp_path / "gw", plane.url, fronts=2) as gateway:
        gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=500_000)
        for number in range(40):
            gateway.predict([[10, 0]], X_User=f"user-{number}")
            gateway.request("GET", f"/nowhere/{number}")
        all_told = 'modelkeep_gateway_http_responses_total{status="404"} 40'
        until(lambda: all_told in gateway.request("GET", "/metrics").body.decode(), "both fronts have told")
        until(lambda: sum(s.requests for s in counted(plane, "ro_1")) == 40, "all requests are counted")
        answer = gateway.request("GET", "/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        text = answer.body.decode()
        parsed = pytest.importorskip("prometheus_client.parser").text_string_to_metric_families(text)
        families = {family.name: family for family in parsed}
        requests = families["modelkeep_gateway_requests"].samples
        assert sum(sample.value for sample in requests if sample.labels["outcome"] == "ok") == 40
        assert {sample.labels["version"] for sample in requests} == {"churn:1.0.0", "churn:2.0.0"}
        latency = families["modelkeep_gateway_request_duration_seconds"].samples
        for version in ("churn:1.0.0", "churn:2.0.0"):
            mine = [sample for sample in latency if sample.labels["version"] == version]
            buckets = [sample.value for sample in mine if sample.name.endswith("_bucket")]
            assert buckets == sorted(buckets)
            assert buckets[-1] == next(sample.value for sample in mine if sample.name.endswith("_count"))
        assert "nowhere" not in text
        assert "user-1" not in text
        statuses = {s.labels["status"]: s.value for s in families["modelkeep_gateway_http_responses"].samples}
        assert statuses["404"] == 40


@pytest.mark.hostile("foreign-models")
@pytest.mark.req("S1")
def test_a_version_that_cannot_be_loaded_never_gets_weight(tmp_path: Path, plane: FakeControlPlane) -> None:
    """Garbage, a missing file, outputs that cannot fit, one that prints and exits: told as failed with why;
    stable serves on."""
    noise = "[__import__('os').write(fd, b'noise' * 100_000) for fd in (1, 2)]"
    exits = {"model.joblib": models.misbehaving(models.ECHO, f"[{noise}, __import__('sys').exit(3)]")}
    garbage, other = {"model.onnx": b"garbage"}, {"model.onnx": models.linear_onnx(6.0)}
    missing = {"model.onnx": b"nobody has this"}
    misfit_outputs = Signature(inputs=models.AGE_INCOME, outputs=(Field(name="score", type=DataType.STRING),))
    cases = [
        (models.spec(garbage, "4.0.0"), "cannot load"),
        (models.spec(missing, "5.0.0"), "No such file"),
        (models.spec(other, "6.0.0", signature=misfit_outputs), "do not fit the signature"),
        (models.spec(exits, "7.0.0"), "SystemExit"),
    ]
    plane.blobs.update({**models.blobs(garbage), **models.blobs(other), **models.blobs(exits)})
    publish(plane, 1, stable_route())
    with running(tmp_path / "gw", plane.url) as gateway:
        gateway.wait_route("churn", stable="churn:1.0.0")
        for number, (spec, text) in enumerate(cases, 2):
            route = canary(number, spec)
            plane.publish(RoutingTable(number=number, routes=(route,), versions=(V1, spec)))

            def failures(key: str = spec.key) -> list[str | None]:
                found = [version for report in plane.reports for version in report.versions]
                return [v.error for v in found if v.key == key and v.phase is VersionPhase.FAILED]

            until(lambda: bool(failures()), f"{spec.label} is reported as failed")
            assert text in str(failures()[-1])
            assert gateway.status()["routes"][0]["candidate"] is None
            assert {gateway.predict([[1, 1]], X_User=f"u{n}").version for n in range(5)} == {"churn:1.0.0"}
        publish(plane, 9, canary(9))
        gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=500_000)


@pytest.mark.req("S1")
def test_a_token_is_sent_and_renewed_from_its_file(tmp_path: Path) -> None:
    """The gateway reads its token anew for each call, so that it can be exchanged while it runs."""
    token = tmp_path / "token"
    token.write_text("wrong\n")
    with FakeControlPlane(token="right") as plane:
        plane.blobs.update(models.blobs(ONE))
        publish(plane, 1, stable_route())
        with running(tmp_path / "gw", plane.url, options=f"token_file=Path({str(token)!r})") as gateway:
            until(lambda: plane.refused > 2, "the wrong token is refused")
            token.write_text("right\n")
            gateway.wait_route("churn", stable="churn:1.0.0")


@pytest.mark.req("S1")
def test_a_stop_answers_what_came_and_leaves_nothing(tmp_path: Path, plane: FakeControlPlane) -> None:
    """SIGTERM: requests under way are answered, processes and sockets are gone, the exit code is 0, counts
    came home."""
    gate = models.Gate(tmp_path / "gate")
    slow = {"model.joblib": models.misbehaving(models.held_at(tmp_path / "gate"))}
    spec = models.spec(slow, "7.0.0")
    plane.blobs.update(models.blobs(slow))
    route = Route(endpoint="churn", epoch=Epoch(1, 1), stable=spec.key)
    plane.publish(RoutingTable(number=1, routes=(route,), versions=(spec,)))
    gateway = Gateway(tmp_path / "gw", plane.url).start()
    try:
        gateway.wait_route("churn", stable="churn:7.0.0")
        status = gateway.status()
        pids = [front["pid"] for front in status["fronts"]] + [
            version["pid"] for version in status["versions"]
        ]
        idle = socket.create_connection(("127.0.0.1", gateway.port))
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            under_way = [pool.submit(gateway.predict, [[1, 0]]) for _ in range(3)]
            until(lambda: gateway.in_flight() == 3, "all three are under way")
            assert gateway.process is not None
            gateway.process.send_signal(signal.SIGTERM)
            until(lambda: gateway.status()["draining"], "it is about to stop")
            gate.open()
            assert gateway.stop() == 0
            assert [future.result().json() for future in under_way] == [{"outputs": [1.0]}] * 3
        assert idle.recv(100) == b""
        idle.close()
    finally:
        if gateway.process is not None:
            gateway.close()
    assert all(gone(pid) for pid in pids)
    assert counted(plane, None)[0].requests == 3
    left = {path.name for path in (tmp_path / "gw").iterdir()}
    assert left == {"cache", "journal.jsonl", "gateway.lock", "gateway-id"}
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=2).request("GET", "/health")
    with pytest.raises(errors.GatewayUnavailable, match="modelkeep gateway"):
        control.call(tmp_path / "gw", "status")


def test_a_port_or_a_folder_that_is_taken_is_said(tmp_path: Path, plane: FakeControlPlane) -> None:
    """Both are one sentence with what to do, before anything is started."""
    with running(tmp_path / "gw", plane.url) as gateway:
        with pytest.raises(errors.PortInUse, match="choose another"):
            run_gateway(GatewayOptions(data=tmp_path / "other", port=gateway.port))
        with pytest.raises(errors.FolderInUse, match="--data"):
            run_gateway(GatewayOptions(data=tmp_path / "gw", port=0))
    with pytest.raises(errors.InvalidSetting, match="Cannot listen"):
        open_listeners("203.0.113.9", 0, 1)


def test_a_folder_with_a_long_path_works(tmp_path: Path, plane: FakeControlPlane) -> None:
    """Sockets have short paths; a deep data folder gets a private temporary one for them, removed at the
    end."""
    data = tmp_path / ("deep" * 20) / ("deeper" * 10)
    publish(plane, 1, stable_route())
    with running(data, plane.url) as gateway:
        gateway.wait_route("churn", stable="churn:1.0.0")
        folder = Path((data / "control.path").read_text()).parent
        assert len(str(folder)) < 90
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "control.sock").stat().st_mode & 0o777 == 0o600
        assert gateway.predict([[1, 1]]).status == 200
    assert not folder.exists()


def test_draining_says_no_and_serves_on(tmp_path: Path, plane: FakeControlPlane) -> None:
    """`drain` turns /ready off for whoever balances the load, and takes nothing from callers; `reload` asks
    anew."""
    publish(plane, 1, stable_route())
    with running(tmp_path / "gw", plane.url) as gateway:
        gateway.wait_route("churn", stable="churn:1.0.0")
        polls = plane.polls
        assert control.call(gateway.data, "reload") == {"reloading": True}
        until(lambda: plane.polls > polls, "the table is asked for anew", timeout_s=15)  # a poll waits for 20
        assert control.call(gateway.data, "drain") == {"draining": True}
        until(lambda: gateway.request("GET", "/ready").status == 503, "not ready any more")
        assert gateway.predict([[1, 1]]).status == 200
        with pytest.raises(errors.Invalid, match="no command"):
            control.call(gateway.data, "explode")
        with pytest.raises(errors.RouteNotFound):
            control.call(gateway.data, "rollback", endpoint="nothing")


def test_the_clock_of_ticks_is_about_a_second(tmp_path: Path, plane: FakeControlPlane) -> None:
    """A rollout without traffic is reported every second, so that silence and absence differ."""
    publish(plane, 1, canary(1))
    with running(tmp_path / "gw", plane.url) as gateway:
        gateway.wait_route("churn", candidate_ppm=500_000)  # a move ends a tick early
        before = gateway.status()["routes"]

        def spans() -> list[timedelta]:
            ticks = plane.ticks.get(("churn", "ro_1"), [])
            return [tick.ended_at - tick.started_at for tick in ticks if tick.candidate_ppm == 500_000]

        until(lambda: len(spans()) >= 4, "ticks come without traffic")
        assert gateway.status()["routes"] == before
    assert min(spans()[1:-1]) >= timedelta(seconds=0.9)
    assert min(spans()) < timedelta(seconds=3), "the machine may be busy for one, and not for all"
