"""What the tests of the web floor share: a house of one's own in local mode, and an application over it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelkeep.service.house import House
from modelkeep.web.app import create_app
from tests.web.inprocess import InProcess, in_process
from tests.web.world import opened


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """An empty house in local mode."""
    with opened(tmp_path / "data") as found:
        yield found


@pytest.fixture
def client(house: House) -> Iterator[InProcess]:
    """The application over it, in this process."""
    with in_process(create_app(house)) as found:
        yield found
