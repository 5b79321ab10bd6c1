"""`modelkeep rollout simulate --log`: a Parquet file, a plan, and no server."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.req("S7", "S11"), pytest.mark.network]

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

Run = Callable[..., Any]
AT = datetime(2026, 11, 20, 9, tzinfo=UTC)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half an hour of a log: two rows a request, some callers unnamed, other sides and endpoints as well."""
    rng = np.random.default_rng(3)
    requests = 3_000
    at = [AT + timedelta(seconds=float(s)) for s in rng.uniform(0, 1_800, requests)]
    who = rng.integers(0, 400, requests)
    facts = {
        "at": at,
        "request_id": [f"r{i}" for i in range(requests)],
        "endpoint": ["churn" if i % 50 else "other" for i in range(requests)],
        "side": ["stable" if i % 10 else "candidate" for i in range(requests)],
        "latency_ms": rng.lognormal(3, 1, requests).tolist(),
        "status": np.where(rng.random(requests) < 0.03, 500, 200).tolist(),
        "input.customer": [f"c{w}" if w else None for w in who],
    }
    doubled = {name: [value for value in values for _ in range(2)] for name, values in facts.items()}
    path = tmp_path_factory.mktemp("log") / "yesterday.parquet"
    pq.write_table(pa.table(doubled | {"row": [0, 1] * requests}), path)
    return path


def test_a_log_is_led_through_a_plan(modelkeep: Run, log: Path) -> None:
    """Each request to this endpoint's stable version counts once; callers are told apart by the key."""
    words = ("rollout", "simulate", "churn", "--log", str(log), "--step", "50%:60:600", "--step", "100%:60")
    ran = modelkeep(*words, "--key", "input.customer", "--runs", "30", "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["requests"] == sum(1 for i in range(3_000) if i % 50 and i % 10)
    assert 350 < told["callers"] < 450, "400 of them, of whom one is without a name"
    assert told["outlook"]["runs"] == 30
    assert [each["odds"] for each in told["outlook"]["regressions"]] == [1.5, 2.0, 4.0, 10.0]
    assert told["outlook"]["regressions"][3]["seen"] > 0.5
    said = modelkeep(*words, "--runs", "20")
    assert "each a caller of its own" in said.out
    assert "promised: at most 1.00%" in said.out


@pytest.mark.parametrize(
    ("endpoint", "more", "code"),
    [
        ("nobody", (), 5),
        ("churn", ("--key", "nothing"), 1),
        ("churn", ("--runs", "0"), 1),
    ],
)
def test_what_is_not_in_the_log_is_told(
    modelkeep: Run, log: Path, endpoint: str, more: tuple[str, ...], code: int
) -> None:
    """Another endpoint, a column that is not there, a number that cannot be."""
    ran = modelkeep("rollout", "simulate", endpoint, "--log", str(log), *more)
    assert ran.code == code, ran.err
    assert ran.err


def test_files_that_are_no_log_are_told(modelkeep: Run, tmp_path: Path) -> None:
    """No file, no Parquet, and options about a log without one."""
    odd = tmp_path / "odd.parquet"
    odd.write_bytes(b"not parquet")
    assert modelkeep("rollout", "simulate", "churn", "--log", str(tmp_path / "none")).code == 5
    assert modelkeep("rollout", "simulate", "churn", "--log", str(odd)).code == 1
    assert modelkeep("rollout", "simulate", "churn", "--key", "who").code == 2
