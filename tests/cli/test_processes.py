"""The processes of a machine: they start quickly, stop in order, come back, and leave nothing behind."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from modelkeep.client import Client
from modelkeep.core import errors
from tests.servers import free_port

pytestmark = [pytest.mark.req("V1", "G9"), pytest.mark.journey]
MODELKEEP = str(Path(sys.executable).with_name("modelkeep"))
MEMORY_MAX_BYTES = 150 * 1024 * 1024
STOP_MAX_S = 20.0
LIMIT_S = 60.0


class Running:
    """A command that runs until it is stopped, and its first line."""

    def __init__(self, words: tuple[str, ...], log: Path, folder: Path | None = None) -> None:
        self.began = time.perf_counter()
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [MODELKEEP, *words],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline().strip()
        self.ready_s = time.perf_counter() - self.began
        self.log = log

    @property
    def tree(self) -> list[psutil.Process]:
        """The process and all below it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        return []

    def stop(self, number: int = signal.SIGTERM) -> float:
        """Send a signal and wait for the end. Returns the seconds it took."""
        began = time.perf_counter()
        self.process.send_signal(number)
        self.process.wait(LIMIT_S)
        return time.perf_counter() - began


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a command; whatever is left of it at the end of the test is killed."""
    started: list[Running] = []

    def begin(*words: str, folder: Path | None = None) -> Running:
        running = Running(words, tmp_path / f"log{len(started)}", folder)
        started.append(running)
        return running

    yield begin
    for running in started:
        left = running.tree
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        running.process.wait(LIMIT_S)
        if running.process.stdout is not None:
            running.process.stdout.close()


def _until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def _gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes if _exists(p))


def _exists(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.status()
        return True
    return False


def _up(start: Start, folder: Path, *more: str) -> tuple[Running, dict[str, Any]]:
    words = ("up", "--json", "--data", str(folder), "--port", "0", "--gateway-port", "0", *more)
    running = start(*words)
    assert running.line, running.log.read_text()
    return running, json.loads(running.line)


def test_a_server_says_where_it_is_and_is_small(start: Start, tmp_path: Path) -> None:
    """It prints its address when it is ready, with below 150 MiB resident (bench/ has how soon that is)."""
    running = start("server", "--data", str(tmp_path / "house"), "--port", "0")
    assert "The server is at http://127.0.0.1:" in running.line
    assert sum(p.memory_info().rss for p in running.tree) < MEMORY_MAX_BYTES
    running.stop()


def test_a_server_stops_while_gateways_wait(start: Start, tmp_path: Path) -> None:
    """SIGTERM ends it long before an open long poll would end, and with code 0."""
    running = start("server", "--data", str(tmp_path / "house"), "--port", "0")
    port = int(running.line.split(",")[0].rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    connection.request("GET", "/api/v1/gateway/table?after=1000000&wait_s=60")
    time.sleep(0.2)
    assert running.stop() < STOP_MAX_S
    assert running.process.returncode == 0
    connection.close()


def test_up_starts_both_and_leaves_nothing(start: Start, tmp_path: Path) -> None:
    """One command, two addresses that answer; one signal, and no process of it is left."""
    running, places = _up(start, tmp_path / "house")
    with Client(places["registry"]) as client:
        assert client.ready().status == "ready"
    gateway = http.client.HTTPConnection(
        "127.0.0.1", int(places["gateway"].rpartition(":")[2]), timeout=LIMIT_S
    )
    gateway.request("GET", "/health")
    assert gateway.getresponse().status == 200
    gateway.close()
    tree = running.tree
    assert len(tree) >= 3
    running.stop()
    assert running.process.returncode == 0
    _until(lambda: _gone(tree), "a child outlived its parent")


def test_files_beside_whoever_types_up_are_no_modules(start: Start, tmp_path: Path) -> None:
    """A secrets.py in the working folder is not imported in the place of the library's own."""
    (tmp_path / "secrets.py").write_text("raise SystemExit('imported from the working folder')\n")
    running = start(
        "up", "--data", str(tmp_path / "house"), "--port", "0", "--gateway-port", "0", folder=tmp_path
    )
    assert running.line.startswith("registry http://127.0.0.1:"), running.log.read_text()
    running.stop()


def test_a_gateway_alone_says_where_it_keeps_things(start: Start, tmp_path: Path) -> None:
    """Its first line names its own folder, not the server's."""
    running = start(
        "gateway", "run", "--data", str(tmp_path / "edge"), "--port", "0", "--server", "http://127.0.0.1:9"
    )
    assert running.line.endswith(f"data {tmp_path / 'edge'}")
    running.stop()


