"""Traffic for an endpoint: real rows, sent at a fixed rate by many callers, and an honest count of what came
back.

The loop is open: each question has its moment, whether or not earlier ones have been answered, and its
latency runs from that moment, so that a server that stalls cannot hide it by slowing down who asks. Whoever
asks stands in a header, since callers are what a canary divides. It knows HTTP and a file of rows, and
nothing of models.

    python examples/traffic.py --url http://127.0.0.1:5001/endpoints/flights/predict --summary seen.json

The summary is written twice a second and once more at the end (after --seconds, or at SIGTERM or Ctrl-C). The
rows are the flights of examples/flights when no file of JSON lines with `key` and `inputs` is named.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CONNECTIONS_MAX = 128
"""Questions on the way at a time; when more would be needed, they are counted as not sent."""
ANSWER_S = 10.0
"""After this long without an answer the question counts as unanswered."""
LATENCIES_MAX = 50_000
"""Latest latencies that the percentiles are taken of."""
SUMMARY_EVERY_S = 0.5
"""Between two writes of the summary."""
NAP_MAX_S = 0.2
"""The longest wait for the next question's moment before it is looked whether to end."""
TRACES_MAX = 8
"""Changes of version that are remembered of one caller; more is as bad as this many."""


@dataclass(frozen=True)
class Question:
    """One request, ready to be sent: who asks, and its bytes."""

    caller: str
    payload: bytes


@dataclass
class Seen:
    """What came back so far."""

    started_at: float = field(default_factory=time.time)
    sent: int = 0
    skipped: int = 0
    unanswered: int = 0
    failed: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    traces: dict[str, list[str]] = field(default_factory=dict)
    failed_callers: set[str] = field(default_factory=set)
    latencies_ms: list[float] = field(default_factory=list)

    def answer(self, caller: str, status: int, version: str | None, took_ms: float) -> None:
        """Count one answer. A 5xx is a failure that its caller has seen."""
        self.statuses[str(status)] += 1
        if version is not None:
            self.versions[version] += 1
            trace = self.traces.setdefault(caller, [])
            if (not trace or trace[-1] != version) and len(trace) < TRACES_MAX:
                trace.append(version)
        if status >= 500:
            self.fail(caller)
        if len(self.latencies_ms) == LATENCIES_MAX:
            del self.latencies_ms[: LATENCIES_MAX // 2]
        self.latencies_ms.append(took_ms)

    def fail(self, caller: str) -> None:
        """Count one answer that was none."""
        self.failed += 1
        self.failed_callers.add(caller)

    def summary(self, *, running: bool) -> dict[str, Any]:
        """Everything as plain values. `moved_back` are callers who met a version again after another one."""
        ordered = sorted(self.latencies_ms) or [0.0]
        return {
            "running": running,
            "seconds": round(time.time() - self.started_at, 2),
            "sent": self.sent,
            "answered": sum(self.statuses.values()),
            "unanswered": self.unanswered,
            "skipped": self.skipped,
            "failed": self.failed,
            "failed_callers": len(self.failed_callers),
            "callers": len(self.traces),
            "moved_back": sum(len(set(trace)) < len(trace) for trace in self.traces.values()),
            "statuses": dict(self.statuses),
            "versions": dict(self.versions),
            "latency_ms": {
                name: round(ordered[int((len(ordered) - 1) * share)], 2)
                for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))
            },
        }


def read_rows(path: Path | None, limit: int) -> list[dict[str, Any]]:
    """The rows to send: of a file of JSON lines, or the flights from April on."""
    if path is not None:
        with path.open(encoding="utf-8") as lines:
            return [json.loads(line) for line, _ in zip(lines, range(limit), strict=False)]
    sys.path.insert(0, str(Path(__file__).resolve().parent / "flights"))
    import data

    return data.load_replay(limit)


