"""Our answers on the wire beside MLflow's own to the same requests: status, error code and shape.

What MLflow 3.18 answers stands in golden/mlflow_wire.json. It is taken from a real server by the long test,
which also finds when it is no longer true; the quick one compares ours with it. Where we differ on purpose,
the step says why in a word that docs/reference/mlflow.md explains, and our own answers stand in
golden/mlflow_differences.json.
"""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.mlflow_client import run_mlflow_server
from tests.web.inprocess import InProcess
from tests.web.mlflow_random_steps import Talker
from tests.web.mlflow_steps import Step, converse
from tests.web.mlflow_tracking_steps import STEPS

pytestmark = pytest.mark.req("T1")

ROOT = Path(__file__).parents[2]
THEIRS = ROOT / "tests" / "golden" / "mlflow_wire.json"
JSON = {"content-type": "application/json"}
Answers = dict[str, Any]


def _text(answers: Answers) -> str:
    return json.dumps(answers, indent=1, ensure_ascii=False) + "\n"


def _ours(client: InProcess, steps: list[Step] = STEPS) -> Answers:
    def send(step: Step) -> tuple[int, bytes]:
        query = quote(step.query, safe="=&")
        headers = JSON if step.raw is not None else None
        reply = client(step.method, step.path, step.body, raw=step.raw, query=query, headers=headers)
        return reply.status, reply.body

    return {step.name: [status, answer] for step, status, answer in converse(send, steps)}


def _theirs(url: str, steps: list[Step] = STEPS) -> Answers:
    def send(step: Step) -> tuple[int, bytes]:
        data = json.dumps(step.body).encode() if step.body is not None else step.raw
        request = urllib.request.Request(
            f"{url}{step.path}?{quote(step.query, safe='=&')}",
            data=data,
            method=step.method,
            headers=JSON if data is not None else {},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read()

    return {step.name: [status, answer] for step, status, answer in converse(send, steps)}


def test_we_answer_as_mlflow_does(client: InProcess, golden: Callable[[str, str], None]) -> None:
    """Each step gives the status and the shape that MLflow gives, but for those that say why not."""
    theirs, ours = json.loads(THEIRS.read_text(encoding="utf-8")), _ours(client)
    assert list(ours) == list(theirs), (
        "take MLflow's answers anew: WRITE_GOLDEN=1 pytest -m long of this file"
    )
    unlike = {name for name in ours if ours[name] != theirs[name]}
    meant = {step.name for step in STEPS if step.differs}
    surprises = {name: (theirs[name], ours[name]) for name in unlike ^ meant}
    assert not surprises
    golden("mlflow_differences.json", _text({name: ours[name] for name in sorted(meant)}))


def test_each_difference_is_documented() -> None:
    """Whoever reads the reference finds every difference that the steps know, and no other."""
    page = (ROOT / "docs" / "reference" / "mlflow.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^\| `([a-z0-9-]+)` \|", page, re.MULTILINE))
    assert {step.differs for step in STEPS if step.differs} <= told


@pytest.mark.long
@pytest.mark.usefixtures("mlflow_client")
def test_mlflow_still_answers_so(tmp_path: Path, golden: Callable[[str, str], None]) -> None:
    """What we hold for MLflow's answers is what a real server says that nobody has talked to before."""
    with run_mlflow_server(tmp_path) as url:
        golden("mlflow_wire.json", _text(_theirs(url)))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_random_conversations(client: InProcess, mlflow_server: str, seed: int) -> None:
    """Whatever people do in whatever order, both servers tell the same story."""
    steps = Talker(seed).talk(250)
    ours, theirs = _ours(client, steps), _theirs(mlflow_server, steps)
    sent = {step.name: (step.path, step.body, step.query) for step in steps}
    unlike = [
        (name, sent[name], ours[name], theirs[name])
        for name in ours
        if ours[name] != theirs[name]
        and not (name.endswith("get-history") and theirs[name] == [200, {}])  # `not-there`
    ]
    assert not unlike, f"{len(unlike)} of {len(steps)} answers differ, the first of them: {unlike[0]}"
