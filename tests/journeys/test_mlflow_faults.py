"""The MLflow door under faults: a real server that is killed again and again while runs log to it.

What is looked at is what clients were told: whatever was acknowledged is there afterwards, a batch is whole
or not at all, a file that is listed is the file that was sent, and a version has its files. That webhooks
lose nothing is `test_webhook_faults`' part, imports `test_move_from_mlflow`'s.
"""

import contextlib
import hashlib
import http.client
import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.web.processes import Server

pytestmark = [pytest.mark.journey, pytest.mark.req("T1", "T2", "T4", "I9")]

API = "/api/2.0/mlflow/"
FILES = "/api/2.0/mlflow-artifacts/artifacts/"
JSON = "application/json"
WRITERS = 4
LOAD_S = (0.1, 0.6)
"""How long the writers go on before the server is killed."""


class Caller:
    """One connection to a server; no retry hides what happened."""

    def __init__(self, server: Server) -> None:
        self._connection = http.client.HTTPConnection(*server.address, timeout=60)

    def raw(self, method: str, path: str, data: bytes | None = None, *, of: str | None = None) -> bytes:
        """The body of an answer, which is no refusal; `of` is the kind of data that is sent."""
        self._connection.request(method, path, data, {"Content-Type": of} if of else {})
        answer = self._connection.getresponse()
        found = answer.read()
        assert answer.status == 200, (path, answer.status, found)
        return found

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        return json.loads(self.raw(method, API + path, data, of=JSON if data is not None else None))

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


class Writer:
    """One client that logs to a run of its own, and keeps what it was told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.run = ""
        self.batches: set[int] = set()
        self.files: set[str] = set()
        self.versions: set[str] = set()

    def work(self, server: Server) -> None:
        """Log, send files and register, until the server is gone."""
        caller = Caller(server)
        with contextlib.suppress(OSError, http.client.HTTPException):
            made = caller("POST", "runs/create", {"experiment_id": "0", "run_name": self.name})
            self.run = made["run"]["info"]["run_id"]
            caller("POST", "registered-models/create", {"name": self.name})
            for number in range(10_000):
                caller("POST", "runs/log-batch", self.batch(number))
                self.batches.add(number)
                path = f"f{number}/data.bin"
                caller.raw("PUT", f"{FILES}0/{self.run}/artifacts/{path}", self.content(path))
                self.files.add(path)
                if number % 3 == 0:
                    source = {"name": self.name, "source": f"runs:/{self.run}/f{number}"}
                    version = caller("POST", "model-versions/create", source)["model_version"]
                    self.versions.add(version["version"])
        caller.close()

    def batch(self, number: int) -> dict[str, Any]:
        """Two points, a param and a tag that belong together."""
        points = [{"key": f"m{number}{half}", "value": number, "timestamp": 1, "step": 0} for half in "ab"]
        one = [{"key": f"k{number}", "value": "v"}]
        return {"run_id": self.run, "metrics": points, "params": one, "tags": one}

    def content(self, path: str) -> bytes:
        """The bytes of a file: the same each time, small ones and some larger."""
        seed = hashlib.sha256(f"{self.name}/{path}".encode()).digest()
        return seed * (seed[0] * (40 if seed[1] < 32 else 1) + 1)


@pytest.mark.long
@pytest.mark.network
def test_a_killed_server_has_lost_nothing_that_was_logged(tmp_path: Path) -> None:
    """Killed while clients log batches, send files and register versions of them."""
    dice, writers = random.Random(3), []
    server = Server(tmp_path).ready()
    try:
        for life in range(4):
            here = [Writer(f"w{life}-{number}") for number in range(WRITERS)]
            threads = [threading.Thread(target=writer.work, args=(server,)) for writer in here]
            for thread in threads:
                thread.start()
            while sum(len(writer.versions) for writer in here) <= WRITERS and threads[0].is_alive():
                time.sleep(0.001)
            time.sleep(dice.uniform(*LOAD_S))
            server.kill()
            for thread in threads:
                thread.join(60)
            writers += here
            server = Server(tmp_path).ready()
        caller = Caller(server)
        for writer in writers:
            check(writer, caller)
        chain = json.loads(caller.raw("GET", "/api/v1/audit/verification"))
        assert chain["intact"], chain
        whole = json.loads(caller.raw("POST", "/api/v1/fsck", b"{}", of=JSON))
        assert whole["ok"], whole
        caller.close()
    finally:
        server.stop()
    assert sum(len(writer.versions) for writer in writers) > len(writers), "they were under load"


def check(writer: Writer, caller: Caller) -> None:
    """What a client was told is there, and nothing is there by half."""
    if not writer.run:
        return
    data = caller("GET", f"runs/get?run_id={writer.run}")["run"]["data"]
    keys = {kind: {each["key"] for each in data.get(kind, ())} for kind in ("metrics", "params", "tags")}
    whole = {int(key[1:]) for key in keys["params"]}
    assert writer.batches <= whole
    assert keys["tags"] - {"mlflow.runName"} == keys["params"]
    assert keys["metrics"] == {f"m{number}{half}" for number in whole for half in "ab"}
    root = f"0/{writer.run}/artifacts"
    folders = json.loads(caller.raw("GET", f"{FILES[:-1]}?path={root}")).get("files", ())
    listed = {f"{each['path']}/data.bin" for each in folders}
    assert writer.files <= listed
    for path in listed:
        assert caller.raw("GET", f"{FILES}{root}/{path}") == writer.content(path)
    if not writer.batches:
        return
    found = caller("GET", f"model-versions/search?filter=name%3D'{writer.name}'").get("model_versions", ())
    assert writer.versions <= {each["version"] for each in found}
    for version in found:
        folder = version["source"].rpartition("/")[2]
        place = f"{FILES}registered-models/default/{writer.name}/{version['version']}/data.bin"
        assert caller.raw("GET", place) == writer.content(f"{folder}/data.bin")
