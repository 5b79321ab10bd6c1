"""A real server over a data folder: `python -m tests.web.serve DIR [PORT] [AUTH]`.

It prints its address when it answers. In token mode the first admin's token is put into `admin.token` in the
folder before that.
"""

import sys
from pathlib import Path
from typing import TextIO

from modelkeep import settings, wiring
from modelkeep.cli.processes import address_of, listen
from modelkeep.controller import Controller
from modelkeep.core import errors
from modelkeep.settings import Settings
from modelkeep.web.app import create_app
from modelkeep.web.server import Server


def run(found: Settings) -> None:
    """Serve until a signal comes."""
    with listen(found.host, found.port) as listening, wiring.open_house(found) as house:
        first = house.access.first_start() if found.auth == "token" else None
        if first is not None:
            (found.folder / "admin.token").write_text(first.secret)
        controller = Controller(house)
        controller.start()
        try:
            server = Server(
                create_app(house, hosts=found.host_names), lambda: _say(sys.stdout, address_of(listening))
            )
            server.run(sockets=[listening])
        finally:
            controller.stop()


def _say(stream: TextIO, text: str) -> None:
    print(text, file=stream, flush=True)


def main(folder: str, port: str = "0", auth: str = "local") -> int:
    """Serve; 1 when that cannot be begun, which is told on stderr as a code and a sentence."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        run(settings.load({"data": folder, "port": int(port), "auth": auth}))
    except errors.ModelkeepError as problem:
        _say(sys.stderr, f"{problem.code}: {problem}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
