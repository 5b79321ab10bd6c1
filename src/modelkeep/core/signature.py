"""What a model takes and gives: the input and output schema, its reading, its checks, and what a change of it
means.

A range, a set of categories or a shape here is a promise to callers, not an observation of the training data:
whoever states it less wide in the next version breaks somebody. This file does not check rows of data (the
data plane does), does not pick a version number (`core/bump.py` does), and has nothing to do with
cryptographic signatures.
"""

import math
from collections.abc import Iterator, Mapping
from enum import StrEnum

from msgspec import Struct

from modelkeep.core import codec, errors, values

# Limits of what a person or a training script may state; each with the reason for its size.
FIELDS_MAX = 5_000
"""Fields of one side: wide tables have hundreds, gene panels thousands."""
FIELD_NAME_MAX = 256
"""Characters of a field's name; column names are free text, but they must fit a terminal line."""
MEANING_MAX = 1_000
"""Characters of a field's meaning: a sentence or two, or a unit."""
CATEGORIES_MAX = 10_000
"""Categories of one field; the large public label sets have 1,000 to 9,000."""
CATEGORY_MAX = 256
"""Characters of one category."""
RANK_MAX = 8
"""Axes of a tensor field, the batch axis not counted; video has four."""
DIMENSION_MAX = 2**31 - 1
"""Length of one axis, as runtimes index it."""
NAMES_SHOWN = 5
"""Categories that a sentence lists before it says how many more there are."""


class DataType(StrEnum):
    """The type of one value of a field."""

    BOOL = "bool"
    INT32 = "int32"
    INT64 = "int64"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    STRING = "string"
    DATETIME = "datetime"
    BYTES = "bytes"


_INTEGERS = frozenset({DataType.INT32, DataType.INT64})
_NUMBERS = _INTEGERS | {DataType.FLOAT32, DataType.FLOAT64}
_WIDER: Mapping[DataType, frozenset[DataType]] = {
    DataType.INT32: frozenset({DataType.INT64, DataType.FLOAT64}),
    DataType.FLOAT32: frozenset({DataType.FLOAT64}),
}
"""Type to the types that hold each of its values exactly. An int64 above 2^53 is no float64, so that is not
here."""


