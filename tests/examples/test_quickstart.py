"""The quickstart does what its reader is told it does, against a real Modelkeep."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.journeys.houses import running_house

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.py"


@pytest.mark.journey
@pytest.mark.req("U1", "U4")
def test_the_quickstart_ends_where_it_says() -> None:
    """Two versions are registered and served, the first returns, and the past can be asked."""
    with running_house() as house:
        done = subprocess.run(
            [sys.executable, str(QUICKSTART)],
            env={**os.environ, "MODELKEEP_URL": house.url},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0].startswith("tumour:1.0.0: accuracy 0.")
        assert lines[1].startswith("  answered by tumour:1.0.0 [")
        assert lines[2].startswith("tumour:1.1.0: accuracy 0.")
        assert lines[3].startswith("  answered by tumour:1.1.0 [")
        assert lines[4] == "rolled back to tumour:1.0.0"
        assert lines[5].startswith("a moment ago it was tumour:1.1.0, because of accuracy 0.")
        assert house.client().get_version("tumour#production").semver == "1.0.0"


def test_the_quickstart_is_short() -> None:
    """It fits on a page."""
    assert len(QUICKSTART.read_text().splitlines()) < 80
