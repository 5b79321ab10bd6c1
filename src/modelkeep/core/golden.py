"""Golden requests: inputs with the outputs that a version is known to answer, kept in its file `golden.json`,
and the comparison of answers within a tolerance.

    {"requests": [{"inputs": [{"age": 41, "income": 52.5}], "outputs": [0.27]}], "relative": 0.0001}

Inputs and outputs have the form of `POST .../predict`. Nothing is asked here: a worker asks its version
before it says that it is loaded, and a conversion compares the converted model with the original.
"""

import math
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from modelkeep.core import codec, errors

GOLDEN_FILE = "golden.json"
"""At the top of a version's files."""
GOLDEN_MAX_BYTES = 4 * 1024 * 1024
"""Of the file: some hundred rows of a wide table. All of it is asked whenever the version is loaded."""
REQUESTS_MAX = 100
"""Of one version."""
SHOWN_MAX = 60
"""Characters of a value that a sentence repeats."""


class GoldenRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked, and what has to be answered."""

    inputs: Any
    outputs: Any


class Tolerance(Struct, frozen=True, kw_only=True):
    """How far numbers may be apart: by `absolute`, or by `relative` of the wanted one. Anything else has to
    be equal."""

    relative: float = 1e-4
    absolute: float = 1e-6


class Golden(Tolerance, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file's content."""

    requests: tuple[GoldenRequest, ...]


class Difference(Struct, frozen=True, kw_only=True):
    """One place where an answer is not what was wanted. `excess`: the distance in tolerances, above 1."""

    wanted: Any
    got: Any
    excess: float = math.inf
    row: int | None = None
    field: str | None = None

    def __str__(self) -> str:
        place = [f"row {self.row}"] if self.row is not None else []
        place += [f"field {self.field!r}"] if self.field is not None else []
        return f"{', '.join(place) or 'the answer'} is {_shown(self.got)} instead of {_shown(self.wanted)}"


def read_golden(data: bytes) -> Golden:
    """The golden requests in a file.

    Raises:
        Invalid: it is none; says what is wrong with it.
        LimitExceeded: it is too large, or has too many requests.
    """
    if len(data) > GOLDEN_MAX_BYTES:
        raise errors.LimitExceeded(f"A {GOLDEN_FILE} has at most {GOLDEN_MAX_BYTES:,} bytes.")
    try:
        golden = codec.decode(data, Golden)
    except errors.MalformedBody as problem:
        raise errors.Invalid(f"{GOLDEN_FILE} cannot be read: {problem.message}") from problem
    if len(golden.requests) > REQUESTS_MAX:
        raise errors.LimitExceeded(f"A {GOLDEN_FILE} has at most {REQUESTS_MAX} requests.")
    if not (0 <= golden.relative < math.inf and 0 <= golden.absolute < math.inf):
        raise errors.Invalid(f"The tolerances in {GOLDEN_FILE} are numbers from 0.")
    return golden


def worst_difference(wanted: Any, got: Any, tolerance: Tolerance) -> Difference | None:
    """Where two answers, as JSON has them, are farthest apart; None where they agree."""
    return max(_differences(wanted, got, tolerance, None, None), key=lambda one: one.excess, default=None)


def _differences(
    wanted: Any, got: Any, tolerance: Tolerance, row: int | None, field: str | None
) -> Iterator[Difference]:
    if isinstance(wanted, list) and isinstance(got, list) and len(wanted) == len(got):
        for index, (one, other) in enumerate(zip(wanted, got, strict=True)):
            yield from _differences(one, other, tolerance, index if row is None else row, field)
    elif isinstance(wanted, dict) and isinstance(got, dict):
        for name in {**wanted, **got}:
            place = str(name) if field is None else field
            yield from _differences(wanted.get(name), got.get(name), tolerance, row, place)
    elif _is_number(wanted) and _is_number(got):
        excess = _excess(wanted, got, tolerance)
        if not excess <= 1:
            yield Difference(wanted=wanted, got=got, excess=excess, row=row, field=field)
    elif type(wanted) is not type(got) or wanted != got:
        yield Difference(wanted=wanted, got=got, row=row, field=field)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _excess(wanted: float, got: float, tolerance: Tolerance) -> float:
    if wanted == got or (math.isnan(wanted) and math.isnan(got)):
        return 0.0
    apart = abs(wanted - got)
    allowed = tolerance.absolute + tolerance.relative * abs(wanted)
    return apart / allowed if allowed and math.isfinite(apart) and math.isfinite(allowed) else math.inf


def _shown(value: Any) -> str:
    text = codec.encode(value).decode() if not _is_number(value) else repr(value)
    return text if len(text) <= SHOWN_MAX else text[: SHOWN_MAX - 3] + "..."
