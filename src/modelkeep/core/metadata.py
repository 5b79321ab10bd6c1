"""What people and training scripts write down about a version: read from YAML, checked, and written back.

Fields that nobody foresaw are kept, at any level, and survive the round trip; only the signature is closed,
because it is a contract. The shapes stand in `metadata_schema`. This file does not decide what a stage asks
for (a policy's metadata gate does), measures nothing, and opens no file.

A document is plain data (what the store keeps and the wire carries) in one normal form: times as ISO text,
keys as text, metrics and signature fields as lists. Two equal documents are written as the same text.
"""

import copy
import math
import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from enum import StrEnum
from typing import Any

from msgspec import Struct

from modelkeep.core import catalog, codec, errors, metadata_schema, values
from modelkeep.core import signature as signatures
from modelkeep.core.metadata_schema import INTEGER_MAX, SCHEMA, ApprovalStatus, Performance, View

# Limits of a whole document; those of its bytes, nodes and depth are the codec's.
TOTAL_TEXT_MAX = 256 * 1024
"""Characters of all keys and texts together: YAML aliases can repeat one long text very often."""
PATH_SHOWN = 200
"""Characters of a path that an error repeats."""


class Metadata(Struct, frozen=True, kw_only=True):
    """A checked document: `document` whole, as plain data in normal form; `view` its known fields, typed."""

    document: dict[str, Any]
    view: View


def check_metadata(value: object) -> Metadata:
    """Check plain values, as YAML and JSON give them, and bring them into normal form, in a copy.

    Raises:
        InvalidMetadata, InvalidMetric, InvalidSignature: a field is not what the schema says; names its path.
        LimitExceeded: larger than a document may be.
    """
    if value is not None and not isinstance(value, Mapping):
        raise _refuse("", "must be a mapping with sections such as 'model' and 'training'")
    document: dict[str, Any] = _Normal().mapping(value or {}, "", 0)
    if document.setdefault("schema", SCHEMA) != SCHEMA:
        shown = values.printable(str(document["schema"]))[:60]
        raise _refuse(
            "schema", f"is '{shown}', but this release reads {SCHEMA!r}; use the release that wrote it"
        )
    performance = document.get("performance")
    if isinstance(performance, dict) and isinstance(performance.get("metrics"), dict):
        performance["metrics"] = _metrics_spelled_out(performance["metrics"])
    if document.get("signature") is not None:
        checked = codec.builtins(signatures.check_signature(document["signature"]))
        document["signature"] = _Normal().mapping(checked, "signature", 1)
    view = _typed(document)
    _check_meaning(view)
    return Metadata(document=document, view=view)


def write_metadata(metadata: Metadata | Mapping[str, Any]) -> str:
    """YAML text in one stable order: known fields as the schema has them, then the others by name.

    Raises:
        InvalidMetadata, InvalidMetric, InvalidSignature, LimitExceeded: as `check_metadata`.
    """
    return codec.render_yaml(metadata_schema.in_order(_checked(metadata).document))


def missing(metadata: Metadata | Mapping[str, Any], paths: Sequence[str]) -> tuple[str, ...]:
    """Which of these paths are absent, null or empty, in their order.

    A part of a path names a key, or in a list the entry whose `name` it is: `performance.metrics.auc`.

    Raises:
        InvalidMetadata, InvalidMetric, InvalidSignature, LimitExceeded: as `check_metadata`.
    """
    document = _checked(metadata).document
    return tuple(path for path in paths if _is_empty(_at(document, path)))


def metrics_of(metadata: Metadata | Mapping[str, Any]) -> tuple[catalog.Metric, ...]:
    """The metrics in the catalog's shape, in the order of their keys.

    Raises:
        InvalidMetadata, InvalidMetric, InvalidSignature, LimitExceeded: as `check_metadata`.
    """
    return _metrics(_checked(metadata).view)


# ----------------------------------------------------------------------------------------------- normal form