def test_a_killed_parent_leaves_nothing(start: Start, tmp_path: Path) -> None:
    """kill -9 of `up` ends server, gateway and whatever they started."""
    running, _ = _up(start, tmp_path / "house")
    tree = running.tree
    running.stop(signal.SIGKILL)
    _until(lambda: _gone(tree), "a child outlived its killed parent")


def test_a_killed_child_comes_back_where_it_was(start: Start, tmp_path: Path) -> None:
    """After kill -9 the server answers again at its address, and nothing that it acknowledged is lost."""
    running, places = _up(start, tmp_path / "house")
    with Client(places["registry"]) as client:
        client.create_model("churn")
        server = next(p for p in running.tree if "server" in p.cmdline()[3:5])
        server.kill()

        def back() -> bool:
            try:
                return client.get_model("churn").owner != ""
            except errors.Unavailable:
                return False

        _until(back, "the server did not come back")
        assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
    running.stop()


def test_two_servers_never_share_a_folder(start: Start, tmp_path: Path) -> None:
    """The second says so and ends with the code of a conflict."""
    folder = tmp_path / "house"
    start("server", "--data", str(folder), "--port", "0")
    second = start("server", "--data", str(folder), "--port", "0")
    assert second.process.wait(LIMIT_S) == 6
    assert "Another server works on" in second.log.read_text()


@pytest.mark.parametrize("command", ["server", "up", "gateway"])
def test_a_port_in_use_is_told_in_a_sentence(start: Start, tmp_path: Path, command: str) -> None:
    """Nothing is opened, one line says what to do, and the code is that of a conflict."""
    port = str(free_port())
    with contextlib.closing(_listener(int(port))):
        running = start(command, "--data", str(tmp_path / "house"), "--port", port)
        assert running.process.wait(LIMIT_S) == 6
    told = running.log.read_text()
    assert f"Port {port}" in told
    assert "Traceback" not in told


def _listener(port: int) -> Any:
    import socket

    return socket.create_server(("127.0.0.1", port))


def test_the_world_is_not_let_in_unasked(start: Start, tmp_path: Path) -> None:
    """Beyond the loopback address a server asks for authentication before it takes the port."""
    running = start("server", "--data", str(tmp_path / "house"), "--host", "0.0.0.0")
    assert running.process.wait(LIMIT_S) == 1
    assert "--auth token" in running.log.read_text()


@pytest.mark.req("G10")
def test_a_gateway_is_open_when_somebody_says_so(start: Start, tmp_path: Path) -> None:
    """Beyond the loopback address a gateway asks for a guard or for a word, alone and beside a server."""
    running = start("gateway", "--data", str(tmp_path / "gateway"), "--host", "0.0.0.0")
    assert running.process.wait(LIMIT_S) == 1
    assert "--callers-token FILE, or --open" in running.log.read_text()
    running, places = _up(start, tmp_path / "house", "--gateway-host", "0.0.0.0", "--open")
    assert places["gateway"].startswith("http://0.0.0.0:")
    assert "Anybody who reaches the gateway" in running.log.read_text()
    running.stop()


@pytest.mark.req("G10")
def test_the_first_token_is_shown_once(start: Start, tmp_path: Path) -> None:
    """The first start prints the admin's token, no later one does; the gateway gets its own, privately."""
    running, places = _up(start, tmp_path / "house", "--auth", "token")
    with Client(places["registry"]) as nobody, pytest.raises(errors.NotAuthenticated):
        nobody.list_models().whole()
    with Client(places["registry"], places["admin_token"]) as admin:
        assert admin.whoami().actor.name == "admin"
    assert os.stat(tmp_path / "house" / "gateway" / "token").st_mode & 0o777 == 0o600
    running.stop()
    again, later = _up(start, tmp_path / "house", "--auth", "token")
    assert "admin_token" not in later
    with Client(later["registry"], places["admin_token"]) as admin:
        assert admin.whoami().actor.name == "admin"
    again.stop()


def test_the_output_is_not_read_for_ever(start: Start, tmp_path: Path) -> None:
    """A parent whose output nobody reads any more goes on serving."""
    running, places = _up(start, tmp_path / "house")
    assert running.process.stdout is not None
    reader = threading.Thread(target=running.process.stdout.close)
    reader.start()
    reader.join()
    with Client(places["registry"]) as client:
        assert client.health().status == "ok"
    running.stop()
