"""Load over HTTP on one machine: a list of requests, sent by a number of kept connections, and what came of
it.

    drive(port, requests, connections=8, seconds=3)    # round and round, with wrk where it is installed
    drive_each(port, requests, connections=8)          # each request once, by our own asyncio client

Both are closed loops: a connection sends its next request when the last one is answered, so a stall of the
server delays the requests that would have shown it. The figures compare servers under the same load; they
are no promise for a service that gets its requests from outside.

A path or a body may contain `@N@`, which becomes a number that no other request has: a write that changed
nothing would cost nothing. An error among the answers ends the measurement, because its figures would mean
nothing; a peer may be allowed a few.
"""

import asyncio
import http.client
import itertools
import json
import math
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

MARK = "@N@"
WRK_SCRIPT = """\
local requests, sent = {}, 0
for line in io.lines("%s") do
  local method, path, kind, body = line:match("^(%%S+)\\t(%%S+)\\t(%%S+)\\t(.*)$")
  requests[#requests + 1] = {
    method, path, body ~= "" and body or nil,
    headers = body ~= "" and { ["Content-Type"] = kind } or {},
    marked = (path .. body):find("@N@", 1, true) ~= nil,
  }
end
init = function()
  for _, chosen in ipairs(requests) do
    if not chosen.marked then chosen.whole = wrk.format(chosen[1], chosen[2], chosen.headers, chosen[3]) end
  end
end
request = function()
  local chosen = requests[sent %% #requests + 1]
  sent = sent + 1
  if chosen.whole then return chosen.whole end
  local number = string.format("%%d", %d + sent)
  local body = chosen[3] and chosen[3]:gsub("@N@", number)
  return wrk.format(chosen[1], (chosen[2]:gsub("@N@", number)), chosen.headers, body)
end
done = function(summary, latency)
  local failed = summary.errors
  print(string.format('RESULT {"requests": %%d, "seconds": %%f, "p50": %%f, "p99": %%f, "failed": %%d}',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    failed.connect + failed.read + failed.write + failed.status + failed.timeout))
end
"""


class Call(NamedTuple):
    """One request: method, path with its query, and a body of one line or none, which is of some type."""

    method: str
    path: str
    body: str = ""
    kind: str = "application/json"


class Figure(Struct, frozen=True, kw_only=True):
    """What a run gave. Times are those of single requests, from sending to the whole answer; `cpu_us` is
    the server's processor time a request, where somebody looked: on a busy machine it says more than speed.
    """

    per_second: float
    p50_ms: float
    p99_ms: float
    requests: int
    failed: int = 0
    cpu_us: float | None = None

    def text(self) -> str:
        """As it stands in a table."""
        cpu = f", {self.cpu_us:,.0f} us CPU" if self.cpu_us is not None else ""
        return f"{self.per_second:,.0f}/s, p50 {_ms(self.p50_ms)}, p99 {_ms(self.p99_ms)}{cpu}"


class Refused(RuntimeError):
    """The server answered a request of the load with an error: the figures would mean nothing.

    `status` is that of the answer where it is known.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


_numbers = itertools.count(1_000_000, 10_000_000)
"""Where each run's numbers for `@N@` begin: no two runs write the same value."""


def _ms(value: float) -> str:
    return f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms"