class _Normal:
    """Plain values with text keys, ISO times and finite numbers; counts the text it has seen."""

    def __init__(self) -> None:
        self._left = TOTAL_TEXT_MAX

    def mapping(self, value: Mapping[Any, Any], path: str, depth: int) -> dict[str, Any]:
        if depth > codec.JSON_MAX_DEPTH:
            raise errors.LimitExceeded(f"{_shown(path)} is nested too deep; flatten it.", field=path)
        plain: dict[str, Any] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                shown = values.printable(str(key))[:60]
                raise _refuse(path, f"has the key {shown}, which is not text; put it in quotes")
            name = self.text(key, path)
            plain[name] = self.value(item, _join(path, name), depth + 1)
        return plain

    def value(self, value: object, path: str, depth: int) -> Any:
        match value:
            case Mapping():
                return self.mapping(value, path, depth)
            case list() | tuple():
                if depth > codec.JSON_MAX_DEPTH:
                    raise errors.LimitExceeded(f"{_shown(path)} is nested too deep; flatten it.", field=path)
                return [self.value(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
            case str() if not isinstance(value, StrEnum):
                return self.text(value, path)
            case bool() | None:
                return value
            case int() if abs(value) > INTEGER_MAX:
                raise _refuse(path, "is a whole number that 64 bits do not hold; put it in quotes")
            case float() if not math.isfinite(value):
                raise _refuse(path, "is not a finite number; leave it out when it could not be measured")
            case int() | float() | date() | StrEnum():
                return _plain_scalar(value)
            case _:
                raise _refuse(
                    path, f"is of the type {type(value).__name__}, which JSON lacks; write it as text"
                )

    def text(self, text: str, path: str) -> str:
        self._left -= len(text)
        if self._left < 0:
            raise errors.LimitExceeded(
                f"The metadata has more than {TOTAL_TEXT_MAX:,} characters; keep long texts in a file.",
                field=path,
            )
        try:
            values.check_text(text, "text")
            text.encode()
        except errors.LimitExceeded:
            values.check_text(text, f"text at {_shown(path)}")  # whose words take longer than the check
            raise
        except errors.Invalid as problem:
            raise _refuse(path, "contains control characters; remove them") from problem
        except UnicodeEncodeError as problem:
            raise _refuse(path, "holds half of a surrogate pair; write the whole letter") from problem
        return text


def _plain_scalar(value: object) -> str | int | float:
    match value:
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case date():
            return value.isoformat()
        case StrEnum():
            return value.value
        case int() | float():
            return value
        case _:
            return str(value)


def _metrics_spelled_out(short: Mapping[str, Any], path: str = "performance.metrics") -> list[Any]:
    """The list behind `{auc: 0.9}` and `{validation: {auc: 0.9}}`."""
    entries: list[Any] = []
    for name, value in short.items():
        if isinstance(value, dict) and path == "performance.metrics":
            inner = _metrics_spelled_out(value, _join(path, name))
            entries += [{**entry, "split": name} for entry in inner]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            entries.append({"name": name, "value": value})
        else:
            raise _refuse(_join(path, name), "is not right: expected a number")
    return entries


# -------------------------------------------------------------------------------------------------- checking


def _checked(metadata: Metadata | Mapping[str, Any]) -> Metadata:
    return metadata if isinstance(metadata, Metadata) else check_metadata(metadata)


_PROBLEM = re.compile(r"(?s)^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$")
_WORDS = {
    "array": "a list",
    "object": "a mapping",
    "str": "text",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "null": "nothing",
}
"""The decoder's names of types, as people say them."""
_ASKED: Mapping[str, str] = {
    "approval_status": ", ".join(ApprovalStatus),
    "commit": "7 to 64 lower-case hexadecimal digits in quotes",
    "currency": "three capital letters like EUR",
    "date": "a date like 2026-01-25 or a time like 2026-01-25T14:03Z",
    "digest": "'sha256:' and 64 hexadecimal digits",
    "direction": ", ".join(catalog.Direction),
    "lock_digest": "'sha256:' and 64 hexadecimal digits",
    "path": "a path that begins with '/'",
    "python": "a version in quotes like '3.11.7'",
}
"""Last part of a path to what a person should write there, where a type does not say it."""


def _typed(document: dict[str, Any]) -> View:
    problem = _problem(document)
    if isinstance(problem, View):
        return problem
    what, path = problem
    while "[...]" in path:  # the decoder does not name the key of a mapping's value
        before, _, after = path.partition("[...]")
        path = before + _failing_key(document, before) + after
    asked = _ASKED.get(path.rpartition(".")[2])
    advice = f"write {asked}" if asked else _in_words(what)
    if not asked and re.search(r"`str.*got `(int|float|bool)`", what):
        advice += "; put it in quotes"
    raise _refuse(path, f"is not right: {advice}")


def _problem(document: dict[str, Any]) -> View | tuple[str, str]:
    try:
        return codec.convert(document, View)
    except errors.MalformedBody as error:
        match = _PROBLEM.match(str(error.__cause__ or error))
        assert match is not None  # the pattern takes any text
        return match["what"], match["path"] or ""


def _failing_key(document: dict[str, Any], path: str) -> str:
    """The key whose value fails, found by halving: a mapping may be large, and it comes from outside."""
    trial = copy.deepcopy(document)
    mapping = _at(trial, path)
    if not isinstance(mapping, dict):
        return ""
    items = list(mapping.items())
    while len(items) > 1:
        half = items[: len(items) // 2]
        mapping.clear()
        mapping.update(half)
        items = items[len(half) :] if isinstance(_problem(trial), View) else half
    return f".{items[0][0]}" if items else ""


def _in_words(what: str) -> str:
    """`Expected `float | null`, got `str`` as a clause for a person."""

    def said(match: re.Match[str]) -> str:
        names = [name for name in match[1].split(" | ") if name != "null" or match[1] == "null"]
        return " or ".join(sorted({_WORDS.get(name, name) for name in names}))

    return re.sub("`([^`]*)`", said, what[:1].lower() + what[1:])


def _check_meaning(view: View) -> None:
    """What types do not say: days that exist, square confusion tables, intervals the right way round."""
    dates = {
        "training.date": view.training.date if view.training else None,
        "compliance.date": view.compliance.date if view.compliance else None,
    }
    for path, text in dates.items():
        try:
            datetime.fromisoformat(text or "2000-01-01")
        except ValueError as problem:
            raise _refuse(path, "is not right: there is no such day or hour") from problem
    performance = view.performance or Performance()
    for index, table in enumerate(performance.confusion or ()):
        size, counts = len(table.labels or ()), table.counts or ()
        if len(counts) != size or any(len(row) != size for row in counts):
            path = f"performance.confusion[{index}].counts"
            raise _refuse(path, f"is not right: {size} labels need {size} rows of {size} counts")
    for key in performance.throughput_per_s or {}:
        if not re.fullmatch(r"[1-9][0-9]{0,8}", key, re.ASCII):
            raise _refuse(
                f"performance.throughput_per_s.{key}", "is not right: the key is a batch size from 1 on"
            )
    for index, metric in enumerate(performance.metrics or ()):
        low, high = (metric.interval.low, metric.interval.high) if metric.interval else (None, None)
        if low is not None and high is not None and low > high:
            path = f"performance.metrics[{index}].interval"
            raise _refuse(path, "is not right: its low end is above its high end")
    _metrics(view)


def _metrics(view: View) -> tuple[catalog.Metric, ...]:
    found = (view.performance.metrics if view.performance else None) or ()
    return catalog.check_metrics([
        catalog.Metric(
            name=metric.name,
            value=metric.value,
            unit=metric.unit,
            split=metric.split,
            slice=metric.slice,
            dataset=metric.dataset,
            direction=metric.direction,
            interval_low=metric.interval.low if metric.interval else None,
            interval_high=metric.interval.high if metric.interval else None,
        )
        for metric in found
    ])  # fmt: skip


# ------------------------------------------------------------------------------------------- paths and order


def _refuse(path: str, why: str) -> errors.InvalidMetadata:
    return errors.InvalidMetadata(f"{_shown(path)} {why}.", field=path)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _shown(path: str) -> str:
    return values.printable(path)[:PATH_SHOWN] if path else "The document"


def _at(document: Any, path: str) -> Any:
    """What stands at a path: keys joined by dots, places in a list as `[0]` or by the entry's `name`.

    A key may itself hold dots (`urn.example`), so the longest key that fits is taken.
    """
    if not path:
        return document
    place = re.match(r"\[(\d+)\]\.?", path)
    if place and isinstance(document, list):
        index = int(place[1])
        return _at(document[index], path[place.end() :]) if index < len(document) else None
    if isinstance(document, list):
        document = {entry["name"]: entry for entry in document if isinstance(entry, dict) and "name" in entry}
    if not isinstance(document, dict):
        return None
    fitting = [key for key in document if path.startswith(key) and path[len(key) :][:1] in ("", ".", "[")]
    if not fitting:
        return None
    key = max(fitting, key=len)
    return _at(document[key], path[len(key) :].removeprefix("."))


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value)
