"""Callers of a real gateway who hang up, who cannot wait, who speak in bytes, who miss the signature, who are
pages in a browser, and who ask what they may ask: what nobody waits for is not computed, and no version is
blamed for it."""

import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelkeep.core.routing import Epoch, Route, RoutingTable, Strictness
from tests.serving import models
from tests.serving.control_plane import FakeControlPlane, until
from tests.serving.gateways import Gateway, running

pytestmark = [pytest.mark.journey, pytest.mark.network]

LIMIT = 8 << 30
"""Of a worker's memory: more than it needs, and less than what asks for it gets."""
ONNX = {"model.onnx": models.linear_onnx(2.0)}
V2 = models.spec(ONNX, "2.0.0", model="quick")
APP = "https://app.example.com"
BODY = json.dumps({"inputs": [[10, 0]]}).encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the gateway is, and the gate of the slow version."""
    return tmp_path_factory.mktemp("callers")


@pytest.fixture(scope="module")
def plane(folder: Path) -> Iterator[FakeControlPlane]:
    """A control plane with a slow and a quick version."""
    held = models.held_at(folder / "gate")
    greedy = f"{held} if (x[:, 0] <= 100).all() else bytearray({LIMIT})"
    slow = {"model.joblib": models.misbehaving(greedy)}
    spec = models.spec(slow, "1.0.0")
    routes = (
        Route(endpoint="churn", epoch=Epoch(1, 1), stable=spec.key),
        Route(endpoint="quick", epoch=Epoch(1, 1), stable=V2.key),
        Route(endpoint="easy", epoch=Epoch(1, 1), stable=V2.key, schema=Strictness.LENIENT),
    )
    with FakeControlPlane() as made:
        for files in (slow, ONNX):
            made.blobs.update(models.blobs(files))
        made.publish(RoutingTable(number=1, routes=routes, versions=(spec, V2)))
        yield made


@pytest.fixture(scope="module")
def gateway(folder: Path, plane: FakeControlPlane) -> Iterator[Gateway]:
    """A gateway that serves both."""
    options = f"cors_origins=({APP!r},), worker_memory_bytes={LIMIT}"
    with running(folder / "gw", plane.url, options=options) as made:
        made.wait_route("churn", stable="churn:1.0.0")
        made.wait_route("quick", stable="quick:2.0.0")
        yield made


def sample(gateway: Gateway, name: str, **labels: str) -> float:
    """The sum of a family's samples with these labels."""
    page = gateway.request("GET", "/metrics").body.decode()
    found = re.findall(rf"^modelkeep_gateway_{name}\{{(.*)\}} (\S+)$", page, re.M)
    wanted = {f'{label}="{value}"' for label, value in labels.items()}
    return sum(float(value) for inner, value in found if wanted <= set(inner.split(",")))


class Busy:
    """Keeps the slow version busy by one request, for as long as the block lasts."""

    def __init__(self, gateway: Gateway, folder: Path) -> None:
        self._gate = models.Gate(folder / "gate")
        self._thread = threading.Thread(target=lambda: gateway.predict([[1, 0]]))

    def __enter__(self) -> None:
        self._gate.close()
        self._thread.start()
        until(self._gate.reached, "the version is busy")

    def __exit__(self, *_: object) -> None:
        self._gate.open()
        self._thread.join()


def blamed(plane: FakeControlPlane) -> int:
    """Errors that the slow version was given in the reports."""
    return sum(tick.stable.errors for tick in plane.ticks.get(("churn", None), []))


@pytest.mark.req("S2")
def test_who_hangs_up_is_not_computed_for(gateway: Gateway, plane: FakeControlPlane, folder: Path) -> None:
    """Five callers close while the version is busy: their requests leave the queue, counted as refused and
    not as errors."""
    before = sample(gateway, "requests_total", version="churn:1.0.0", outcome="error")
    with Busy(gateway, folder):
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", gateway.port)) as caller:
                line = b"POST /endpoints/churn/predict HTTP/1.1\r\nHost: x\r\n"
                caller.sendall(line + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY))
        until(lambda: gateway.in_flight() == 6, "all five have come, and gone")
    until(lambda: sample(gateway, "not_computed_total", why="cancelled") == 5, "all five are dropped")
    assert sample(gateway, "http_responses_total", status="499") == 5
    assert sample(gateway, "requests_total", version="churn:1.0.0", outcome="error") == before
    assert blamed(plane) == 0


