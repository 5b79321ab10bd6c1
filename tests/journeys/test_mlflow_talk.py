"""MLflow's own client makes the same random calls to MLflow's own server and to ours: tracking, registry and
artifacts, and each answer is the other's.

What differs on purpose does so by rules, each of which has the word by which docs/reference/mlflow.md tells
it. What single requests answer on the wire is compared in tests/web.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mlflow_client import MlflowClient, run_mlflow_server
from tests.web.processes import serving

pytestmark = [pytest.mark.journey, pytest.mark.long, pytest.mark.req("T1", "T2", "T3", "T4")]

SCRIPT = Path(__file__).with_name("mlflow_talk.py")
LENGTH = 400
"""Calls of a conversation."""

Said = tuple[str, list[Any], Any]
"""One call: its name, its words, its answer."""


@pytest.fixture(scope="module")
def their_server(mlflow_client: MlflowClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's own server; other tests have one that no model is left behind in."""
    with run_mlflow_server(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


def each_dict(answer: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """An answer, each of whose objects is changed."""
    match answer:
        case dict():
            return change({key: each_dict(value, change) for key, value in answer.items()})
        case list():
            return [each_dict(value, change) for value in answer]
    return answer


def without_own_tags(said: Said) -> Any:
    """Tags of ours on versions."""

    def change(found: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in found.items() if not key.startswith("modelkeep.")}

    return each_dict(said[2], change)


def without_aliases_of_versions(said: Said) -> Any:
    """A version's aliases and who made it: MLflow's lists leave them out."""

    def change(found: dict[str, Any]) -> dict[str, Any]:
        more = ("aliases", "user_id") if "current_stage" in found else ()
        return {key: value for key, value in found.items() if key not in more}

    return each_dict(said[2], change)


def without_download_addresses(said: Said) -> Any:
    """Where a version's files are read."""
    found = said[2]
    return "ADDRESS" if said[0] == "get_model_version_download_uri" and isinstance(found, str) else found


def with_infinities(said: Said) -> Any:
    """The largest number there is, for infinity."""

    def change(found: dict[str, Any]) -> dict[str, Any]:
        largest = {1.7976931348623157e308: "inf", -1.7976931348623157e308: "-inf"}
        numbers = {key: value for key, value in found.items() if isinstance(value, float)}
        return {**found, **{key: largest.get(value, value) for key, value in numbers.items()}}

    return each_dict(said[2], change)


def without_versions_in_tags(said: Said) -> Any:
    """The tag in which MLflow's server notes the versions that a logged model became."""

    def change(found: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in found.items() if key != "mlflow.modelVersions"}

    return each_dict(said[2], change)


def in_one_order(said: Said) -> Any:
    """Lists that MLflow gives in any order."""

    def change(found: dict[str, Any]) -> dict[str, Any]:
        lists = {key: found[key] for key in ANY_ORDER if isinstance(found.get(key), list)}
        return {**found, **{key: sorted(value, key=str) for key, value in lists.items()}}

    return each_dict(said[2], change)


ANY_ORDER = ("latest_versions", "metrics", "model_inputs", "model_outputs", "dataset_inputs")


def with_sizes_of_empty_files(said: Said) -> Any:
    """How large an empty file is."""

    def change(found: dict[str, Any]) -> dict[str, Any]:
        return {**found, "file_size": found["file_size"] or None} if "file_size" in found else found

    return each_dict(said[2], change)


TAKEN_OUT: dict[str, Callable[[Said], Any]] = {
    "own-tags": without_own_tags,
    "aliases-with-versions": without_aliases_of_versions,
    "read-from-the-registry": without_download_addresses,
    "infinities": with_infinities,
    "registrations": without_versions_in_tags,
    "orders": in_one_order,
    "empty-files": with_sizes_of_empty_files,
}
"""What is taken out of both answers before they are compared, by the word of the documentation."""


def refusals(mine: Said, other: Said) -> tuple[Any, Any]:
    """The codes by which both refused; None for what was granted."""
    codes = [said[2].get("refused") if isinstance(said[2], dict) else None for said in (mine, other)]
    return codes[0], codes[1]


MEANT: dict[str, Callable[[Said, Said], bool]] = {
    "taken-names": lambda mine, other: (
        mine[0].startswith("rename_") and refusals(mine, other) == ("RESOURCE_ALREADY_EXISTS", "BAD_REQUEST")
    ),
    "missing-models": lambda mine, other: (
        mine[0] == "log_metric" and refusals(mine, other) == ("RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST")
    ),
    "not-there": lambda mine, other: (
        "alias" in mine[0]
        and "no model of" in str((mine[0], mine[1]))
        and refusals(mine, other) == ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
    ),
    "deleted-files": lambda mine, other: (
        mine[0] == "list_logged_model_artifacts" and refusals(mine, other) == (404, None)
    ),
    "empty-folders": lambda mine, other: (
        mine[0] == "list_artifacts"
        and refusals(mine, other) == (None, None)
        and [each for each in other[2] if not each["is_dir"] or each in mine[2]] == mine[2]
    ),
    "no-500": lambda mine, other: (
        refusals(mine, other)[0] is not None
        and refusals(mine, other)[1] in ("INTERNAL_ERROR", "INVALID_STATE")
    ),
}
"""When two answers that differ are meant to, by the word of the documentation."""


def heard(told: str) -> list[Said]:
    """A conversation, without what is taken out."""
    found = []
    for line in told.splitlines():
        if line.startswith("["):
            name, words, answer = json.loads(line)
            for rule in TAKEN_OUT.values():
                answer = rule((name, words, answer))
            found.append((name, words, answer))
    return found


def first_difference(ours: list[Said], theirs: list[Said]) -> str | None:
    """The first call whose answers differ and are not meant to, with both; None when there is none."""
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
        if mine[0] != other[0] or (
            mine[2] != other[2] and not any(meant(mine, other) for meant in MEANT.values())
        ):
            return f"call {number}, {mine[0]} {mine[1]}:\n ours   {mine[2]}\n theirs {other[0]} {other[2]}"
    return None if len(ours) == len(theirs) else f"{len(ours)} calls and {len(theirs)}"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_both_servers_tell_the_same_story(
    mlflow_client: MlflowClient, their_server: str, tmp_path: Path, seed: int
) -> None:
    """Whatever the client calls, in whatever order, both give it the same."""
    words = (str(seed), str(LENGTH))
    with serving(tmp_path / "data") as server:
        ours = heard(mlflow_client.run(SCRIPT, server.url, *words, folder=tmp_path, SHARE="1"))
    theirs = heard(mlflow_client.run(SCRIPT, their_server, *words, folder=tmp_path))
    assert len(ours) >= LENGTH
    assert first_difference(ours, theirs) is None
