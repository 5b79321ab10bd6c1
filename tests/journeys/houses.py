"""A whole Modelkeep for journeys: `modelkeep up` as a process of its own, on free ports, gone afterwards.

The journeys talk to it as people do, through the client and the command line; nothing is reached into.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelkeep import Client

MODELKEEP = str(Path(sys.executable).with_name("modelkeep"))
STOP_S = 60.0
"""Longer than the processes themselves allow one another."""


class House:
    """One running installation.

    Attributes:
        url, gateway: addresses of registry and gateway.
        data: the folder of everything.
        admin_token: the first admin's, where tokens are asked for.
    """

    def __init__(self, folder: Path, auth: str) -> None:
        self.data = folder / "house"
        self._log = folder / "up.log"
        self._clients: list[Client] = []
        words = [MODELKEEP, "up", "--json", "--data", str(self.data), "--auth", auth]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*words, "--port", "0", "--gateway-port", "0"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()  # nothing comes before both are ready
        if not line:
            self.close()
            raise AssertionError(f"'modelkeep up' did not start:\n{self.log()}")
        places: dict[str, Any] = json.loads(line)
        self.url: str = places["registry"]
        self.gateway: str = places["gateway"]
        self.admin_token: str | None = places.get("admin_token")

    def client(self, token: str | None = None) -> Client:
        """A client of somebody; the admin's when no token is given."""
        made = Client(self.url, token or self.admin_token)
        self._clients.append(made)
        return made

    def log(self) -> str:
        """What the processes have logged, the end of it."""
        return self._log.read_text(errors="replace")[-4_000:]

    def run(self, *words: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        """The command line, as somebody; the admin when no token is given."""
        own = dict(os.environ) | {"MODELKEEP_URL": self.url}
        if given := token or self.admin_token:
            own["MODELKEEP_TOKEN"] = given
        return subprocess.run(
            [MODELKEEP, *words], env=own, capture_output=True, text=True, check=False, timeout=120
        )

    def close(self) -> None:
        """End it as a person does, and see that it ends."""
        for client in self._clients:
            client.close()
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            assert self._process.stdout is not None
            self._process.stdout.close()


@contextlib.contextmanager
def running_house(auth: str = "local") -> Iterator[House]:
    """An installation in a folder with a short name: paths of sockets are limited, and pytest's are long."""
    with tempfile.TemporaryDirectory(prefix="mk-") as folder:
        house = House(Path(folder), auth)
        try:
            yield house
        finally:
            house.close()
