"""The server under faults, as real processes: killed at random moments, raced by many, on a full disk.

What is looked at is what a caller was told: whatever was acknowledged is there afterwards, nothing is there
by half, and the chain of events verifies. How the store and the blobs manage that has tests of its own.
"""

import http.client
import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.web.processes import Server, serving
from tests.web.world import digest_of

pytestmark = [pytest.mark.journey, pytest.mark.req("I9", "G8")]

V1 = "/api/v1"
LOAD_S = (0.03, 0.35)
"""How long the writers go on before the server is killed, for some hundreds of writes at most."""
WRITES_MIN = 11
"""Writes that are acknowledged before that time begins, however slow the machine is."""
JSON = {"Content-Type": "application/json"}


class Refused(Exception):
    """An answer that is an error: the status and the code."""


class Caller:
    """One connection to a server, and nothing more: no retry hides what happened."""

    def __init__(self, server: Server) -> None:
        host, port = server.address
        self._connection = http.client.HTTPConnection(host, port, timeout=60)

    def __call__(
        self, method: str, address: str, /, body: Any = None, *, raw: bytes | None = None, **query: Any
    ) -> Any:
        """The answer's JSON. Raises Refused, or OSError and HTTPException when there is none."""
        data = json.dumps(body).encode() if body is not None else raw
        target = V1 + address + (f"?{urlencode(query)}" if query else "")
        self._connection.request(method, target, data, JSON if body is not None else {})
        answer = self._connection.getresponse()
        found = answer.read()
        if answer.status >= 400:
            raise Refused(answer.status, json.loads(found)["code"])
        return json.loads(found)

    def close(self) -> None:
        self._connection.close()

    def register(self, model: str, data: bytes) -> dict[str, Any]:
        """Register a version with one file."""
        file = {"path": "model.bin", "size_bytes": len(data), "digest": digest_of(data)}
        draft = self("POST", f"/models/default/{model}/drafts", {"files": [file]})["id"]
        self("PUT", f"/drafts/{draft}/file", raw=data, path="model.bin", offset=0)
        version: dict[str, Any] = self("POST", f"/drafts/{draft}/finalize")["version"]
        return version


@contextmanager
def calling(server: Server) -> Iterator[Caller]:
    """A connection as long as the block lasts."""
    caller = Caller(server)
    try:
        yield caller
    finally:
        caller.close()


class Ledger:
    """What the writers were told was done. Each writer writes its own part only."""

    def __init__(self) -> None:
        self.tags: dict[int, int] = {}
        self.growing = "growing-0"
        self.versions: dict[str, dict[str, str]] = {}
        self.staged: dict[int, list[int]] = {}

    @property
    def writes(self) -> int:
        return sum(self.tags.values()) + sum(map(len, (*self.versions.values(), *self.staged.values())))


def tag(caller: Caller, ledger: Ledger, who: int) -> None:
    """Count up in a tag."""
    number = ledger.tags.get(who, 0) + 1
    caller("PATCH", "/version", {"set_tags": {"n": str(number)}}, ref=f"tagged-{who}:1.0.0")
    ledger.tags[who] = number


def enrol(caller: Caller, ledger: Ledger, _who: int) -> None:
    """Register new bytes."""
    model = ledger.growing
    version = caller.register(model, random.randbytes(random.choice((10, 5_000, 300_000))))
    ledger.versions.setdefault(model, {})[version["semver"]] = version["digest"]


def promote(caller: Caller, ledger: Ledger, who: int) -> None:
    """Move the next of three versions to staging."""
    done = ledger.staged.setdefault(who, [])
    number = (done[-1] if done else 0) % 3 + 1
    body = {"ref": f"moved-{who}:#{number}", "to": "staging", "reason": "for the test"}
    caller("POST", "/promotions", body)
    done.append(number)


Writer = Callable[[Caller, Ledger, int], None]
WRITERS: tuple[tuple[Writer, int], ...] = (
    (tag, 0), (tag, 1), (tag, 2), (enrol, 0), (enrol, 1), (promote, 0), (promote, 1),
)  # fmt: skip


