"""A real server as a process of its own, and raw connections to it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
READY_S = 60.0


class Server:
    """One server process over a data folder."""

    def __init__(
        self, folder: Path, *, port: int = 0, auth: str = "local", before: tuple[str, ...] = ()
    ) -> None:
        """
        Args:
            before: words that the server's own command follows, such as those of `unshare`.
        """
        self.folder = folder
        self.auth = auth
        self.process = subprocess.Popen(
            [*before, sys.executable, "-m", "tests.web.serve", str(folder), str(port), auth],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if not name.startswith("MODELKEEP_")},
        )
        self.url = ""

    def ready(self) -> "Server":
        """Wait until it answers."""
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().decode().strip()
        assert self.url, f"the server did not start: {self.told()}"
        return self

    def told(self) -> str:
        """What a process that has ended, or will not begin, said on stderr."""
        assert self.process.stderr is not None
        self.process.wait(READY_S)
        return self.process.stderr.read().decode()

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    @property
    def admin(self) -> str:
        """The first admin's token."""
        return (self.folder / "admin.token").read_text()

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait(60)
        self._close()

    def stop(self) -> float:
        """End it in order; how many seconds that took."""
        began = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        took = time.monotonic() - began
        self._close()
        return took

    def _close(self) -> None:
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def connect(self) -> socket.socket:
        """A raw connection."""
        return socket.create_connection(self.address, timeout=60)

    def say(self, request: bytes, *, answers: int = 1) -> bytes:
        """Send bytes on a fresh connection, and read until it is closed, or rests for a moment after so many
        answers."""
        with self.connect() as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(request)
            return listen(connection, answers=answers)


def listen(
    connection: socket.socket, *, answers: int = 1, quiet_s: float = 0.5, wait_s: float = 60.0
) -> bytes:
    """What comes until the connection is closed, or nothing more comes for a while after whole answers.

    Args:
        answers: so many are waited for with patience.
    """
    found = b""
    connection.settimeout(wait_s)
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while part := connection.recv(65_536):
            found += part
            connection.settimeout(quiet_s if whole(found) >= answers else wait_s)
    return found


def whole(said: bytes) -> int:
    """How many answers these bytes are; 0 when the last of them is not whole."""
    count = 0
    while said:
        head, end, rest = said.partition(b"\r\n\r\n")
        lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        length = int(lines.get(b"content-length", b"0"))
        if not end or len(rest) < length:
            return 0
        if lines.get(b"transfer-encoding") == b"chunked":
            return (count + 1) * rest.endswith(b"0\r\n\r\n")
        count += not head.startswith(b"HTTP/1.1 1")
        said = rest[length:]
    return count


@contextlib.contextmanager
def serving(folder: Path, *, auth: str = "local") -> Iterator[Server]:
    """A server as long as the block lasts."""
    server = Server(folder, auth=auth)
    try:
        yield server.ready()
    finally:
        server.stop()
