"""What a start costs: help and a command that only speaks with a server load no server, and are quick."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

HELP_MAX_S = 0.2
MODELKEEP = str(Path(sys.executable).with_name("modelkeep"))


def _seconds(*words: str) -> float:
    began = time.perf_counter()
    subprocess.run([MODELKEEP, *words], capture_output=True, check=True)
    return time.perf_counter() - began


@pytest.mark.req("U1")
def test_help_is_quick() -> None:
    """`modelkeep --help` takes below 200 ms, at its best of five; so does the help of a command."""
    assert min(_seconds("--help") for _ in range(5)) < HELP_MAX_S
    assert min(_seconds("promote", "--help") for _ in range(5)) < HELP_MAX_S


@pytest.mark.req("U1")
def test_a_command_loads_only_its_column() -> None:
    """Asking a server loads neither numpy nor a server library, and no command of another column."""
    script = (
        "import sys; from modelkeep.cli.main import run; run(['ls', '--url', 'http://127.0.0.1:1']);"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "modelkeep.cli.catalog_commands" in loaded
    assert not {"numpy", "sqlalchemy", "starlette", "uvicorn", "asyncio", "yaml", "rich", "httpx"} & loaded
    assert "modelkeep.cli.rollout_commands" not in loaded