def median_of(figures: Sequence[Figure]) -> Figure:
    """The middle one of several rounds, by speed; of an even number the slower of the two."""
    ranked = sorted(figures, key=lambda figure: figure.per_second)
    return ranked[(len(ranked) - 1) // 2]


def drive(
    port: int, calls: Sequence[Call], *, connections: int, seconds: float, errors_max: float = 0.0
) -> Figure:
    """Send requests in order, again and again, for some seconds.

    Args:
        errors_max: the share of the requests that may fail.

    Raises:
        Refused: the server answered with more errors than that.
    """
    probe(port, calls[0])
    if shutil.which("wrk") is None:
        return asyncio.run(_drive(port, itertools.cycle(calls), connections, seconds, errors_max))
    with tempfile.TemporaryDirectory(prefix="modelkeep-load-") as name:
        listed, script = Path(name) / "calls", Path(name) / "load.lua"
        listed.write_text(
            "".join(f"{call.method}\t{call.path}\t{call.kind}\t{call.body}\n" for call in calls)
        )
        script.write_text(WRK_SCRIPT % (listed, next(_numbers)))
        command = ["wrk", "-t1", f"-c{connections}", f"-d{math.ceil(seconds)}s", "-s", str(script)]
        address = f"http://127.0.0.1:{port}"
        said = subprocess.run([*command, address], check=True, capture_output=True, text=True).stdout
    found = re.search(r"^RESULT (.+)$", said, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"wrk told no result:\n{said}")
    result = json.loads(found[1])
    if result["failed"] > errors_max * result["requests"]:
        raise Refused(
            f"{result['failed']:,} of {result['requests']:,} requests like {shown(calls[0])} failed"
        )
    return Figure(
        per_second=result["requests"] / result["seconds"],
        p50_ms=result["p50"],
        p99_ms=result["p99"],
        requests=int(result["requests"]),
        failed=int(result["failed"]),
    )


def drive_each(port: int, calls: Iterable[Call], *, connections: int, errors_max: float = 0.0) -> Figure:
    """Send each request once, in order, as fast as the connections get answers. Otherwise as `drive`.

    Raises:
        Refused: the server answered with more errors than may be.
    """
    return asyncio.run(_drive(port, iter(calls), connections, None, errors_max))


def probe(port: int, call: Call) -> bytes:
    """Send one request and return the body of its answer.

    Raises:
        Refused: it is an error; the message has its text.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        number = str(next(_numbers))
        body = call.body.replace(MARK, number) or None
        headers = {"Content-Type": call.kind} if body else {}
        connection.request(call.method, call.path.replace(MARK, number), body, headers)
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    if answer.status >= 400:
        raise Refused(f"{shown(call)}: {answer.status} {text[:500].decode(errors='replace')}", answer.status)
    return text


def shown(call: Call) -> str:
    """A request as an error names it."""
    return f"{call.method} {call.path} {call.body[:200]}".rstrip()


# ----------------------------------------------------------------------------------------------- without wrk

CLOSED = 599
"""In the place of a status: the server gave none and closed the connection."""


async def _drive(
    port: int, calls: Iterator[Call], connections: int, seconds: float | None, errors_max: float
) -> Figure:
    times: list[float] = []
    refused: list[str] = []
    gone: list[Call] = []
    numbers = itertools.count(next(_numbers))
    began = time.perf_counter()
    until = began + seconds if seconds is not None else float("inf")

    async def work() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for call in calls:
                sent = time.perf_counter()
                if sent >= until:
                    return
                writer.write(_as_bytes(call, numbers))
                try:
                    status, body = await _answered(reader)
                except (asyncio.IncompleteReadError, ConnectionError):
                    status, body = CLOSED, b"the connection was closed"
                times.append(time.perf_counter() - sent)
                if status >= 400:
                    refused.append(f"{shown(call)}: {status} {body[:500].decode(errors='replace')}")
                    if errors_max == 0:
                        return
                if status == CLOSED:
                    writer.close()
                    try:
                        reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    except OSError:
                        gone.append(call)
                        return
        finally:
            writer.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(work())
    took_s = time.perf_counter() - began
    if gone:
        raise Refused(f"{shown(gone[0])}: nobody listens any more")
    if len(refused) > errors_max * len(times):
        raise Refused(f"{len(refused):,} of {len(times):,} requests failed, the first one: {refused[0]}")
    times.sort()
    return Figure(
        per_second=len(times) / took_s,
        p50_ms=times[len(times) // 2] * 1_000,
        p99_ms=times[int(len(times) * 0.99)] * 1_000,
        requests=len(times),
        failed=len(refused),
    )


def _as_bytes(call: Call, numbers: Iterator[int]) -> bytes:
    path, body = call.path, call.body
    if MARK in path or MARK in body:
        number = str(next(numbers))
        path, body = path.replace(MARK, number), body.replace(MARK, number)
    lines = [f"{call.method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    if body:
        lines += [f"Content-Type: {call.kind}", f"Content-Length: {len(body.encode())}"]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


async def _answered(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = re.search(rb"\r\ncontent-length: *(\d+)", head)
    body = await reader.readexactly(int(length[1])) if length else b""
    return int(head.split(b" ", 2)[1]), body
