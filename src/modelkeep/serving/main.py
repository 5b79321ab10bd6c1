"""The entry to a gateway: takes folder and port, runs a supervisor until it is told to stop, and leaves
nothing behind.

`run_gateway` is what the command line calls; `python -m modelkeep.serving.main` is the same without it.
Environment variables are not read here.
"""

import argparse
import asyncio
import contextlib
import errno
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from msgspec import structs

from modelkeep import telemetry
from modelkeep.core import errors
from modelkeep.serving.options import GatewayOptions

NAME_FILE = "gateway-id"
"""In the data folder: what this gateway is called, made once."""

log = telemetry.Log("gateway.main")


def run_gateway(options: GatewayOptions, *, on_start: Callable[[str], None] | None = None) -> None:
    """Run a gateway until SIGTERM or SIGINT, then drain it.

    Args:
        on_start: called with the gateway's address once it accepts connections.

    Raises:
        PortInUse: somebody listens there.
        FolderInUse: another gateway has the data folder.
        InvalidSetting: the folder or the server's address cannot be used, or the gateway would be open to
            others without anybody having said so.
        JournalDamaged: the local journal is not what was written.
    """
    from modelkeep.serving.control import lock_folder
    from modelkeep.serving.guard import check_openness
    from modelkeep.serving.processes import new_loop

    _require_libraries()
    check_openness(options)
    options = structs.replace(options, data=options.data.absolute())  # a worker may stand in another folder
    lock = lock_folder(options.data)
    try:
        listeners = open_listeners(options.host, options.port, options.fronts)
        try:
            with new_loop() as runner:
                runner.run(_run(options, listeners, on_start))
        finally:
            for listener in listeners:
                listener.close()
    finally:
        os.close(lock)


async def _run(
    options: GatewayOptions, listeners: list[socket.socket], on_start: Callable[[str], None] | None
) -> None:
    from modelkeep.serving.supervisor import Supervisor

    host, port = listeners[0].getsockname()[:2]
    url = options.url or f"http://{f'[{host}]' if ':' in host else host}:{port}"
    try:
        supervisor = Supervisor(options, gateway_name(options), listeners, url)
    except OSError as problem:  # a folder that was used before is served from even when it is full
        raise errors.InvalidSetting(
            f"The folder {options.data} cannot be used ({problem.strerror or problem}) and holds nothing yet "
            "that could be served; make room there, or choose another."
        ) from problem
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stopped.set)
    await supervisor.start()
    if on_start is not None:
        on_start(url)
    await supervisor.stopped.wait()
    await supervisor.stop()


def gateway_name(options: GatewayOptions) -> str:
    """The name that the control plane knows this gateway by; made once and kept in its folder, where there is
    room for it."""
    if options.name is not None:
        return options.name
    path = options.data / NAME_FILE
    with contextlib.suppress(OSError):
        if name := path.read_text().strip():
            return name
    name = f"gw_{secrets.token_hex(8)}"
    try:
        path.write_text(name + "\n")
    except OSError as problem:
        log.error("The gateway's name cannot be kept; it has another at the next start.", error=str(problem))
    return name


def open_listeners(host: str, port: int, count: int) -> list[socket.socket]:
    """One bound socket per front, all on one port. The supervisor keeps them open, so that a front that dies
    and is replaced refuses nobody.

    Raises:
        PortInUse: somebody listens there already.
        InvalidSetting: there is no such address on this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listeners: list[socket.socket] = []
    try:
        with socket.socket(
            family, socket.SOCK_STREAM
        ) as probe:  # without REUSEPORT it meets any other listener
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen(1)
            port = probe.getsockname()[1]
        for _ in range(max(1, count)):
            listener = socket.socket(family, socket.SOCK_STREAM)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind((host, port))
            listener.listen(2048)
    except OSError as problem:
        for listener in listeners:
            listener.close()
        if problem.errno == errno.EADDRINUSE:
            raise errors.PortInUse(
                f"Port {port} on {host} is taken; stop what listens there or choose another with --port.",
                port=port,
            ) from problem
        raise errors.InvalidSetting(f"Cannot listen on {host} port {port}: {problem.strerror}.") from problem
    return listeners


def _require_libraries() -> None:
    try:
        import httptools  # noqa: F401 - only whether it is there
    except ImportError as problem:
        raise errors.ExtraMissing(
            "The gateway needs its own libraries; install modelkeep[gateway]."
        ) from problem


def main(arguments: list[str] | None = None) -> int:
    """Run a gateway from the shell. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="modelkeep-gateway", description="Serve model versions.")
    parser.add_argument("--data", type=Path, required=True, help="folder of journal and cache")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5001, help="0 chooses a free one")
    parser.add_argument("--server", help="address of the control plane")
    parser.add_argument("--token-file", type=Path, help="file with the bearer token")
    parser.add_argument("--callers-token-file", type=Path, help="file with tokens of which callers show one")
    parser.add_argument("--open", action="store_true", help="let anybody ask who reaches the address")
    parser.add_argument("--cors-origin", dest="cors_origins", action="append", default=[])
    parser.add_argument("--allow-code", action="store_true", help="run code that versions bring with them")
    parser.add_argument("--environments", choices=("off", "locked"), default="off", help="of versions")
    parser.add_argument("--fronts", type=int, default=1, help="processes that speak HTTP")
    parser.add_argument("--name", help="what the control plane calls this gateway")
    parser.add_argument("--url", help="address that callers reach it by")
    parser.add_argument("--log-level", default="INFO")
    given = parser.parse_args(arguments)
    telemetry.configure(level=given.log_level)
    given.cors_origins = tuple(given.cors_origins)
    try:
        run_gateway(GatewayOptions(**vars(given)), on_start=lambda url: print(url, flush=True))  # noqa: T201 - for scripts
    except errors.ModelkeepError as problem:
        sys.stderr.write(f"{problem.message}\n")
        return 6 if isinstance(problem, errors.Conflict) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
