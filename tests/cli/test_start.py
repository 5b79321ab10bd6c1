"""What a start costs: help and a command that only speaks with a server load no server. How long they
take is measured by `bench/start_times`.
"""

import subprocess
import sys

import pytest

SERVER = {"numpy", "sqlalchemy", "uvicorn", "asyncio", "yaml", "rich", "httpx", "http.client"}
"""Of a server, and of what only some commands need."""


@pytest.mark.req("U1")
@pytest.mark.parametrize(
    ("words", "spared"),
    [(["--help"], {"modelkeep.client", "modelkeep.cli.promotion_commands"}), (["promote", "--help"], set())],
)
def test_help_loads_little(words: list[str], spared: set[str]) -> None:
    """Help needs no server, and of the commands' columns its own alone."""
    script = f"import sys; from modelkeep.cli.main import run; run({words!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "modelkeep.cli.main" in loaded
    assert not SERVER & loaded
    assert not (spared | {"modelkeep.cli.access_commands"}) & loaded


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
