"""The demo's callers count what they see: every answer, every failure, who met which version, and how late.

A small server stands in for the gateway, because here the answers have to be known beforehand.
"""

import asyncio
import importlib.util
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "traffic.py"

pytestmark = [pytest.mark.network, pytest.mark.req("U4")]


@pytest.fixture(scope="module")
def traffic() -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("traffic", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["traffic"] = module
    spec.loader.exec_module(module)
    return module


class Answering:
    """A server that answers as it is told: status, version, and how long it takes.

    It is told by the number of the question, and by how often its caller has asked before.
    """

    def __init__(self, answer: Callable[[int, int], tuple[int, str, float]]) -> None:
        self._answer = answer
        self.callers: list[str] = []
        self.bodies: list[Any] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
                self.bodies.append(json.loads(await reader.readexactly(int(headers["Content-Length"]))))
                caller = headers["x-user-id"]
                number, before = len(self.callers), self.callers.count(caller)
                self.callers.append(caller)
                status, version, wait_s = self._answer(number, before)
                await asyncio.sleep(wait_s)
                if status == 0:  # hangs up without a word
                    return
                writer.write(
                    f"HTTP/1.1 {status} So\r\nX-Modelkeep-Version: {version}\r\n"
                    "Content-Length: 2\r\n\r\n{}".encode()
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the callers have gone home
        finally:
            writer.close()


@asynccontextmanager
async def listening(answering: Answering) -> AsyncIterator[str]:
    """The server's address, for as long as the block lasts."""
    server = await asyncio.start_server(answering, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/endpoints/m/predict"


def ask(
    traffic: Any, folder: Path, answering: Answering, *, rate: float, seconds: float, keys: int
) -> dict[str, Any]:
    """Send questions of so many callers, and give the summary that was written at the end."""

    async def run() -> None:
        async with listening(answering) as url:
            rows = [{"key": f"n{index}", "inputs": {"row": index}} for index in range(keys)]
            asked = traffic.questions(rows, url, "x-user-id", 1)
            await traffic.send(asked, url, rate, seconds, folder / "seen.json")

    asyncio.run(run())
    summary: dict[str, Any] = json.loads((folder / "seen.json").read_text())
    return summary


def test_each_answer_is_counted(traffic: Any, tmp_path: Path) -> None:
    """Statuses and versions add up, and failures are counted with the callers who saw them."""
    answering = Answering(lambda n, _: (500 if n % 10 == 0 else 0 if n % 10 == 5 else 200, "m:1.0.0", 0.0))

    seen = ask(traffic, tmp_path, answering, rate=400, seconds=0.5, keys=20)

    assert seen["sent"] == 200 == len(answering.callers)
    assert seen["statuses"] == {"200": 160, "500": 20}
    assert seen["versions"] == {"m:1.0.0": 180}
    assert (seen["unanswered"], seen["failed"], seen["answered"]) == (20, 40, 180)
    assert seen["failed_callers"] <= 20
    assert not seen["running"]


def test_the_rows_are_sent_for_their_callers(traffic: Any, tmp_path: Path) -> None:
    """Each row goes out as it is, under the key of whoever asks, and from the first again after the last."""
    answering = Answering(lambda n, _: (200, "m:1.0.0", 0.0))

    ask(traffic, tmp_path, answering, rate=100, seconds=0.1, keys=7)

    assert sorted(answering.callers) == sorted(f"n{index % 7}" for index in range(10))
    for caller, body in zip(answering.callers, answering.bodies, strict=True):
        assert body == {"inputs": [{"row": int(caller.removeprefix("n"))}]}


def test_a_caller_who_is_sent_back_is_noticed(traffic: Any, tmp_path: Path) -> None:
    """One who goes on to a new version is not; one who meets the old one again afterwards is."""
    onward = Answering(lambda _, before: (200, "m:1.0.0" if before < 2 else "m:2.0.0", 0.0))
    back = Answering(lambda _, before: (200, "m:2.0.0" if before == 1 else "m:1.0.0", 0.0))

    # A sixth of a second lies between two questions of one caller, so that none overtakes the other.
    assert ask(traffic, tmp_path, onward, rate=60, seconds=0.5, keys=10)["moved_back"] == 0
    assert ask(traffic, tmp_path, back, rate=60, seconds=0.5, keys=10)["moved_back"] == 10


def test_a_server_that_stalls_cannot_hide_it(traffic: Any, tmp_path: Path) -> None:
    """Questions keep coming while it stalls, and theirs is the time from when they were due."""
    stalling = Answering(lambda n, _: (200, "m:1.0.0", 0.3 if n < 20 else 0.0))

    seen = ask(traffic, tmp_path, stalling, rate=100, seconds=0.5, keys=10)

    assert seen["answered"] == 50
    assert seen["latency_ms"]["p95"] >= 290
    assert seen["seconds"] < 5.0, "one after the other they would take six"


def test_an_aircraft_carries_many_callers(traffic: Any) -> None:
    """Behind one key of the rows stand several people, the same ones every time."""
    rows = [{"key": "n1", "inputs": {}}] * 6

    asked = traffic.questions(rows, "http://127.0.0.1:1/x", "x-user-id", 3)

    assert [question.caller for question in asked] == ["n1/1", "n1/2", "n1/3"] * 2
    assert b"x-user-id: n1/2\r\n" in asked[1].payload


def test_a_connection_that_the_server_has_closed_is_not_asked_again(traffic: Any) -> None:
    """A server may close a connection that was kept for long: the next question takes another one."""

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async def ask_twice() -> Any:
        server = await asyncio.start_server(once, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        seen = traffic.Seen()
        caller = traffic.Caller(f"http://127.0.0.1:{port}/", seen)
        question = traffic.Question("ann", b"POST / HTTP/1.1\r\n\r\n")
        async with server:
            await caller.ask(question, 0.0)
            assert await caller._idle[0][0].read() == b"", "it was closed"
            await caller.ask(question, 0.0)
            caller.close()
        return seen

    seen = asyncio.run(ask_twice())

    assert (seen.failed, seen.statuses) == (0, {"200": 2})
