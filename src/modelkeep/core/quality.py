"""What makes a prediction wrong, once it is known what was true: the rule of a plan, and one comparison.

Labels come late and in many forms; a prediction and a label are first brought into one small form, so that a
gateway can keep the prediction in a few bytes until its label comes. Callers are counted elsewhere, and what
the counts say is `judgement`'s part.

A simulation of the metric needs, beside this file, `sequential.fail_spec(margin=...)` for the alarm and
`sequential.pass_spec(bound=...)` for the proof, both over `CallerTick`s whose events are callers with their
first wrong prediction, at the weight under which it was predicted; `evidence.evidence_of` does the same from
a plan and ticks with labels.
"""

import hashlib
import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated, Any

from msgspec import Struct

from modelkeep.core import errors
from modelkeep.core.fields import said

NAME_MAX = 200
"""Characters of an output's or a label's name."""
WAIT_S_MAX = 90 * 86_400.0
"""The longest that labels are waited for: as long as a step may last."""
_TEXT_BYTES = 6
"""Of a text's hash: as many as a double holds to the last digit."""


class Quality(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How predictions are held against their labels, and what a candidate has to show.

    With `tolerance` a prediction is wrong when it is further than that from the label; with `threshold` a
    score from there on says yes, and the label is yes or no; without either it is wrong when it is not the
    same as the label. A list of scores stands for the place of the largest.
    """

    output: Annotated[
        str | None,
        said(
            "The output that is judged; the only one, or the first, when left out.", characters=(1, NAME_MAX)
        ),
    ] = None
    label: Annotated[str | None, said("The entry of labels that are objects.", characters=(1, NAME_MAX))] = (
        None
    )
    threshold: Annotated[
        float | None, said("The score from which on a prediction says yes; the label is yes or no.")
    ] = None
    tolerance: Annotated[
        float | None, said("How far a number may lie from its label and not be wrong.", least=0)
    ] = None
    margin: Annotated[
        float,
        said(
            "The odds of being wrong, over stable's, that are tolerated.",
            unit="odds ratio",
            least=1,
            most=100,
        ),
    ] = 1.0
    pass_odds: Annotated[
        float,
        said(
            "An advance shows that first labels say wrong at lower odds than this, over stable's; above "
            "`margin`.",
            unit="odds ratio",
            above=1,
            most=100,
        ),
    ] = 2.0
    wait_s: Annotated[
        float,
        said(
            "How long a step waits for labels before the plan's `on_inconclusive` counts.",
            unit="seconds",
            above=0,
            most=WAIT_S_MAX,
        ),
    ] = 7 * 86_400.0


class Kind(IntEnum):
    """What a value is. Truth values and numbers compare with each other, texts with texts."""

    TRUTH = 1
    NUMBER = 2
    TEXT = 3


class Value(Struct, frozen=True):
    """A prediction or a label as it is compared. `number` of a text is its hash, of a truth value 1 or 0."""

    kind: Kind
    number: float


def check_quality(quality: Quality) -> None:
    """Refuse a rule that says nothing; each field alone is within its limits already.

    Raises:
        InvalidPlan: names what is off.
    """
    if quality.threshold is not None and quality.tolerance is not None:
        raise errors.InvalidPlan(
            "In 'quality', 'threshold' is for labels of yes or no and 'tolerance' for numbers; give one."
        )
    if quality.threshold is not None and not math.isfinite(quality.threshold):
        raise errors.InvalidPlan("In 'quality', 'threshold' is the score from which on it says yes.")
    if not quality.margin < quality.pass_odds:
        raise errors.InvalidPlan("In 'quality', 'margin' lies below 'pass_odds'.")


def value_of(said: Any) -> Value | None:
    """A prediction or a label in the form that is compared; None for what is no single value.

    Raises:
        Nothing: what cannot be compared is no value.
    """
    if isinstance(said, list):
        if len(said) == 1:
            return value_of(said[0])
        return _largest(said)
    if isinstance(said, bool):
        return Value(Kind.TRUTH, float(said))
    if isinstance(said, int | float):
        number = _double(said)
        return Value(Kind.NUMBER, number) if number is not None else None
    if isinstance(said, str):
        digest = hashlib.blake2b(said.encode("utf-8", "replace"), digest_size=_TEXT_BYTES).digest()
        return Value(Kind.TEXT, float(int.from_bytes(digest, "big")))
    return None


def label_of(said: Any, name: str | None) -> Value | None:
    """What a label says: itself, or of an object the entry of that name (None: its only one)."""
    if isinstance(said, dict):
        if name is not None:
            return value_of(said.get(name))
        return value_of(next(iter(said.values()))) if len(said) == 1 else None
    return value_of(said)


def is_wrong(quality: Quality, predicted: Value, label: Value) -> bool | None:
    """Whether a prediction was wrong; None where the two cannot be compared.

    Raises:
        Nothing: a label may be anything.
    """
    if (predicted.kind is Kind.TEXT) != (label.kind is Kind.TEXT):
        return None
    if quality.tolerance is not None or quality.threshold is not None:
        if predicted.kind is Kind.TEXT:
            return None
        if quality.tolerance is not None:
            return abs(predicted.number - label.number) > quality.tolerance
        assert quality.threshold is not None, "one of the two is given"
        return (predicted.number >= quality.threshold) != (label.number != 0.0)
    return predicted.number != label.number


def _largest(scores: Sequence[Any]) -> Value | None:
    """The place of the largest of several scores."""
    numbers = [_double(score) for score in scores if isinstance(score, int | float)]
    known = [number for number in numbers if number is not None]
    if not known or len(known) < len(scores):
        return None
    return Value(Kind.NUMBER, float(known.index(max(known))))


def _double(number: float) -> float | None:
    try:
        double = float(number)
    except OverflowError:
        return None
    return double if math.isfinite(double) else None
