"""The control plane in this process: house, controller and HTTP server, from the first signal that they run
to the last.

The address is taken and the settings are read before; this file is loaded only by the process that serves,
because it draws in the server's libraries.
"""

import os
import socket
import threading
from collections.abc import Callable
from types import FrameType

from modelkeep import wiring
from modelkeep.cli.processes import STOP_S, Ready
from modelkeep.controller import Controller
from modelkeep.settings import Settings
from modelkeep.web import server
from modelkeep.web.app import create_app


def serve(settings: Settings, listener: socket.socket, url: str, on_ready: Callable[[Ready], None]) -> None:
    """Serve on a socket that listens already, until SIGTERM or SIGINT.

    Raises:
        FolderInUse, SchemaTooNew, StoreUnavailable, BlobsUnavailable, InvalidSetting: it cannot start.
    """
    with wiring.open_house(settings) as house:
        admin = None
        if settings.auth == "token":
            first = house.access.first_start()
            admin = first.secret if first is not None else None
            shown = settings.gateway_folder / "token"
            former = shown.read_text().strip() if shown.exists() else None
            wiring.write_private(shown, house.access.gateway_token(former) + "\n")
        app = create_app(house, hosts=(settings.host, *settings.host_names))
        running = Server(app, lambda: on_ready(Ready(url=url, admin_token=admin)))
        controller = Controller(house)
        controller.start()
        try:
            running.run(sockets=[listener])
        finally:
            controller.stop()


class Server(server.Server):
    """The server, which ends its process in any case a while after it was told to stop."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """At SIGTERM or SIGINT: stop in order."""
        if not self.should_exit:
            # Should a thread hold it up: what was acknowledged is safe on disk, so the process may just end.
            end = threading.Timer(STOP_S, os._exit, (0,))
            end.daemon = True
            end.start()
        super().handle_exit(sig, frame)