@pytest.mark.req("S2")
def test_a_caller_says_how_long_it_waits(gateway: Gateway, plane: FakeControlPlane, folder: Path) -> None:
    """X-Request-Timeout-Ms: what cannot be begun in time is not computed and gets 504; the version is not
    blamed. What is no number of milliseconds is refused."""
    with Busy(gateway, folder):
        answer = gateway.predict([[10, 0]], X_Request_Timeout_Ms="50")
    assert (answer.status, answer.json()["code"]) == (504, "TIMED_OUT")
    until(lambda: sample(gateway, "not_computed_total", why="expired") == 1, "it was not computed")
    assert blamed(plane) == 0
    assert gateway.predict([[10, 0]], X_Request_Timeout_Ms="20000").status == 200
    assert gateway.predict([[10, 0]], X_Request_Timeout_Ms="999999999").status == 200
    for wrong in ("0", "-5", "1.5", "soon", "1" * 12):
        answer = gateway.predict([[10, 0]], X_Request_Timeout_Ms=wrong)
        assert (answer.status, answer.json()["code"]) == (400, "MALFORMED_REQUEST"), wrong


@pytest.mark.req("S1")
def test_tensors_come_and_go_as_bytes(gateway: Gateway) -> None:
    """The binary extension over HTTP: the header says where the JSON ends, in both directions; one that lies
    is refused."""
    blob = struct.pack("<4f", 10, 1, 20, 2)
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": len(blob)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    answer = gateway.request("POST", "/v2/models/quick/infer", head + blob, headers)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers["inference-header-content-length"])
    told = json.loads(answer.body[:length])
    assert told["outputs"] == [
        {"name": "score", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    ]
    assert struct.unpack("<2f", answer.body[length:]) == (21.0, 42.0)
    for wrong in (str(len(head) + len(blob) + 1), "x", "-1"):
        lying = {**headers, "Inference-Header-Content-Length": wrong}
        assert gateway.request("POST", "/v2/models/quick/infer", head + blob, lying).status == 400
    plain = {"Content-Type": "application/octet-stream"}
    assert gateway.request("POST", "/v2/models/quick/infer", head + blob, plain).status == 415
    extensions = gateway.request("GET", "/v2").json()["extensions"]
    assert "binary_tensor_data" in extensions


@pytest.mark.req("S1")
def test_an_endpoint_describes_itself(gateway: Gateway) -> None:
    """OpenAPI made of the signature, with names, types and ranges; for endpoints that there are."""
    answer = gateway.request("GET", "/endpoints/quick/openapi.json")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    told = answer.json()
    assert told["openapi"].startswith("3.1")
    assert told["info"]["version"] == "2.0.0"
    body = told["paths"]["/endpoints/quick/predict"]["post"]["requestBody"]["content"]["application/json"]
    row = body["schema"]["properties"]["inputs"]["oneOf"][0]["items"]["oneOf"][0]
    assert row["properties"]["age"] == {"type": "number", "format": "float", "minimum": 0, "maximum": 150}
    assert row["required"] == ["age", "income"]
    assert gateway.request("GET", "/endpoints/none/openapi.json").status == 404
    assert gateway.request("POST", "/endpoints/quick/openapi.json", {}).status == 405


@pytest.mark.req("S1")
def test_other_origins_are_let_in_by_nobody(gateway: Gateway) -> None:
    """No page of another origin may read an answer: nothing about origins is ever said."""
    for method, path in (("OPTIONS", "/endpoints/quick/predict"), ("POST", "/endpoints/quick/predict")):
        answer = gateway.request(method, path, {"inputs": [[1, 2]]}, {"Origin": "https://other.example"})
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.req("S1")
@pytest.mark.hostile("wrong-kinds")
def test_a_lenient_endpoint_makes_fit_what_a_strict_one_refuses(
    gateway: Gateway, plane: FakeControlPlane
) -> None:
    """Both count it by field, for monitoring and for the control plane; a caller's own words are no label."""
    amiss = [{"age": "40", "income": 2, "red<script>": 1}]
    refused = gateway.predict(amiss, endpoint="quick")
    assert (refused.status, refused.json()["details"]["field"]) == (422, "age")
    assert gateway.predict(amiss, endpoint="easy").json() == {"outputs": [82.0]}
    beyond = gateway.predict([{"age": "forty", "income": 2}], endpoint="easy")
    assert (beyond.status, beyond.json()["details"]["field"]) == (422, "age")

    def counted(field: str, outcome: str) -> float:
        return sample(gateway, "input_violations_total", version="quick:2.0.0", field=field, outcome=outcome)

    until(lambda: counted("age", "refused") == 2, "refusals are counted by field")
    until(lambda: counted("(unknown)", "fitted") == 1, "what was made to fit is counted as well")
    assert counted("age", "fitted") == 1
    assert "script" not in gateway.request("GET", "/metrics").body.decode()

    def told() -> dict[str, int]:
        report = plane.reports[-1] if plane.reports else None
        found = [version for version in report.versions if version.key == V2.key] if report else []
        return found[0].misses.fitted if found else {}

    until(lambda: told() == {"age": 1, "(unknown)": 1}, "the control plane is told")


@pytest.mark.req("S1")
@pytest.mark.hostile("other-origins")
def test_pages_of_named_origins_may_ask_and_no_others(gateway: Gateway) -> None:
    """A browser is told before it asks; a page of another origin is refused, whatever it asks, and no answer
    lets it read anything. Callers that are no browsers notice nothing."""
    path = "/endpoints/quick/predict"
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    told = gateway.request("OPTIONS", path, None, {"Origin": APP, **asks})
    assert (told.status, told.body) == (204, b"")
    assert told.headers["access-control-allow-origin"] == APP
    assert told.headers["access-control-allow-headers"] == "content-type"
    answer = gateway.request("POST", path, BODY, {"Origin": APP})
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, APP)
    refusal = gateway.request("POST", path, b"{", {"Origin": APP})
    assert (refusal.status, refusal.headers["vary"]) == (400, "Origin")
    for method, more in (("OPTIONS", asks), ("POST", {}), ("POST", {"Content-Type": "text/plain"})):
        foreign = gateway.request(method, path, BODY, {"Origin": "https://evil.example", **more})
        assert (foreign.status, foreign.json()["code"]) == (403, "OTHER_ORIGIN")
        assert not [name for name in foreign.headers if name.startswith("access-control")]
    feedback = gateway.request("POST", "/endpoints/quick/feedback", b"[]", {"Origin": "null"})
    assert feedback.status == 403
    own = gateway.request("POST", path, BODY, {"Origin": f"http://127.0.0.1:{gateway.port}"})
    assert own.status == gateway.request("POST", path, BODY).status == 200
    for name, status in (("rebound.example", 403), ("localhost", 200)):
        page = {"Origin": f"http://{name}:{gateway.port}", "Host": f"{name}:{gateway.port}"}
        assert gateway.request("POST", path, BODY, page).status == status


@pytest.mark.req("S2")
@pytest.mark.hostile("foreign-models")
def test_a_model_that_asks_for_all_memory_gets_its_limit_and_no_more(gateway: Gateway) -> None:
    """The request that made it ask fails; the worker goes on."""
    answer = gateway.predict([[120, 0]])
    assert (answer.status, answer.json()["code"]) == (500, "MODEL_FAILED")
    assert "MemoryError" in answer.json()["detail"]
    assert gateway.predict([[10, 0]]).json() == {"outputs": [10.0]}
