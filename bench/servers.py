"""Real servers to be measured: ours as a person starts it, in a process of its own, and what it holds in
memory.

A peer is started with the same functions (`peers`). Nothing is measured here but the time to the first
answer.
"""

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil
from msgspec import Struct

PROGRAM = Path(sys.executable).with_name("modelkeep")
READY_DEADLINE_S = 120.0
"""A server that has not answered by then will not; peers take their time."""
STOP_DEADLINE_S = 15.0
"""How long a server may take to end before it is killed."""
ASK_EVERY_S = 0.002
"""Between two looks at whether a server is there: the resolution of its starting time."""


class Running(Struct, frozen=True, kw_only=True):
    """A server that answers. `ready_s` is from its start as a process to its first answer."""

    pid: int
    port: int
    ready_s: float

    def resident_mib(self) -> float:
        """Resident memory of the process and all below it, in MiB."""
        top = psutil.Process(self.pid)
        return sum(_resident(process) for process in [top, *top.children(recursive=True)]) / 2**20

    def cpu_s(self) -> float:
        """Processor time that all of it has used so far, in seconds."""
        top = psutil.Process(self.pid)
        return sum(_cpu(process) for process in [top, *top.children(recursive=True)])


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def _cpu(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def modelkeep_environment() -> dict[str, str]:
    """The environment without anybody's own settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MODELKEEP_")}


@contextlib.contextmanager
def modelkeep(folder: Path, database: str | None = None) -> Iterator[Running]:
    """Our server on a data folder, started as a person starts it; its database is in there or elsewhere."""
    port = free_port()
    command = [str(PROGRAM), "server", "--data", str(folder), "--port", str(port)]
    environment = modelkeep_environment()
    if database is not None:
        environment["MODELKEEP_DATABASE"] = database
    with serve(command, port, "/ready", folder.parent / f"{folder.name}.log", environment) as found:
        yield found


@contextlib.contextmanager
def serve(
    command: Sequence[str], port: int, ready: str, log: Path, environment: Mapping[str, str]
) -> Iterator[Running]:
    """Start a server, wait until it answers 200 at a path, and end it and all it started.

    Raises:
        RuntimeError: it ended or did not answer in time; the message has the end of what it said.
    """
    with log.open("ab") as said:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=dict(environment),
            cwd=log.parent, start_new_session=True,
        )  # fmt: skip
    try:
        while not answers(port, ready):
            spent = time.perf_counter() - started
            if process.poll() is not None or spent > READY_DEADLINE_S:
                tail = log.read_text(errors="replace")[-2_000:]
                raise RuntimeError(f"{' '.join(command)} does not answer after {spent:.0f} s:\n{tail}")
            time.sleep(ASK_EVERY_S)
        yield Running(pid=process.pid, port=port, ready_s=time.perf_counter() - started)
    finally:
        _stop(process)


def answers(port: int, path: str) -> bool:
    """Whether a server answers 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _stop(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        _, left = psutil.wait_procs(below, timeout=STOP_DEADLINE_S)
        for one in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    try:
        process.wait(STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
