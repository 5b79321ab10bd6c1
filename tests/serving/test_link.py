"""The gateway's calls to its control plane, and whose token they carry."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from modelkeep.core import errors
from modelkeep.core.routing import RoutingTable
from modelkeep.core.values import Digest
from modelkeep.serving.link import Link
from modelkeep.serving.options import GatewayOptions
from tests.serving.control_plane import FakeControlPlane

pytestmark = [pytest.mark.network, pytest.mark.req("S1")]

CONTENT = Digest(f"sha256:{'e' * 64}")


class Renewing(FakeControlPlane):
    """One that replaces the gateway's token while the gateway's first request waits for its answer, as a
    server does that starts."""

    def __init__(self, file: Path) -> None:
        super().__init__(token="new")
        self._file = file
        self.renews = True

    def _authorised(self, handler: BaseHTTPRequestHandler) -> bool:
        if self.renews:
            self._file.write_text("new\n")
        return super()._authorised(handler)


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Renewing]:
    """A control plane with a table and a file, and a gateway's folder with its former token."""
    (tmp_path / "token").write_text("old\n")
    made = Renewing(tmp_path / "token")
    with made:
        made.publish(RoutingTable(number=3, routes=(), versions=()))
        made.blobs[CONTENT] = b"bytes"
        yield made


def link(plane: FakeControlPlane, data: Path, token_file: Path | None = None) -> Link:
    """A link of a gateway in a folder."""
    return Link(GatewayOptions(data=data, server=plane.url, token_file=token_file, poll_wait_s=1.0))


@pytest.mark.parametrize("what", ["table", "blob"])
def test_a_token_renewed_under_way_is_read_again(tmp_path: Path, plane: Renewing, what: str) -> None:
    """A request that left with the former token is asked once more with the one that replaced it."""
    asked = link(plane, tmp_path)
    if what == "table":
        table = asked.table(0)
        assert table is not None
        assert table.number == 3
    else:
        assert b"".join(asked.blob(CONTENT)) == b"bytes"
    assert plane.refused == 1
    asked.close()


def test_a_token_that_stays_wrong_is_refused_once(tmp_path: Path, plane: Renewing) -> None:
    """Nothing is asked again with the same token, and what the server says comes up."""
    plane.renews = False
    asked = link(plane, tmp_path)
    with pytest.raises(errors.NotAuthenticated, match="Who are you"):
        asked.table(0)
    assert plane.refused == 1
    asked.close()


def test_the_token_beside_is_used_once_it_is_there(tmp_path: Path, plane: Renewing) -> None:
    """A gateway may be started before the server that leaves it a token; a file that was named must be
    there."""
    plane.renews = False
    (tmp_path / "token").unlink()
    asked = link(plane, tmp_path)
    with pytest.raises(errors.NotAuthenticated, match="Who are you"):
        asked.table(0)
    (tmp_path / "token").write_text("new")
    assert asked.table(0) is not None
    asked.close()
    with pytest.raises(errors.NotAuthenticated, match="cannot be read"):
        link(plane, tmp_path, tmp_path / "elsewhere").table(0)
