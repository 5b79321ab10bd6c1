"""A fake server and a client of it. The waits between retries are made short; that they happen is what is
tested.
"""

from collections.abc import Iterator

import pytest

from modelkeep.client import Client, files, transport
from tests.client.fake_server import FakeServer, running


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A server of the wire's own words, without anything behind it."""
    monkeypatch.setattr(transport, "RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(files, "STALL_FIRST_S", 0.001)
    with running() as fake:
        yield fake


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    """A client of it."""
    with Client(server.url, token="mk_u_test", timeout_s=30) as made:
        yield made
