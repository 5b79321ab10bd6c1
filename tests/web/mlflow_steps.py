"""One conversation with an MLflow server, request by request: what is sent to ours and to MLflow's own, to be
compared. Each step has a name; where the two answer differently on purpose it says why.

What it does not do: send anything, or judge an answer.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

API = "/api/2.0/mlflow/"


@dataclass(frozen=True)
class Step:
    """One request. `{run}` and the like in it stand for ids that earlier answers gave.

    Attributes:
        raw: the body as it is, in place of JSON.
        save: which ids later steps use: a name and the path to it in the answer.
        differs: why our answer is another one; the same words stand in docs/reference/mlflow.md.
    """

    name: str
    method: str
    path: str
    body: Any = None
    query: str = ""
    raw: bytes | None = None
    save: dict[str, str] = field(default_factory=dict)
    differs: str | None = None


def post(name: str, path: str, body: Any = None, **more: Any) -> Step:
    """A step that posts JSON."""
    return Step(name, "POST", API + path, {} if body is None and "raw" not in more else body, **more)


def get(name: str, path: str, query: str = "", **more: Any) -> Step:
    """A step that asks."""
    return Step(name, "GET", API + path, query=query, **more)


Send = Callable[[Step], tuple[int, bytes]]
"""Sends a step whose places are filled and gives status and body."""


def converse(send: Send, steps: list[Step]) -> Iterator[tuple[Step, int, Any]]:
    """Send the steps in order; each with the status and the answer as it is compared."""
    known: dict[str, str] = {}
    for step in steps:
        status, payload = send(_filled(step, known))
        try:
            answer = json.loads(payload)
        except ValueError:
            answer = {"not JSON": payload[:60].decode("utf-8", "replace")}
        for name, path in step.save.items():
            found = answer
            for part in path.split("."):
                found = found.get(part, {}) if isinstance(found, dict) else {}
            known[name] = found if isinstance(found, str) else f"no-{name}"
        yield step, status, comparable(answer, known)


def _filled(step: Step, known: dict[str, str]) -> Step:
    def fill(value: Any) -> Any:
        match value:
            case str():
                for name, id_ in known.items():
                    value = value.replace("{" + name + "}", id_)
                return value
            case dict():
                return {key: fill(each) for key, each in value.items()}
            case list():
                return [fill(each) for each in value]
        return value

    return Step(step.name, step.method, fill(step.path), fill(step.body), fill(step.query), step.raw)


_TIMES = frozenset(
    {"creation_time", "last_update_time", "creation_timestamp_ms", "last_updated_timestamp_ms"}
)
_ONE_SIDE_ALONE = frozenset({"modelkeep", "error_class", "sqlstate"})
_WORDS = frozenset({"message", "next_page_token", "artifact_uri", "artifact_location"})


def comparable(answer: Any, known: dict[str, str], key: str = "") -> Any:
    """An answer without ids, times, wording, and what has no order."""
    match answer:
        case dict():
            return {
                name: comparable(value, known, name)
                for name, value in sorted(answer.items())
                if name not in _ONE_SIDE_ALONE
            }
        case list():
            found = [comparable(value, known, key) for value in answer]
            keyed = all(
                isinstance(each, dict) and "key" in each and "timestamp" not in each for each in found
            )
            points = key == "metrics" and len({each["key"] for each in found}) == len(found)
            return sorted(found, key=lambda each: str(each["key"])) if keyed or points else found
    if key in _TIMES and isinstance(answer, int):
        return "TIME"
    if key in _WORDS:
        return "WORDS"
    if isinstance(answer, str) and answer.startswith("[{"):
        return comparable(json.loads(answer), known)  # the tag in which old clients keep a list
    if isinstance(answer, str):
        for name, id_ in known.items():
            answer = answer.replace(id_, f"<{name}>") if len(id_) > 4 or answer == id_ else answer
        return answer if len(answer) <= 200 else f"{len(answer)} characters"
    return answer
