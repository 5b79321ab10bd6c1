"""Golden requests as a worker asks them: a version that answers otherwise is not loaded."""

import json
from pathlib import Path
from typing import Any

import pytest

from modelkeep.core import errors
from modelkeep.core.signature import Signature
from modelkeep.serving import golden, runtimes
from tests.serving import models

pytest.importorskip("onnxruntime", reason="the runtimes are extras")

ROW = {"age": 10, "income": 1}


def ask(content: Any, signature: Signature | None = models.SIGNATURE) -> int:
    """What a worker does with a version of this `golden.json`; its score is twice the age and the income."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    files = {"model.onnx": models.linear_onnx(2.0), "golden.json": data}
    spec = models.spec(files, "1.0.0", signature=signature)
    return golden.ask(spec, runtimes.load(spec, files, Path("/nowhere"), 1), files)


def requests(*pairs: tuple[Any, Any], **more: float) -> dict[str, Any]:
    """The content of such a file."""
    return {"requests": [{"inputs": inputs, "outputs": outputs} for inputs, outputs in pairs], **more}


@pytest.mark.req("S2")
def test_a_version_that_answers_as_before_is_loaded() -> None:
    """Rows as objects, rows as lists and columns, each in the form in which callers get it."""
    columns = {"age": [10, 0], "income": [1, 3]}
    asked = ask(requests(([ROW], [21.0]), ([[10, 1]], [21.000001]), (columns, {"score": [21, 3]})))
    assert asked == 3
    assert ask(requests(([[10, 1]], [[21.0]])), None) == 1


def test_a_version_without_golden_requests_is_asked_nothing() -> None:
    """No file, or none in it."""
    assert ask(requests()) == 0
    spec = models.spec({"model.onnx": b"x"}, "1.0.0")
    assert golden.ask(spec, None, {"model.onnx": b"x"}) == 0  # type: ignore[arg-type]  # nobody is asked


WRONG: list[tuple[Any, str]] = [
    (
        requests(([ROW], [21.0]), ([ROW, ROW], [21.0, 22.0])),
        "Golden request 1 .* row 1 is 21.0 instead of 22.0",
    ),
    (requests(({"age": [1], "income": [1]}, {"score": [4]})), "row 0, field 'score' is 3.0 instead of 4"),
    (requests(([{"age": 200, "income": 1}], [401.0])), "field 'age'"),
    (requests(([ROW], [21.5]), relative=0.01), "21.0 instead of 21.5"),
    (b"{", "cannot be read"),
]


@pytest.mark.req("S2")
@pytest.mark.parametrize(("content", "text"), WRONG)
def test_another_answer_fails_the_load_with_its_place(content: Any, text: str) -> None:
    """The request, the row, the field and both values are named; so is a request that the version refuses."""
    with pytest.raises(errors.Invalid, match=text):
        ask(content)


def test_a_tolerance_of_its_own_is_kept_to() -> None:
    """The file says how exact it has to be."""
    assert ask(requests(([ROW], [21.5]), relative=0.05)) == 1
