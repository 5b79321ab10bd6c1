"""The README keeps its word: its session is typed, its links lead somewhere, its Python runs."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journeys.houses import House

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A registry and a gateway, empty."""
    made = House(tmp_path, "local")
    yield made
    made.close()


def _blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.mark.req("U1", "V1")
@pytest.mark.journey
def test_the_session_runs_as_it_stands(house: House, tmp_path: Path) -> None:
    """Each command of the session prints what stands below it; an ellipsis stands for anything."""
    (tmp_path / "model.onnx").write_bytes(b"one")
    (tmp_path / "better.onnx").write_bytes(b"other")
    (tmp_path / "model.yaml").write_text("signature: {inputs: {age: int64}, outputs: {leaves: float32}}\n")
    environment = {**os.environ, "MODELKEEP_URL": house.url}
    program = Path(sys.executable).with_name("modelkeep")
    for step in re.split(r"^\$ ", _blocks("console")[0], flags=re.MULTILINE)[1:]:
        command, _, expected = step.partition("\n")
        words = shlex.split(command)
        assert words[0] == "modelkeep"
        done = subprocess.run(
            [program, *words[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        pattern = re.escape(expected.strip()).replace("…", "(?:.|\n)*")
        assert re.fullmatch(pattern, done.stdout.strip()), f"{command}\n{done.stdout}"


@pytest.mark.req("U2")
@pytest.mark.journey
def test_the_python_runs_as_it_stands(house: House, tmp_path: Path) -> None:
    """The lines of the SDK's example run from top to bottom."""
    (tmp_path / "model.onnx").write_bytes(b"one")
    environment = {**os.environ, "MODELKEEP_URL": house.url}
    done = subprocess.run(
        [sys.executable, "-c", _blocks("python")[0]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_link_leads_somewhere() -> None:
    """No link of the README is broken."""
    links = re.findall(r"\]\(([^)#]+)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
