"""Feedback: what became known of a prediction later, by the id of its request.

Read and checked here; a gateway keeps it beside its prediction log, and whoever reads that joins the two.
Nothing is judged here.
"""

import math
import re
from datetime import datetime
from typing import Any

from msgspec import Struct

from modelkeep.core import codec, errors, values

LABELS_MAX = 10_000
"""Labels of one feedback request."""
LABEL_MAX_BYTES = 4 * 1024
"""One label: a value, or a few by name."""
_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class Label(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What became known of one row of a request. `at` is when it became true, where that is known."""

    request_id: str
    label: Any
    row: int = 0
    at: datetime | None = None


class Taken(Struct, frozen=True, kw_only=True):
    """What became of feedback."""

    received: int = 0
    new: int = 0
    changed: int = 0
    unchanged: int = 0

    def plus(self, other: "Taken") -> "Taken":
        """What became of two requests together."""
        return Taken(
            received=self.received + other.received,
            new=self.new + other.new,
            changed=self.changed + other.changed,
            unchanged=self.unchanged + other.unchanged,
        )


class _Several(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    labels: list[Label]


def read_feedback(body: bytes) -> list[Label]:
    """The labels of a feedback request: one, or a list under `labels`.

    Raises:
        MalformedBody, LimitExceeded: not of that shape, or too much of it.
        Invalid: an id that no request has, or a label that is none; names its place.
    """
    document = codec.decode_untrusted(body, dict)
    given = (
        codec.convert(document, _Several).labels if "labels" in document else [codec.convert(document, Label)]
    )
    if not 1 <= len(given) <= LABELS_MAX:
        raise errors.LimitExceeded(f"Send 1 to {LABELS_MAX:,} labels at a time.", limit=LABELS_MAX)
    for index, label in enumerate(given):
        _check(index, label)
    return given


def _check(index: int, label: Label) -> None:
    problem = None
    if not _ID.fullmatch(label.request_id):
        problem = (
            f"{values.quoted(label.request_id, 60)} is no request id; it stands in the answer's X-Request-Id."
        )
    elif not 0 <= label.row < 2**31:
        problem = "'row' counts from 0."
    elif label.at is not None and label.at.tzinfo is None:
        problem = "'at' needs a time zone, such as a Z at its end."
    elif label.label is None or not _simple(label.label):
        problem = "a label is a number, a text or a truth value, or an object of such by name."
    elif len(codec.encode(label.label)) > LABEL_MAX_BYTES:
        problem = f"a label has at most {LABEL_MAX_BYTES:,} bytes."
    if problem is not None:
        raise errors.Invalid(f"In label {index}: {problem}", row=index)


def _simple(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value) and all(_scalar(item) for item in value.values())
    return _scalar(value)


def _scalar(value: Any) -> bool:
    return isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
