"""The project's own tools keep their promises: pins, make targets, the guard on sockets, the fresh clone.

The servers have their own file (test_servers.py), and so have the floors (test_architecture.py).
"""

import asyncio
import os
import re
import shutil
import socket
import subprocess
import time
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PINS = ROOT / "requirements" / "dev.txt"
MLFLOW_PINS = ROOT / "requirements" / "mlflow.txt"
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run"]


def _requirement(text: str) -> str:
    """Take the name out of a requirement, in the one spelling that all spellings of it share."""
    name = re.match(r"[A-Za-z0-9._-]+", text)
    assert name, text
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def _pinned(pins: Path = PINS) -> dict[str, str]:
    """Read the pins: the first line of each requirement, and all of its text, by name."""
    blocks = re.split(r"\n(?=[a-z0-9])", "\n" + pins.read_text())[1:]
    return {_requirement(block): block for block in blocks}


def _run(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command and keep what it prints; its status is for the test to judge."""
    return subprocess.run(
        command,
        check=False,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )


# ----------------------------------------------------------------------------------------------------- pins


@pytest.mark.parametrize("pins", [PINS, MLFLOW_PINS], ids=lambda path: path.name)
def test_every_requirement_is_pinned_and_hashed(pins: Path) -> None:
    """Each package has one exact version for a system and at least one hash."""
    pinned = _pinned(pins)
    assert len(pinned) > 50
    for name, block in pinned.items():
        assert re.match(r"[a-z0-9._-]+(\[[a-z,]+\])?==\S+", block), name
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", block), name


@pytest.mark.parametrize("pins", [PINS, MLFLOW_PINS], ids=lambda path: path.name)
def test_pins_name_no_address(pins: Path) -> None:
    """Where packages come from is the matter of whoever installs them."""
    text = pins.read_text()
    assert "://" not in text
    assert not re.search(r"^\s*--?(i|f|index|extra-index|find-links|trusted)", text, re.MULTILINE)


def test_everything_that_is_asked_for_is_pinned() -> None:
    """No dependency of pyproject.toml, extra or build backend was forgotten since the pins were made."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    asked = [
        *project["project"]["dependencies"],
        *project["build-system"]["requires"],
        *(text for extra in extras.values() for text in extra),
    ]
    names = {_requirement(text) for text in asked} - {"modelkeep"}
    assert not names - _pinned().keys(), "renew the pins: ONLY_NEW=1 make pins"


# ----------------------------------------------------------------------------------------- make and scripts


def test_help_lists_every_target() -> None:
    """Whoever types make sees all there is to type."""
    declared = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert declared
    shown = _run("make", "--no-print-directory", "help").stdout
    assert set(declared[1].split()) == set(re.findall(r"^ +make ([a-z-]+) ", shown, re.MULTILINE))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_stop_at_the_first_error(script: Path) -> None:
    """Every script parses, may be executed, and does not go on after a failure."""
    assert "set -euo pipefail" in script.read_text()
    assert os.access(script, os.X_OK)
    assert _run("bash", "-n", str(script)).returncode == 0


def test_a_missing_program_is_told_at_home_and_refused_in_ci(tmp_path: Path) -> None:
    """Without the means to install, one line says what is missing; in CI that is an error."""
    for name in ("bash", "id"):
        found = shutil.which(name)
        assert found
        (tmp_path / name).symlink_to(found)
    script = str(ROOT / "scripts" / "setup_system.sh")
    at_home = _run("bash", script, PATH=str(tmp_path), CI="")
    assert at_home.returncode == 0
    assert re.fullmatch(r"setup-system: missing: .*wrk.*apt-get install .*wrk\n", at_home.stdout)
    assert _run("bash", script, PATH=str(tmp_path), CI="true").returncode == 1


def test_setting_up_again_costs_nothing() -> None:
    """What is set up is left alone, without a word and at once; `.ci/run` begins in a fresh clone."""
    assert _run("make", "setup").returncode == 0
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        again = _run("make", "--no-print-directory", "setup", MAKEFLAGS="")
        seconds.append(time.monotonic() - started)
        assert (again.returncode, again.stdout) == (0, "")
    assert min(seconds) < 5, "to set it up anew takes a minute"


# -------------------------------------------------------------------------------------------------- sockets


def test_an_unmarked_test_opens_no_connection() -> None:
    """Connecting by IP is refused, by the plain call and through asyncio."""
    with socket.socket(socket.AF_INET) as plain, pytest.raises(RuntimeError, match="mark this test network"):
        plain.connect(("127.0.0.1", 9))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain, pytest.raises(RuntimeError):
        plain.sendto(b"x", ("127.0.0.1", 9))
    with pytest.raises(RuntimeError, match="mark this test network"):
        asyncio.run(_connect_to(9))


async def _connect_to(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    await writer.wait_closed()


def test_unix_sockets_stay_open(tmp_path: Path) -> None:
    """The data plane speaks over unix sockets, and asyncio needs pairs of them."""
    path = str(tmp_path / "s")

    async def exchange() -> bytes:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(2))
            await writer.drain()
            writer.close()

        async with await asyncio.start_unix_server(answer, path):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"hi")
            received = await reader.read()
            writer.close()
            await writer.wait_closed()
            return received

    assert asyncio.run(exchange()) == b"hi"


@pytest.mark.network
def test_a_marked_test_reaches_this_machine_and_no_other() -> None:
    """The mark opens the loopback addresses; everything beyond stays shut."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        asyncio.run(_connect_to(server.getsockname()[1]))
    with socket.socket(socket.AF_INET) as plain, pytest.raises(RuntimeError, match="stay on this machine"):
        plain.connect(("192.0.2.1", 80))


def test_nobody_elses_settings_reach_a_test() -> None:
    """A developer's own MODELKEEP_URL changes no result."""
    assert not [name for name in os.environ if name.startswith("MODELKEEP_")]
