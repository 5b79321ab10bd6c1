"""What a field of a document is, said once and beside it: its meaning, its unit and its limits.

The limits that are told here are those that are kept: `outside` holds a document against them, and JSON
Schema and the reference pages are made of the same words. What two fields may be together is not known here.
"""

import math
from collections.abc import Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from msgspec import Meta, Struct


class Limits(Struct, frozen=True, kw_only=True):
    """What a number may be, or how many items or characters there may be. `above` and `below` are left out
    themselves."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def allow(self, number: float) -> bool:
        """Whether a number lies within; what is no number does not, and nothing that is infinite."""
        return (
            math.isfinite(number)
            and (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"{self.least:,.10g} to {self.most:,.10g}"
        parts = [
            f"{word} {limit:,.10g}"
            for word, limit in (
                ("at least", self.least),
                ("above", self.above),
                ("at most", self.most),
                ("below", self.below),
            )
            if limit is not None
        ]
        return " and ".join(parts)


class Said(Struct, frozen=True, kw_only=True):
    """A field as it is told of: its name, its type without None, and what stands beside it."""

    name: str
    type: Any
    optional: bool
    meaning: str
    unit: str
    limits: Limits | None
    sized: bool
    """Whether the limits are of how many there are, and not of the number itself."""


def said(
    meaning: str,
    *,
    unit: str = "",
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    items: tuple[int, int] | None = None,
    characters: tuple[int, int] | None = None,
    only: str | None = None,
) -> Meta:
    """What stands beside a field.

    Args:
        unit: of the number.
        items, characters: how few and how many there may be, of a list or a text.
        only: the one text that it may be.
    """
    size = items or characters
    limits = Limits(least=least, most=most, above=above, below=below)
    schema: dict[str, Any] = {
        key: number
        for key, number in (
            ("minimum", least),
            ("maximum", most),
            ("exclusiveMinimum", above),
            ("exclusiveMaximum", below),
        )
        if number is not None
    }
    if size is not None:
        limits = Limits(least=size[0], most=size[1])
        what = "Items" if items is not None else "Length"
        schema |= {f"min{what}": size[0], f"max{what}": size[1]}
    if unit:
        schema["x-unit"] = unit
    if only is not None:
        schema["const"] = only
    extra = {"unit": unit, "limits": limits if schema.keys() - {"x-unit", "const"} else None, "sized": size}
    return Meta(description=meaning, extra_json_schema=schema, extra=extra)


@cache
def told_of(kind: type[Struct]) -> tuple[Said, ...]:
    """The fields of a document of which something is said, in order."""
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for name in kind.__struct_fields__:
        if get_origin(hints[name]) is not Annotated:
            continue
        inner, *more = get_args(hints[name])
        options = get_args(inner) if get_origin(inner) in (Union, UnionType) else (inner,)
        own = [option for option in options if option is not NoneType]
        meta = next(one for one in more if isinstance(one, Meta))
        extra = meta.extra or {}
        found.append(
            Said(
                name=name,
                type=own[0],
                optional=len(own) < len(options),
                meaning=meta.description or "",
                unit=extra.get("unit", ""),
                limits=extra.get("limits"),
                sized=extra.get("sized") is not None,
            )
        )
    return tuple(found)


def outside(document: Struct, place: str = "") -> str | None:
    """What lies outside of its limits first, in a sentence: `'steps[0].min_s' is at least 0 s and ...`; None
    when all is within. Documents within the document are looked at too."""
    for field in told_of(type(document)):
        value = getattr(document, field.name)
        path = f"{place}{field.name}"
        if field.limits is not None and value is not None:
            number = len(value) if field.sized else value
            if not field.limits.allow(number):
                return _sentence(path, field)
        inner: Sequence[Any] = value if isinstance(value, tuple) else (value,)
        for at, each in enumerate(inner):
            if isinstance(each, Struct):
                own = f"{path}[{at}]." if isinstance(value, tuple) else f"{path}."
                wrong = outside(each, own)
                if wrong is not None:
                    return wrong
    return None


def _sentence(path: str, field: Said) -> str:
    if field.sized:
        what = "characters" if field.type is str else "items"
        return f"'{path}' has {field.limits} {what}."
    unit = f" ({field.unit})" if field.unit else ""
    return f"'{path}' is {field.limits}{unit}."