def write_until_cut(
    server: Server, ledger: Ledger, job: Callable[[Caller, Ledger, int], None], who: int
) -> None:
    """Write until the server is gone; what it refuses is a fault of the test, and is raised."""
    caller = Caller(server)
    try:
        while True:
            job(caller, ledger, who)
    except (OSError, http.client.HTTPException):
        pass
    finally:
        caller.close()


def check(server: Server, ledger: Ledger) -> None:
    """Everything acknowledged is there, nothing is there by half, and the chain verifies."""
    with calling(server) as caller:
        for who, number in ledger.tags.items():
            stands = int(caller("GET", "/version", ref=f"tagged-{who}:1.0.0")["tags"]["n"])
            assert number <= stands <= number + 1, "an acknowledged tag is lost"
            ledger.tags[who] = stands
        for model, versions in ledger.versions.items():
            check_versions(caller, model, versions)
        for who, done in ledger.staged.items():
            versions = caller("GET", f"/models/default/moved-{who}/versions")["items"]
            standing = [item["number"] for item in versions if item["stage"] == "staging"]
            assert len(standing) <= 1, "two versions in one exclusive stage"
            if done:
                assert standing[0] in (done[-1], done[-1] % 3 + 1), "an acknowledged promotion is lost"
            ledger.staged[who] = standing
        assert caller("GET", "/audit/verification")["intact"] is True


def check_versions(caller: Caller, model: str, acknowledged: dict[str, str]) -> None:
    """All acknowledged versions of a model are there, and those that are there are whole."""
    known: dict[str, str] = {}
    more: dict[str, str] = {}
    while True:
        page = caller("GET", f"/models/default/{model}/versions", limit=1_000, **more)
        known |= {item["semver"]: item["digest"] for item in page["items"]}
        if not page["next_page_token"]:
            break
        more = {"page_token": page["next_page_token"]}
    assert acknowledged.items() <= known.items(), "an acknowledged version is lost"
    for semver in random.sample(sorted(known), min(len(known), 10)):
        assert caller("POST", "/version/verify", ref=f"{model}:{semver}")["ok"]


def prepare(server: Server) -> None:
    """The models that the writers write to."""
    with calling(server) as caller:
        for who in (0, 1, 2):
            caller.register(f"tagged-{who}", f"tagged {who}".encode())
        for who in (0, 1):
            for number in range(3):
                caller.register(f"moved-{who}", f"{who} {number}".encode())


def killed(folder: Path, times: int) -> int:
    """Kill a server so many times under load, and look after each time; how many writes were acknowledged."""
    written = 0
    ledger = Ledger()
    server = Server(folder).ready()
    try:
        prepare(server)
        for turn in range(times):
            ledger.growing = (
                f"growing-{turn // 25}"  # each kill leaves open drafts, of which a model takes 100
            )
            threads = [
                threading.Thread(target=write_until_cut, args=(server, ledger, job, who))
                for job, who in WRITERS
            ]
            before = ledger.writes
            for thread in threads:
                thread.start()
            while ledger.writes - before < WRITES_MIN and threads[0].is_alive():
                time.sleep(0.001)
            time.sleep(random.uniform(*LOAD_S))
            server.kill()
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive()
            written += ledger.writes - before
            server = Server(folder).ready()
            check(server, ledger)
    finally:
        server.stop()
    return written


def test_a_killed_server_has_lost_nothing(tmp_path: Path) -> None:
    """Killed at random points under concurrent writes, time and again, it has all that it acknowledged."""
    assert killed(tmp_path, 20) > 200


@pytest.mark.long
def test_a_server_killed_a_hundred_times_has_lost_nothing(tmp_path: Path) -> None:
    """The same, a hundred times over one folder."""
    assert killed(tmp_path, 100) > 1_000


def at_once(jobs: list[Callable[[], Any]]) -> list[Any]:
    """Run all at the same moment; what each returned, or what it was refused with."""
    barrier = threading.Barrier(len(jobs))
    found: list[Any] = [None] * len(jobs)

    def run(place: int) -> None:
        barrier.wait(60)
        try:
            found[place] = jobs[place]()
        except Refused as refused:
            found[place] = refused

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return found


