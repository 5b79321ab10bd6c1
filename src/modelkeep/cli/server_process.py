"""The control plane in this process: house, controller and HTTP server, from the first signal that they run
to the last.

The address is taken and the settings are read before; this file is loaded only by the process that serves,
because it draws in the server's libraries.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn
import uvloop

from modelkeep import wiring
from modelkeep.cli.processes import STOP_S, Ready
from modelkeep.controller import Controller
from modelkeep.settings import Settings
from modelkeep.web.app import create_app

GRACE_S = 2
"""After the signal to stop, answers under way have so long; gateways that wait for a table are sent away
then.
"""
BACKLOG = 2_048
"""Connections that may wait to be accepted."""


def serve(settings: Settings, listener: socket.socket, url: str, on_ready: Callable[[Ready], None]) -> None:
    """Serve on a socket that listens already, until SIGTERM or SIGINT.

    Raises:
        FolderInUse, SchemaTooNew, StoreUnavailable, BlobsUnavailable, InvalidSetting: it cannot start.
    """
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    with wiring.open_house(settings) as house:
        admin = None
        if settings.auth == "token":
            first = house.access.first_start()
            admin = first.secret if first is not None else None
            wiring.write_private(settings.gateway_folder / "token", house.access.gateway_token() + "\n")
        config = uvicorn.Config(
            create_app(house, hosts=(settings.host, *settings.host_names)),
            http="httptools",
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
            backlog=BACKLOG,
        )
        server = Server(config, lambda: on_ready(Ready(url=url, admin_token=admin)))
        controller = Controller(house)
        controller.start()
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(server.serve(sockets=[listener]))
        finally:
            controller.stop()


class Server(uvicorn.Server):
    """Tells when it is ready, and at a signal stops without raising it again over what has to be closed."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept, and say so."""
        await super().startup(sockets=sockets)
        gc.collect()
        gc.freeze()  # what is loaded stays; the collector need not walk it again and again
        if not self.should_exit:
            self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop in order at SIGTERM and SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        yield

    def _stop(self) -> None:
        if not self.should_exit:
            # Should a thread hold it up: what was acknowledged is safe on disk, so the process may just end.
            end = threading.Timer(STOP_S, os._exit, (0,))
            end.daemon = True
            end.start()
        self.should_exit = True
