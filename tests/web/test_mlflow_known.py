"""Answers that the MLflow door keeps: never what no longer holds, never to whom it is not meant, never
without end.

That histories of promotions and rollouts leave none behind is checked by the machines in `properties`.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from modelkeep.service.house import House
from modelkeep.store.standing import Mark
from modelkeep.web.app import create_app
from modelkeep.web.mlflow.known import MARK_BYTES, Known
from tests.properties.kept_answers import KeptAnswers
from tests.web.inprocess import InProcess, in_process
from tests.web.mlflow_registry_table import STEPS
from tests.web.test_mlflow_registry import ask, done, new_run, refused
from tests.web.world import fill, opened

pytestmark = pytest.mark.req("T4")


class Text(Struct):
    """What a line of the tests becomes."""

    text: str


def known(limit_bytes: int) -> Known[str]:
    """A line is a text; one with a question mark is not settled."""
    return Known(Text, lambda line: "?" not in line, limit_bytes)


class Lines:
    """Lines by their ids, and which of them were read."""

    def __init__(self, **lines: str) -> None:
        self.lines = lines
        self.read: list[str] = []

    def __call__(self, ids: list[str]) -> dict[str, str]:
        self.read += ids
        return {each: self.lines[each] for each in ids}


def texts(kept: Known[str], marks: list[Mark], lines: Lines) -> list[str]:
    """What is said under these marks."""
    return [json.loads(bytes(memoryview(piece)))["text"] for piece in kept.pieces(marks, lines)]


def test_a_piece_is_read_once_for_each_past() -> None:
    """In the order asked for; anew after an event; and always where nothing is known of the past."""
    kept, lines = known(1_000_000), Lines(a="x", b="y", c="z?")
    a, b = Mark("a", "1"), Mark("b", "1")
    assert texts(kept, [b, a], lines) == ["y", "x"]
    assert texts(kept, [a, b], lines) == ["x", "y"]
    assert lines.read == ["b", "a"]
    lines.lines["a"] = "changed"
    assert texts(kept, [a, Mark("a", "2")], lines) == ["x", "changed"]
    assert lines.read == ["b", "a", "a"]
    for unkept in (Mark("b"), Mark("c", "1")):
        assert texts(kept, [unkept], lines) == texts(kept, [unkept], lines)
    assert lines.read[3:] == ["b", "b", "c", "c"]


def test_pieces_are_dropped_when_they_are_too_many() -> None:
    """The room for them has an end; what is used stays longest."""
    room = 10
    kept = known(room * (MARK_BYTES + len(b'{"text":"x"}')))
    lines = Lines(**{f"m{n}": "x" for n in range(100)})
    often = Mark("m0", "1")
    for n in range(1, 100):
        texts(kept, [Mark(f"m{n}", "1"), often], lines)
        assert len(kept._young) + len(kept._old) <= room
    assert lines.read.count("m0") == 1
    texts(kept, [Mark("m1", "1")], lines)
    assert lines.read.count("m1") == 2


def test_no_change_through_this_door_leaves_an_old_answer(client: InProcess, house: House) -> None:
    """After each request of the table, renames and deletions among them."""
    kept, run = KeptAnswers(), new_run(client)
    for step in STEPS:
        ask(client, step.method, step.path, json.loads(json.dumps(step.sent).replace("{run}", run)))
        kept.check(house.desk.database)


def test_no_change_through_our_own_door_leaves_an_old_answer(client: InProcess, house: House) -> None:
    """Yanks, stage graphs, protected aliases, renames there and back, and a model that is taken up again."""
    kept, run = KeptAnswers(), new_run(client)
    done(client, "POST", "registered-models/create", {"name": "m"})
    for _ in range(2):
        source = {"name": "m", "source": f"runs:/{run}/model", "run_id": run}
        done(client, "POST", "model-versions/create", source)
    graph = client("GET", "/api/v1/models/default/m").json()["stages"]
    looser = {**graph, "stages": [{**each, "exclusive": False} for each in graph["stages"]]}
    ours: list[tuple[str, str, Any]] = [
        ("POST", "/api/v1/version/yank?ref=m:%232", {"reason": "wrong data"}),
        ("POST", "/api/v1/version/unyank?ref=m:%232", {"reason": "right after all"}),
        ("PUT", "/api/v1/models/default/m/aliases/champion", {"ref": "m:#1", "protected": True}),
        ("PUT", "/api/v1/models/default/m/stages", looser),
        ("PATCH", "/api/v1/models/default/m", {"description": "d", "set_tags": {"a": "b"}}),
        ("PATCH", "/api/v1/version?ref=m:%231", {"description": "d", "delete_tags": ["a"]}),
        ("POST", "/api/v1/models/default/m/rename", {"name": "n"}),
        ("PATCH", "/api/v1/models/default/n", {"description": "under another name"}),
        ("POST", "/api/v1/models/default/n/rename", {"name": "m"}),
        ("DELETE", "/api/v1/models/default/m/aliases/champion", None),
        ("DELETE", "/api/v1/models/default/m", None),
        ("POST", "/api/v1/models", {"name": "m"}),
    ]
    kept.check(house.desk.database)
    for method, path, body in ours:
        path, _, query = path.partition("?")
        reply = client(method, path, body, query=query)
        assert reply.status in (200, 201), reply.body
        kept.check(house.desk.database)


def test_what_is_kept_is_for_those_who_may_see_it(tmp_path: Path) -> None:
    """What somebody was just told does not exist for who may not read it, alone or in a list."""
    with opened(tmp_path / "data", "token") as house:
        world = fill(house)
        with in_process(create_app(house), world.tokens["viewer"]) as client:
            headers = {"x-mlflow-workspace": "own"}
            stranger = {"headers": headers, "token": world.tokens["stranger"]}
            one = ("GET", "registered-models/get", {"name": "churn"})
            version = ("GET", "model-versions/get", {"name": "churn", "version": "1"})
            for asked in (one, version):
                done(client, *asked, headers=headers)
                assert refused(client, *asked, **stranger)[:2] == (404, "RESOURCE_DOES_NOT_EXIST")
            for path in ("registered-models/search", "model-versions/search"):
                assert done(client, "GET", path, {}, headers=headers)
                assert done(client, "GET", path, {}, **stranger) == {}