class Field(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One named column or tensor.

    `shape` has the axes of one row, without the batch axis, -1 for any length; None (or no axes) is one value
    a row. `meaning` is a unit or a phrase ("probability of leaving within 30 days"); another meaning is
    another field.
    """

    name: str
    type: DataType
    required: bool = True
    nullable: bool = False
    minimum: float | int | None = None
    maximum: float | int | None = None
    categories: tuple[str | int, ...] | None = None
    shape: tuple[int, ...] | None = None
    meaning: str | None = None

    @property
    def dimensions(self) -> tuple[int, ...]:
        """The axes of one row; empty for a single value."""
        return self.shape or ()


class Signature(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Input and output schema of a version. `positional`: callers may send rows as lists, so the order
    counts."""

    inputs: tuple[Field, ...] = ()
    outputs: tuple[Field, ...] = ()
    positional: bool = True


class Side(StrEnum):
    """Where a field stands."""

    INPUT = "input"
    OUTPUT = "output"


# ------------------------------------------------------------ reading and checking


def check_signature(value: object) -> Signature:
    """A checked signature, from the shape itself or from plain values as YAML and JSON give them.

    In plain values a side is a list of fields, or in short a mapping of name to type or to the rest of the
    field: `inputs: {age: int64, plan: {type: string, categories: [basic, pro]}}`.

    Raises:
        InvalidSignature: unreadable, a name twice, a limit passed, or a field that contradicts itself; names
        the field.
    """
    signature = value if isinstance(value, Signature) else _read(value)
    if not signature.inputs and not signature.outputs:
        raise errors.InvalidSignature("The signature has no fields; state at least one input or output.")
    for side, fields in ((Side.INPUT, signature.inputs), (Side.OUTPUT, signature.outputs)):
        _check_side(side, fields)
    return signature


def _read(value: object) -> Signature:
    if not isinstance(value, Mapping):
        raise errors.InvalidSignature("A signature is a mapping with 'inputs' and 'outputs'.")
    plain: dict[object, object] = dict(value)
    for side in ("inputs", "outputs"):
        fields = plain.get(side)
        if fields is None:
            plain.pop(side, None)
        elif isinstance(fields, Mapping):
            plain[side] = [_spelled_out(side, name, rest) for name, rest in fields.items()]
    try:
        return codec.convert(plain, Signature)
    except errors.MalformedBody as problem:
        cause = str(problem.__cause__ or problem).rstrip(".")
        raise errors.InvalidSignature(
            f"The signature cannot be read: {cause}. A field has a name, a type ({', '.join(DataType)}) and, "
            "where needed, required, nullable, minimum, maximum, categories, shape or meaning."
        ) from problem


def _spelled_out(side: str, name: object, rest: object) -> object:
    if isinstance(rest, str):
        return {"name": name, "type": rest}
    if isinstance(rest, Mapping) and "name" not in rest:
        return {"name": name, **rest}
    raise errors.InvalidSignature(
        f"In {side}, {values.quoted(str(name), 60)} needs a type after it, or a mapping with a type.",
        field=f"{side}.{name}",
    )


def _check_side(side: Side, fields: tuple[Field, ...]) -> None:
    if len(fields) > FIELDS_MAX:
        raise errors.InvalidSignature(
            f"The signature has {len(fields):,} {side} fields; at most {FIELDS_MAX:,} are kept. "
            "Declare a tensor with a shape instead.",
            field=f"{side}s",
        )
    seen: set[str] = set()
    for field in fields:
        problem = _wrong_name(field.name, seen) or next(filter(None, (check(field) for check in _CHECKS)), "")
        if problem:
            shown = values.printable(field.name)[:60]
            raise errors.InvalidSignature(f"The {side} field '{shown}' {problem}.", field=f"{side}s.{shown}")
        seen.add(field.name)


def _wrong_name(name: str, seen: set[str]) -> str:
    if not name.strip() or name != name.strip():
        return "needs a name without white space around it"
    if name in seen:
        return "stands twice; give each field its own name"
    return _wrong_text(name, "name", FIELD_NAME_MAX)


def _wrong_text(text: str, what: str, maximum: int) -> str:
    if len(text) > maximum:
        return f"has a {what} of {len(text):,} characters; at most {maximum:,} fit"
    if not text.isprintable():
        return f"has a {what} with control or invisible characters; remove them"
    return ""


def _wrong_bounds(field: Field) -> str:
    low, high = field.minimum, field.maximum
    if low is None and high is None:
        return ""
    if field.type not in _NUMBERS:
        return f"is {field.type} and can have no minimum or maximum; remove them"
    for name, bound in (("minimum", low), ("maximum", high)):
        if bound is None:
            continue
        if not math.isfinite(bound):
            return f"has a {name} that is not finite; leave it out where there is no bound"
        if field.type in _INTEGERS and bound != int(bound):
            return f"is {field.type}, but its {name} {bound} is not a whole number"
        if not _fits(bound, field.type):
            return f"has the {name} {bound}, which no {field.type} can reach; leave it out"
    if low is not None and high is not None and low > high:
        return f"has the minimum {low} above the maximum {high}; swap them"
    return ""


def _fits(number: float | int, kind: DataType) -> bool:
    if isinstance(number, float) and kind not in _INTEGERS:
        return True
    limit = 2**31 if kind is DataType.INT32 else 2**63
    return -limit <= number < limit


def _wrong_categories(field: Field) -> str:
    categories = field.categories
    if categories is None:
        return ""
    if field.type is not DataType.STRING and field.type not in _INTEGERS:
        return f"is {field.type} and can have no categories; only strings and integers can"
    if not categories:
        return "has an empty list of categories; leave it out where any value is allowed"
    if len(categories) > CATEGORIES_MAX:
        return f"has {len(categories):,} categories; at most {CATEGORIES_MAX:,} are kept"
    for category in categories:
        if problem := _wrong_category(category, field.type):
            return problem
    if len(set(categories)) < len(categories):
        twice = next(category for category in categories if categories.count(category) > 1)
        return f"has the category {twice!r} twice; keep one of them"
    return ""


def _wrong_category(category: str | int, kind: DataType) -> str:
    if isinstance(category, str):
        if kind is not DataType.STRING:
            return f"is {kind}, but its category {category[:60]!r} is text"
        return _wrong_text(category, "category", CATEGORY_MAX)
    if kind is DataType.STRING or isinstance(category, bool) or not _fits(category, kind):
        return f"is {kind}, but its category {category!r} is not"
    return ""


def _wrong_shape(field: Field) -> str:
    if len(field.dimensions) > RANK_MAX:
        return f"has {len(field.dimensions)} axes; at most {RANK_MAX} are kept"
    for length in field.dimensions:
        if length != -1 and not 1 <= length <= DIMENSION_MAX:
            return f"has an axis of length {length}; write a length from 1 on, or -1 for any"
    return ""


def _wrong_meaning(field: Field) -> str:
    return _wrong_text(_spaced(field.meaning), "meaning", MEANING_MAX)


_CHECKS = (_wrong_bounds, _wrong_categories, _wrong_shape, _wrong_meaning)


# ------------------------------------------------------------ comparison


class ChangeKind(StrEnum):
    """What happened to a field between two signatures."""

    REMOVED = "removed"
    ADDED_REQUIRED = "added_required"
    ADDED_OPTIONAL = "added_optional"
    MADE_REQUIRED = "made_required"
    MADE_OPTIONAL = "made_optional"
    RETYPED = "retyped"
    WIDENED = "widened"
    NARROWED = "narrowed"
    RANGE_NARROWED = "range_narrowed"
    RANGE_WIDENED = "range_widened"
    CATEGORIES_REMOVED = "categories_removed"
    CATEGORIES_ADDED = "categories_added"
    NULLABLE_REMOVED = "nullable_removed"
    NULLABLE_ADDED = "nullable_added"
    SHAPE_CHANGED = "shape_changed"
    SHAPE_NARROWED = "shape_narrowed"
    SHAPE_WIDENED = "shape_widened"
    MEANING_CHANGED = "meaning_changed"
    MEANING_STATED = "meaning_stated"
    MEANING_DROPPED = "meaning_dropped"
    REORDERED = "reordered"
    REARRANGED = "rearranged"
    POSITIONS_DROPPED = "positions_dropped"
    POSITIONS_ADDED = "positions_added"


K = ChangeKind
BREAKS_CALLERS: Mapping[ChangeKind, tuple[bool, bool]] = {
    #                      input  output   why, where it is not plain
    K.REMOVED:            (True,  True),
    K.ADDED_REQUIRED:     (True,  False),
    K.ADDED_OPTIONAL:     (False, False),
    K.MADE_REQUIRED:      (True,  False),  # an output that is always there is a stronger promise
    K.MADE_OPTIONAL:      (False, True),
    K.RETYPED:            (True,  True),
    K.WIDENED:            (False, True),   # an int32 fits where an int64 is read, not the other way round
    K.NARROWED:           (True,  True),   # callers that decode binary tensors see the type of an output
    K.RANGE_NARROWED:     (True,  True),   # an output that went from 0..100 to 0..1 has another scale
    K.RANGE_WIDENED:      (False, True),
    K.CATEGORIES_REMOVED: (True,  True),   # somebody waits for the label that never comes again
    K.CATEGORIES_ADDED:   (False, True),   # somebody has no branch for the new label
    K.NULLABLE_REMOVED:   (True,  False),
    K.NULLABLE_ADDED:     (False, True),
    K.SHAPE_CHANGED:      (True,  True),
    K.SHAPE_NARROWED:     (True,  True),
    K.SHAPE_WIDENED:      (False, True),
    K.MEANING_CHANGED:    (True,  True),
    K.MEANING_STATED:     (False, False),  # documentation where there was none
    K.MEANING_DROPPED:    (False, False),
    K.REORDERED:          (True,  True),   # rows sent as lists land in the wrong fields, without an error
    K.REARRANGED:         (False, False),  # the same move where fields are found by name alone
    K.POSITIONS_DROPPED:  (True,  False),  # somebody sends rows as lists
    K.POSITIONS_ADDED:    (False, False),
}  # fmt: skip
"""Kind of change to whether it breaks a caller who knows only the old signature, on the input and output
side."""


class Change(Struct, frozen=True, kw_only=True):
    """One difference between two signatures. `sentence` is for a person."""

    side: Side
    field: str
    kind: ChangeKind
    breaks: bool
    sentence: str


def compare(old: Signature, new: Signature) -> tuple[Change, ...]:
    """What changed, inputs first, fields in the old order and then the new ones. Equal signatures give
    nothing."""
    changes: list[Change] = []
    pairs = ((Side.INPUT, old.inputs, new.inputs), (Side.OUTPUT, old.outputs, new.outputs))
    for side, before, after in pairs:
        for name, kind, what in _side_changes(before, after, positional=old.positional):
            breaks = BREAKS_CALLERS[kind][0 if side is Side.INPUT else 1]
            subject = f"{side.capitalize()} {values.quoted(name)}" if name else f"The order of {side}s"
            sentence = f"{subject} {what}."
            changes.append(Change(side=side, field=name, kind=kind, breaks=breaks, sentence=sentence))
        if side is Side.INPUT and old.positional != new.positional:
            changes.append(_position_change(allowed=new.positional))
    return tuple(changes)


def compatible(old: Signature, new: Signature) -> bool:
    """Whether every caller of `old` can call `new` unchanged, and understands its answers."""
    return not any(change.breaks for change in compare(old, new))


def _position_change(*, allowed: bool) -> Change:
    kind = K.POSITIONS_ADDED if allowed else K.POSITIONS_DROPPED
    return Change(
        side=Side.INPUT,
        field="",
        kind=kind,
        breaks=BREAKS_CALLERS[kind][0],
        sentence=f"Rows may {'now' if allowed else 'no longer'} be sent as lists.",
    )


_Fields = tuple[Field, ...]
_Found = tuple[str, ChangeKind, str]


def _side_changes(before: _Fields, after: _Fields, *, positional: bool) -> Iterator[_Found]:
    old = {field.name: field for field in before}
    new = {field.name: field for field in after}
    for name, field in old.items():
        if name not in new:
            yield name, K.REMOVED, "was removed"
            continue
        for kind, what in _field_changes(field, new[name]):
            yield name, kind, what
    for name, field in new.items():
        if name not in old:
            kind = K.ADDED_REQUIRED if field.required else K.ADDED_OPTIONAL
            yield name, kind, f"was added ({field.type}, {'required' if field.required else 'optional'})"
    kept = [name for name in old if name in new]
    if positional and kept != list(new)[: len(kept)]:
        yield "", K.REORDERED, "changed, so rows sent as lists would be read into the wrong fields"
    elif kept != [name for name in new if name in old]:
        yield "", K.REARRANGED, "changed; fields are found by name"


def _field_changes(old: Field, new: Field) -> Iterator[tuple[ChangeKind, str]]:
    if old.required != new.required:
        yield (K.MADE_REQUIRED, "is now required") if new.required else (K.MADE_OPTIONAL, "is now optional")
    if old.type is not new.type:
        yield _type_change(old.type, new.type)
    yield from _range_changes(old, new)
    yield from _category_changes(old, new)
    if old.nullable and not new.nullable:
        yield K.NULLABLE_REMOVED, "may no longer be null"
    elif new.nullable and not old.nullable:
        yield K.NULLABLE_ADDED, "may now be null"
    if old.dimensions != new.dimensions:
        yield _shape_change(old.dimensions, new.dimensions)
    yield from _meaning_changes(old.meaning, new.meaning)


def _type_change(old: DataType, new: DataType) -> tuple[ChangeKind, str]:
    if new in _WIDER.get(old, ()):
        return K.WIDENED, f"was widened from {old} to {new}"
    if old in _WIDER.get(new, ()):
        return K.NARROWED, f"was narrowed from {old} to {new}"
    return K.RETYPED, f"changed its type from {old} to {new}"


def _range_changes(old: Field, new: Field) -> Iterator[tuple[ChangeKind, str]]:
    low, high = _floor(old), _ceiling(old)
    new_low, new_high = _floor(new), _ceiling(new)
    moved = f"from {_interval(old)} to {_interval(new)}"
    if new_low > low or new_high < high:
        yield K.RANGE_NARROWED, f"had its range narrowed {moved}"
    if new_low < low or new_high > high:
        yield K.RANGE_WIDENED, f"had its range widened {moved}"


def _floor(field: Field) -> float:
    return -math.inf if field.minimum is None else field.minimum


def _ceiling(field: Field) -> float:
    return math.inf if field.maximum is None else field.maximum


def _interval(field: Field) -> str:
    if field.minimum is None and field.maximum is None:
        return "any value"
    if field.maximum is None:
        return f"{field.minimum} and above"
    if field.minimum is None:
        return f"{field.maximum} and below"
    return f"{field.minimum}..{field.maximum}"


def _category_changes(old: Field, new: Field) -> Iterator[tuple[ChangeKind, str]]:
    match old.categories, new.categories:
        case None, None:
            return
        case None, tuple() as allowed:
            yield K.CATEGORIES_REMOVED, f"was any value and is now one of {_listed(allowed)}"
        case tuple(), None:
            yield K.CATEGORIES_ADDED, "had fixed categories and may now be any value"
        case tuple() as before, tuple() as after:
            known, stated = set(before), set(after)
            if gone := tuple(category for category in before if category not in stated):
                yield K.CATEGORIES_REMOVED, f"lost {_counted(gone)}"
            if come := tuple(category for category in after if category not in known):
                yield K.CATEGORIES_ADDED, f"gained {_counted(come)}"


def _counted(categories: tuple[str | int, ...]) -> str:
    return f"the {'category' if len(categories) == 1 else 'categories'} {_listed(categories)}"


def _listed(categories: tuple[str | int, ...]) -> str:
    shown = ", ".join(repr(category) for category in categories[:NAMES_SHOWN])
    more = len(categories) - NAMES_SHOWN
    return f"{shown} and {more:,} more" if more > 0 else shown


def _shape_change(old: tuple[int, ...], new: tuple[int, ...]) -> tuple[ChangeKind, str]:
    moved = f"from {_shape_text(old)} to {_shape_text(new)}"
    if len(old) == len(new):
        differing = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
        if all(b == -1 for _, b in differing):
            return K.SHAPE_WIDENED, f"had its shape freed {moved}"
        if all(a == -1 for a, _ in differing):
            return K.SHAPE_NARROWED, f"had its shape fixed {moved}"
    return K.SHAPE_CHANGED, f"changed its shape {moved}"


def _shape_text(dimensions: tuple[int, ...]) -> str:
    return " x ".join("any" if n == -1 else str(n) for n in dimensions) if dimensions else "one value"


def _meaning_changes(old: str | None, new: str | None) -> Iterator[tuple[ChangeKind, str]]:
    before, after = _spaced(old), _spaced(new)
    if before == after:
        return
    if not before:
        yield K.MEANING_STATED, f"now states its meaning: {_quoted(after)}"
    elif not after:
        yield K.MEANING_DROPPED, f"no longer states its meaning, {_quoted(before)}"
    else:
        yield K.MEANING_CHANGED, f"changed its meaning from {_quoted(before)} to {_quoted(after)}"


def _spaced(meaning: str | None) -> str:
    """Spacing carries no meaning; case does, in units such as mW and MW."""
    return " ".join((meaning or "").split())


def _quoted(meaning: str) -> str:
    text = values.printable(meaning)
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