def moves(caller: Caller, model: str) -> list[tuple[int, str]]:
    """Every recorded move of a model's versions: number and stage."""
    found = caller("GET", "/audit/events", model=model, limit=1_000)["items"]
    events = [item["event"] for item in found if item["event"]["kind"] == "stage.moved"]
    return [(event["number"], event["body"]["to"]) for event in events]


@pytest.mark.req("G1")
def test_sixteen_race_for_one_stage(tmp_path: Path) -> None:
    """Sixteen versions promoted to one exclusive stage at once: exactly one stands there, with one event for
    each that came in."""
    with serving(tmp_path) as server, calling(server) as caller:
        for number in range(16):
            caller.register("raced", f"version {number}".encode())
        callers = [Caller(server) for _ in range(16)]

        def job(number: int) -> Callable[[], Any]:
            body = {"ref": f"raced:#{number}", "to": "production", "reason": "for the test"}
            return lambda: callers[number - 1]("POST", "/promotions", body)

        found = at_once([job(number) for number in range(1, 17)])
        won = [reply for reply in found if not isinstance(reply, Refused)]
        refused = [reply for reply in found if isinstance(reply, Refused)]
        assert {code for _, code in (reply.args for reply in refused)} <= {"STAGE_MOVED"}
        stages = [item["stage"] for item in caller("GET", "/models/default/raced/versions")["items"]]
        assert stages.count("production") == 1
        assert stages.count("archived") == len(won) - 1
        entered = [number for number, to in moves(caller, "raced") if to == "production"]
        assert sorted(entered) == sorted(reply["version"]["number"] for reply in won)
        assert caller("GET", "/audit/verification")["intact"] is True
        for one in callers:
            one.close()


@pytest.mark.req("G1")
def test_sixteen_say_the_same(tmp_path: Path) -> None:
    """Sixteen callers who promote the same version at once move it once."""
    with serving(tmp_path) as server, calling(server) as caller:
        caller.register("raced", b"the version")
        callers = [Caller(server) for _ in range(16)]
        body = {"ref": "raced:1.0.0", "to": "production", "reason": "for the test"}
        found = at_once([lambda one=one: one("POST", "/promotions", body) for one in callers])  # type: ignore[misc]
        assert sum(not isinstance(reply, Refused) for reply in found) == 1
        assert moves(caller, "raced") == [(1, "production")]
        for one in callers:
            one.close()


def on_a_small_disk(folder: Path) -> tuple[str, ...]:
    """Words before a command that give it a disk of 24 MiB at a folder, which nobody else sees."""
    try:
        subprocess.run(["unshare", "--mount", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root may mount the small disk that this test fills")
    folder.mkdir()
    mount = 'mount -t tmpfs -o size=24m tmpfs "$1" && shift && exec "$@"'
    return ("unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh", str(folder))


def test_a_full_disk_is_told_and_forgiven(tmp_path: Path) -> None:
    """With no room left, uploads and writes say so and change nothing, reads go on; with room again, so do
    writes."""
    disk = tmp_path / "disk"
    server = Server(disk / "data", before=on_a_small_disk(disk)).ready()
    filler = Path(f"/proc/{server.process.pid}/root{disk}/filler")
    try:
        with calling(server) as caller:
            caller.register("small", b"fits")
            with pytest.raises(Refused, match="507"):
                caller.register("large", random.randbytes(30_000_000))
            with open(filler, "wb") as file, pytest.raises(OSError, match="No space"):
                while True:
                    os.write(file.fileno(), bytes(65_536))
            told = set()
            done: str | None = None
            for number in range(300):
                try:
                    caller("PATCH", "/version", {"set_tags": {"n": str(number) * 500}}, ref="small:1.0.0")
                    done = str(number) * 500
                except Refused as refused:
                    told.add(refused.args)
            assert told == {(507, "STORAGE_FULL")}
            assert caller("GET", "/version", ref="small:1.0.0")["tags"].get("n") == done
            filler.unlink()
            caller("PATCH", "/version", {"set_tags": {"n": "again"}}, ref="small:1.0.0")
            assert caller.register("small", b"fits too")["number"] == 2
            assert caller("GET", "/audit/verification")["intact"] is True
            assert caller("GET", "/version", ref="small:1.0.0")["tags"]["n"] == "again"
    finally:
        server.stop()