def questions(
    rows: Sequence[dict[str, Any]], url: str, header: str, callers_per_key: int
) -> tuple[Question, ...]:
    """Each row as a request. An aircraft carries many who want to know; row by row another one asks."""
    address = urlsplit(url)
    made = []
    for index, row in enumerate(rows):
        caller = f"{row['key']}/{index % callers_per_key + 1}" if callers_per_key > 1 else str(row["key"])
        body = json.dumps({"inputs": [row["inputs"]]}, separators=(",", ":")).encode()
        head = (
            f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\n{header}: {caller}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        made.append(Question(caller, head.encode() + body))
    return tuple(made)


class Caller:
    """Sends questions over kept connections, and counts."""

    def __init__(self, url: str, seen: Seen) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname or "127.0.0.1", address.port or 80
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._open = 0
        self._seen = seen

    @property
    def busy(self) -> bool:
        return self._open - len(self._idle) >= CONNECTIONS_MAX

    async def ask(self, question: Question, due: float) -> None:
        """Send one question and count its answer. What goes wrong is not repeated: the caller saw it."""
        self._seen.sent += 1
        connection = self._kept()
        self._open += 0 if connection is not None else 1
        try:
            async with asyncio.timeout(ANSWER_S):
                connection = connection or await asyncio.open_connection(self._host, self._port)
                connection[1].write(question.payload)
                status, version, stays = await _read(connection[0])
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
            self._seen.unanswered += 1
            self._seen.fail(question.caller)
            self._drop(connection)
            return
        except asyncio.CancelledError:
            self._drop(connection)
            raise
        self._seen.answer(question.caller, status, version, (time.perf_counter() - due) * 1000)
        if stays:
            self._idle.append(connection)
        else:
            self._drop(connection)

    def _kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection from before. One that was idle for long may have been closed by the server meanwhile,
        as it may be; that is no answer that failed.
        """
        while self._idle:
            connection = self._idle.pop()
            if not connection[0].at_eof() and not connection[1].is_closing():
                return connection
            self._drop(connection)
        return None

    def _drop(self, connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None) -> None:
        self._open -= 1
        if connection is not None:
            connection[1].close()

    def close(self) -> None:
        """Close what is kept."""
        while self._idle:
            self._drop(self._idle.pop())


async def _read(reader: asyncio.StreamReader) -> tuple[int, str | None, bool]:
    """Status, version that answered, and whether the connection may be used again."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    await reader.readexactly(int(headers.get("content-length", "0")))
    stays = headers.get("connection", "").lower() != "close"
    return int(first.split(" ", 2)[1]), headers.get("x-modelkeep-version"), stays


async def send(
    asked: Sequence[Question], url: str, rate: float, seconds: float | None, summary: Path
) -> Seen:
    """Send the questions one after another, over and over, `rate` a second, until it is time to end."""
    seen, stop = Seen(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    caller = Caller(url, seen)
    tasks: set[asyncio.Task[None]] = set()
    began = time.perf_counter()
    index, written = 0, 0.0
    while not stop.is_set() and (seconds is None or index < rate * seconds):
        due = began + index / rate
        now = time.perf_counter()
        if now - written > SUMMARY_EVERY_S:
            write(summary, seen.summary(running=True))
            written = now
        if due > now:
            await asyncio.sleep(min(due - now, NAP_MAX_S))
            continue
        if caller.busy:
            seen.skipped += 1
        else:
            task = asyncio.create_task(caller.ask(asked[index % len(asked)], due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        index += 1
        await asyncio.sleep(0)  # lets answers in when many questions are due at once
    await asyncio.gather(*tasks)
    caller.close()
    write(summary, seen.summary(running=False))
    return seen


def write(path: Path, summary: dict[str, Any]) -> None:
    """Replace the file whole, so that whoever reads it never meets half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    beside.replace(path)


def describe(summary: dict[str, Any]) -> str:
    """The summary in three lines."""
    shares = ", ".join(f"{version} {count:,}" for version, count in sorted(summary["versions"].items()))
    latency = "  ".join(f"{name} {value:.1f}" for name, value in summary["latency_ms"].items())
    return (
        f"{summary['answered']:,} answers to {summary['callers']:,} callers in {summary['seconds']:.0f} s; "
        f"{summary['failed']:,} failed, seen by {summary['failed_callers']:,}; "
        f"{summary['skipped']:,} not sent\n"
        f"versions   {shares or 'none'}\nlatency    {latency} ms"
    )


def main() -> None:
    """Send what the command line says, and print what came back."""
    parser = argparse.ArgumentParser(description="Send rows to an endpoint at a fixed rate.")
    parser.add_argument("--url", required=True, help="where the endpoint answers")
    parser.add_argument("--rate", type=float, default=250.0, help="questions a second")
    parser.add_argument("--seconds", type=float, help="when to end; until it is told to when left out")
    parser.add_argument("--rows", type=Path, help="JSON lines with key and inputs; the flights when left out")
    parser.add_argument("--rows-max", type=int, default=40_000, help="rows to read; then they begin anew")
    parser.add_argument("--key-header", default="x-user-id", help="the header that says who asks")
    parser.add_argument("--callers-per-key", type=int, default=7, help="people behind each key of the rows")
    parser.add_argument("--summary", type=Path, required=True, help="file to write what was seen into")
    chosen = parser.parse_args()
    rows = read_rows(chosen.rows, chosen.rows_max)
    asked = questions(rows, chosen.url, chosen.key_header, chosen.callers_per_key)
    seen = asyncio.run(send(asked, chosen.url, chosen.rate, chosen.seconds, chosen.summary))
    print(describe(seen.summary(running=False)))


if __name__ == "__main__":
    main()
