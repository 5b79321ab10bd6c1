"""The local door of a gateway: a unix socket for its owner, which works with the control plane stopped.

One command, one line of JSON each way. Commands: `status`, `rollback` (endpoint, actor, reason), `drain`,
`reload`. `call` is the client's side, for the command line. What the commands do is the supervisor's
business.
"""

import asyncio
import contextlib
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from modelkeep.core import codec, errors
from modelkeep.serving.options import CONTROL_LINE_MAX_BYTES, UNIX_PATH_MAX

CALL_TIMEOUT_S = 30.0
"""The longest any command takes, with room to spare."""
ADDRESS_FILE = "control.path"
"""In the data folder: where the socket really is."""
_REPLY_MAX_BYTES = 16 * 1024 * 1024

Handler = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


class RunFolder:
    """The private folder of a running gateway's sockets: in its data folder, or in a temporary one when the
    path would be too long for a socket. Whatever a killed gateway left is removed at the next start."""

    def __init__(self, data: Path) -> None:
        self._data = data
        address = data / ADDRESS_FILE
        if address.is_file():
            left = Path(address.read_text().strip()).parent
            if left.name.startswith("modelkeep-run-") and left.is_dir() and left.stat().st_uid == os.getuid():
                shutil.rmtree(left, ignore_errors=True)
        folder = (data / "run").absolute()
        shutil.rmtree(folder, ignore_errors=True)
        if len(str(folder).encode()) + len("/w-0000-000.sock") > UNIX_PATH_MAX:
            folder = Path(tempfile.mkdtemp(prefix="modelkeep-run-"))
        else:
            folder.mkdir(mode=0o700)
        self.path = folder
        self.control = folder / "control.sock"
        address.write_text(str(self.control))

    def remove(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.path, ignore_errors=True)
        (self._data / ADDRESS_FILE).unlink(missing_ok=True)


class ControlServer:
    """Listens for the owner's commands."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self._path = path
        self._handler = handler
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to listen."""
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(
                self._serve, str(self._path), limit=CONTROL_LINE_MAX_BYTES
            )
        finally:
            os.umask(before)

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                line = await reader.readline()
                writer.write(codec.encode(await self._answer(line)) + b"\n")
                await writer.drain()
        except (OSError, ValueError, TimeoutError):
            pass  # the caller went away, or sent no line: nobody is left to tell
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            command = codec.decode_untrusted(line, dict, max_bytes=CONTROL_LINE_MAX_BYTES)
            arguments = command.get("arguments") or {}
            return {"ok": await self._handler(str(command.get("command")), dict(arguments))}
        except errors.ModelkeepError as problem:
            return {"error": {"code": problem.code, "detail": problem.message, "details": problem.details}}


def call(data_folder: Path, command: str, **arguments: Any) -> dict[str, Any]:
    """Give a running gateway a command and return its answer.

    Raises:
        GatewayUnavailable: no gateway runs on this folder, or it does not answer.
        ModelkeepError: what the gateway said.
    """
    try:
        path = (data_folder / ADDRESS_FILE).read_text().strip()
    except OSError as problem:
        raise errors.GatewayUnavailable(
            f"No gateway runs on {data_folder}; start one with: modelkeep gateway --data {data_folder}."
        ) from problem
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(CALL_TIMEOUT_S)
            connection.connect(path)
            connection.sendall(codec.encode({"command": command, "arguments": arguments}) + b"\n")
            data = bytearray()
            while not data.endswith(b"\n"):
                chunk = connection.recv(65536)
                if not chunk or len(data) > _REPLY_MAX_BYTES:
                    break
                data += chunk
        reply = codec.decode(bytes(data), dict)
    except (OSError, errors.MalformedBody) as problem:
        raise errors.GatewayUnavailable(
            f"The gateway on {data_folder} does not answer; is it still running?"
        ) from problem
    if "error" in reply:
        error = reply["error"]
        raise errors.from_code(error["code"], error["detail"], error.get("details") or {})
    answer: dict[str, Any] = reply["ok"]
    return answer


def lock_folder(data: Path) -> int:
    """Take the data folder for this process. Returns a descriptor that holds it until it is closed.

    Raises:
        FolderInUse: another gateway has it.
        InvalidSetting: it cannot be written.
    """
    import fcntl

    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(data / "gateway.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as problem:
        raise errors.InvalidSetting(
            f"The folder {data} cannot be used: {problem.strerror}; choose another."
        ) from problem
    if stat.S_IMODE(os.fstat(fd).st_mode) != 0o600:
        with contextlib.suppress(OSError):
            os.fchmod(fd, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        os.close(fd)
        raise errors.FolderInUse(
            f"Another gateway runs on {data}; stop it, or give this one a folder of its own with --data."
        ) from problem
    return fd
