"""What somebody may send to the MLflow door to hold it up, or to have run in another's browser.

What single requests may not hold is in `test_mlflow_bad_input`, what paths and sources may not be in
`test_mlflow_artifacts` and `test_mlflow_registry`.
"""

import json
import os
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.web.inprocess import InProcess
from tests.web.processes import Server, serving

pytestmark = pytest.mark.req("T2", "U4")

API = "/api/2.0/mlflow"
FILES = "/api/2.0/mlflow-artifacts/artifacts"
SLOW = 2_000
"""Uploads that trickle at the same time."""
LENGTH = 300_000
"""What each of them says it will send."""


def asked(server: Server, method: str, path: str, body: bytes | None = None) -> Any:
    """One request of its own; the document of its answer."""
    headers = {"Content-Type": "application/json"} if body is not None and method == "POST" else {}
    request = urllib.request.Request(server.url + path, body, headers, method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return json.loads(answer.read())


def new_root(server: Server) -> str:
    """The artifact address of a new run."""
    made = asked(server, "POST", f"{API}/runs/create", b'{"experiment_id": "0"}')
    return f"0/{made['run']['info']['run_id']}/artifacts"


def parts_in(folder: Path) -> list[Path]:
    """What is left of uploads that were not finished."""
    return list(folder.rglob("uploads/*"))


@pytest.mark.long
@pytest.mark.network
@pytest.mark.hostile("exhaustion")
def test_thousands_of_slow_uploads_hold_nobody_up(tmp_path: Path) -> None:
    """Two thousand uploads that trickle: others are served as before, a fast upload among them too, memory
    stays where it was, and of those that go away nothing is left."""
    with serving(tmp_path / "data") as server:
        root = new_root(server)
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        slow: list[socket.socket] = []
        for number in range(SLOW):
            connection = server.connect()
            target = f"PUT {FILES}/{root}/slow{number} HTTP/1.1"
            head = "\r\n".join((target, "Host: localhost", f"Content-Length: {LENGTH}", "", ""))
            connection.sendall(head.encode() + b"x" * 1_000)
            slow.append(connection)
        for connection in slow[:100]:
            connection.sendall(b"x" * 1_000)
        began = time.monotonic()
        data = os.urandom(20_000_000)
        asked(server, "PUT", f"{FILES}/{root}/fast", data)
        for _ in range(20):
            asked(server, "GET", f"{API}/experiments/get?experiment_id=0")
        took = time.monotonic() - began
        grown = process.memory_info().rss - before
        for connection in slow:
            connection.close()
        deadline = time.monotonic() + 60
        while (process.num_fds() > 200 or parts_in(tmp_path)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [each["path"] for each in asked(server, "GET", f"{FILES}?path={root}")["files"]] == ["fast"]
        assert process.num_fds() < 200, "each connection is let go of"
        left = parts_in(tmp_path)
    assert not left, "half a file is no file"
    assert took < 45, "those that trickle are cut off after 60 s"
    assert grown < 150_000_000


ACTIVE = {
    "page.html": b"<script>alert(1)</script>",
    "picture.svg": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    "MLmodel": b"flavors: {python_function: {loader_module: '<img src=x onerror=alert(1)>'}}",
    "<img src=x onerror=alert(1)>.txt": b"x",
}


@pytest.mark.hostile("active-content")
@pytest.mark.parametrize("name", ACTIVE)
def test_what_a_browser_would_run_is_bytes(client: InProcess, name: str) -> None:
    """Pages, pictures and names that a browser would run are handed out as bytes to be saved, whichever
    address they are asked at."""
    made = client("POST", f"{API}/runs/create", {"experiment_id": "0"})
    run_id = made.json()["run"]["info"]["run_id"]
    place = f"{FILES}/0/{run_id}/artifacts/{urllib.request.quote(name)}"
    assert client("PUT", place, raw=ACTIVE[name]).status == 200
    for reply in (
        client("GET", place),
        client("GET", "/get-artifact", query={"run_id": run_id, "path": name}),
        client("GET", f"/ajax-api/2.0/mlflow/get-artifact?run_id={run_id}&path={urllib.request.quote(name)}"),
    ):
        if reply.status == 404:
            continue  # not every address is there
        assert reply.body == ACTIVE[name]
        assert reply.headers["content-type"] == "application/octet-stream"
        assert reply.headers["content-disposition"].startswith("attachment; filename*=UTF-8''")
        assert "<" not in reply.headers["content-disposition"]
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
