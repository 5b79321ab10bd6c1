"""A command line in this process against a fake server, and what it printed."""

from collections.abc import Callable, Iterator

import pytest

from modelkeep.cli.main import run
from modelkeep.client import files, transport
from tests.client.fake_server import FakeServer, running


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A server of the wire's own words, which MODELKEEP_URL names."""
    monkeypatch.setattr(transport, "RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(files, "STALL_FIRST_S", 0.001)
    with running() as fake:
        monkeypatch.setenv("MODELKEEP_URL", fake.url)
        yield fake


class Ran:
    """How a command line ended: exit code, standard output, standard error."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def modelkeep(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run one command line, word by word, as in a pipe."""

    def call(*words: str) -> Ran:
        capsys.readouterr()
        code = run(list(words))
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return call
