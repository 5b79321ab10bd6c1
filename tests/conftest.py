"""What every test gets without asking: closed sockets, steady property tests, a clean environment, golden
files.

It starts no server (tests/servers.py does, when a test asks for one) and holds no fixture of a single floor:
those stand beside the tests of that floor.
"""

import difflib
import ipaddress
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.servers", "tests.mlflow_client"]

SERVER_FIXTURES = frozenset({"postgres_server", "postgres_url", "s3_server", "mlflow_server"})
MLFLOW_FIXTURES = frozenset({"mlflow_client", "mlflow_server"})
MARKS_THAT_OPEN_SOCKETS = ("network", "external", "journey", "mlflow")
REQUIREMENT = re.compile(r"[TVGSMIU][1-9][0-9]?")
GOLDEN = Path(__file__).parent / "golden"

# The default finds the same examples on every machine, so that a red run means a change and not bad luck;
# `deep` looks for new ones: HYPOTHESIS_PROFILE=deep make test ARGS=tests/properties
settings.register_profile(
    "default",
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("deep", max_examples=300, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the fixtures they use, and refuse a requirement id that cannot be one."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & SERVER_FIXTURES:
            item.add_marker("external")
        if fixtures & MLFLOW_FIXTURES:
            item.add_marker("mlflow")
        if "mlflow_server" in fixtures:
            item.add_marker("long")
        if "golden" in fixtures:
            item.add_marker("golden")
        for mark in item.iter_markers("req"):
            for name in mark.args:
                if not REQUIREMENT.fullmatch(name):
                    raise pytest.UsageError(
                        f"{item.nodeid}: {name!r} is no requirement id; write one like V3."
                    )


class SocketRefused(RuntimeError):
    """A test opened a connection without its mark, or tried to leave this machine."""


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def _guard_sockets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections by IP, except within this machine in tests marked network, external or journey.

    Unix sockets and socket pairs stay open: asyncio and the data plane live on them. Connections made by
    compiled code (libpq, obstore, uvloop) do not pass here; they need a server, and a server's fixture brings
    its mark.
    """
    allowed = any(request.node.get_closest_marker(mark) for mark in MARKS_THAT_OPEN_SOCKETS)

    def guarded(name: str) -> Callable[..., object]:
        original = getattr(socket.socket, name)

        def call(self: socket.socket, *args: object) -> object:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                address = args[-1]
                host = str(address[0]) if isinstance(address, tuple) else str(address)
                if not allowed:
                    raise SocketRefused(f"{host}: mark this test network to let it open connections.")
                if not _is_this_machine(host):
                    raise SocketRefused(f"{host}: tests stay on this machine; start the server in the test.")
            return original(self, *args)

        return call

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, guarded(name))


@pytest.fixture(autouse=True)
def _forget_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the settings of whoever runs the tests, so that everybody runs the same ones."""
    for name in [name for name in os.environ if name.startswith("MODELKEEP_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """Give a function `check(name, text)` that compares what a person would read with tests/golden/NAME.

    With WRITE_GOLDEN=1 (`make golden`) the file is written instead, to be read as a diff before it is
    committed.
    """

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if os.environ.get("WRITE_GOLDEN"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        if not path.exists():
            pytest.fail(f"There is no golden file {name} yet: write it with make golden, and read it.")
        expected = path.read_text(encoding="utf-8")
        if text != expected:
            lines = difflib.unified_diff(
                expected.splitlines(), text.splitlines(), "golden", "now", lineterm="", n=2
            )
            pytest.fail(
                f"{name} reads differently (make golden accepts it):\n" + "\n".join(lines), pytrace=False
            )

    return check
