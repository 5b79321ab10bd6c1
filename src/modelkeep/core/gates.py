"""Gates: single rules that a version has to meet before it enters a stage, each a class.

A gate looks at stored facts and nothing else and answers passed, failed, inconclusive (it could not be
measured, which never promotes) or, when somebody with the right to do so has taken it upon themselves,
waived. The same facts give the same answer for ever. Which stage asks for which gates is a `policy`.
"""

import math
from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from typing import Any, ClassVar, Protocol

from msgspec import Struct

from modelkeep.core import metadata
from modelkeep.core.catalog import Direction, Metric, ModelVersion, metric_label
from modelkeep.core.values import Digest

CHECKLIST_MAX = 100
"""Items of one checklist."""


class Outcome(StrEnum):
    """What a gate found."""

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    WAIVED = "waived"


class Mode(StrEnum):
    """Whether a gate stops a promotion or only says so."""

    ENFORCE = "enforce"
    WARN = "warn"


class Check(Struct, frozen=True, kw_only=True):
    """One ticked item of a checklist: who vouches for it, and by what."""

    item: str
    evidence: str
    by: str


class Waiver(Struct, frozen=True, kw_only=True):
    """A gate that somebody took upon themselves."""

    gate: str
    by: str
    reason: str


class Facts(Struct, frozen=True, kw_only=True):
    """Everything the gates may look at; loaded once, before anything is decided.

    `incumbent` is the version that now occupies the target stage. `files_verified` is None when the stored
    bytes have not been re-hashed since the version was made ready, else whether they still matched.
    """

    version: ModelVersion
    incumbent: ModelVersion | None = None
    files_verified: bool | None = None
    checks: tuple[Check, ...] = ()
    waivers: tuple[Waiver, ...] = ()


class Finding(Struct, frozen=True, kw_only=True):
    """What a gate's rule says of the facts, before mode and waivers: outcome, why, what would make it pass,
    what it saw.
    """

    outcome: Outcome
    why: str
    fix: str = ""
    seen: dict[str, Any] = {}


class GateResult(Struct, frozen=True, kw_only=True):
    """One gate's answer, as it is stored with the decision and shown to people."""

    gate: str
    outcome: Outcome
    mode: Mode
    why: str
    fix: str = ""
    evidence: Digest
    waived_by: str | None = None

    @property
    def blocks(self) -> bool:
        """Whether this answer stops the promotion."""
        return self.mode is Mode.ENFORCE and self.outcome in (Outcome.FAILED, Outcome.INCONCLUSIVE)


class Gate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="gate"):
    """What all rules have. Subclasses are the rows of the gate table, and their docstrings are its reference
    page; each says with `examine` what it finds in the facts (see `Rule`).
    """

    waivable: ClassVar[bool] = True
    mode: Mode = Mode.ENFORCE

    @property
    def label(self) -> str:
        """How people refer to it, for example in a waiver."""
        return str(self.__struct_config__.tag)

    def problem(self) -> str | None:
        """What is wrong with the rule as it is written, for whoever writes it."""
        return None


class Rule(Protocol):
    """What a gate is to whoever asks it."""

    @property
    def waivable(self) -> bool:
        """Whether somebody may take it upon themselves."""

    @property
    def mode(self) -> Mode:
        """Whether it stops a promotion."""

    @property
    def label(self) -> str:
        """How people refer to it."""

    def examine(self, facts: Facts) -> Finding:
        """What the rule says of the facts."""


class SignatureGate(Gate, frozen=True, tag="signature"):
    """The version declares its input and output schema."""

    def examine(self, facts: Facts) -> Finding:
        signature = facts.version.signature
        if signature is None or not signature.inputs:
            return Finding(
                outcome=Outcome.FAILED,
                why="the version declares no input and output schema",
                fix="register it again with a 'signature' section in its metadata",
            )
        seen = {"inputs": len(signature.inputs), "outputs": len(signature.outputs)}
        why = f"{len(signature.inputs)} inputs and {len(signature.outputs)} outputs are declared"
        return Finding(outcome=Outcome.PASSED, why=why, seen=seen)


class FilesVerifiedGate(Gate, frozen=True, tag="files_verified"):
    """The stored bytes were hashed again and are still what was registered. It cannot be waived."""

    waivable: ClassVar[bool] = False

    def examine(self, facts: Facts) -> Finding:
        seen = {"digest": facts.version.digest, "verified": facts.files_verified}
        match facts.files_verified:
            case True:
                return Finding(outcome=Outcome.PASSED, why="every stored byte matches its digest", seen=seen)
            case False:
                return Finding(
                    outcome=Outcome.FAILED,
                    why="stored bytes do not match their digests",
                    fix="run 'modelkeep fsck', then restore the files from a backup or register them again",
                    seen=seen,
                )
            case _:
                return Finding(
                    outcome=Outcome.INCONCLUSIVE,
                    why="the stored bytes could not be read",
                    fix="make the blob store reachable and try again",
                    seen=seen,
                )


class MetadataGate(Gate, frozen=True, tag="metadata"):
    """Named fields of the metadata are filled in, for example `business.owner`."""

    fields: tuple[str, ...]

    def examine(self, facts: Facts) -> Finding:
        missing = metadata.missing(facts.version.metadata, self.fields)
        seen = {"fields": list(self.fields), "missing": list(missing)}
        if missing:
            return Finding(
                outcome=Outcome.FAILED,
                why=f"the metadata lacks {', '.join(missing)}",
                fix="register a version whose metadata has these fields",
                seen=seen,
            )
        return Finding(outcome=Outcome.PASSED, why=f"filled in: {', '.join(self.fields)}", seen=seen)

    def problem(self) -> str | None:
        if not 0 < len(self.fields) <= CHECKLIST_MAX or not all(self.fields):
            return f"needs 1 to {CHECKLIST_MAX} fields, for example business.owner"
        return None


def _number(value: float) -> str:
    return f"{value:.6g}"


def _exact(value: float) -> Decimal:
    """The number as people write it: 0.94 - 0.93 is 0.01 then, which it is not between binary fractions."""
    return Decimal(repr(value))


class MetricGate(Gate, frozen=True, tag="metric"):
    """A metric is at least `min`, at most `max`, or both. One that was not measured is inconclusive."""

    name: str
    min: float | None = None
    max: float | None = None
    split: str | None = None
    slice: str | None = None

    @property
    def label(self) -> str:
        return f"metric:{self.shown}"

    @property
    def shown(self) -> str:
        """The metric with its split and slice."""
        return metric_label(self.name, self.split, self.slice)

    def examine(self, facts: Facts) -> Finding:
        metric = facts.version.metric(self.name, self.split, self.slice)
        limits = (("at least", self.min), ("at most", self.max))
        wanted = " and ".join(f"{word} {_number(limit)}" for word, limit in limits if limit is not None)
        if metric is None:
            return Finding(
                outcome=Outcome.INCONCLUSIVE,
                why=f"{self.shown} was not measured",
                fix=f"register the version with the metric {self.shown} ({wanted})",
                seen={"metric": self.shown, "value": None},
            )
        seen = {"metric": self.shown, "value": metric.value, "min": self.min, "max": self.max}
        why = f"{self.shown} is {_number(metric.value)}; {wanted} is required"
        low = self.min is not None and metric.value < self.min
        high = self.max is not None and metric.value > self.max
        if low or high:
            return Finding(outcome=Outcome.FAILED, why=why, fix=f"reach {self.shown} {wanted}", seen=seen)
        return Finding(outcome=Outcome.PASSED, why=why, seen=seen)

    def problem(self) -> str | None:
        if not self.name:
            return "needs the 'name' of a metric"
        if self.min is None and self.max is None:
            return "needs 'min' or 'max'"
        if not all(math.isfinite(limit) for limit in (self.min, self.max) if limit is not None):
            return "needs limits that are finite numbers"
        if self.min is not None and self.max is not None and self.min > self.max:
            return "can never pass, because 'min' is above 'max'"
        return None


class BetterThanGate(Gate, frozen=True, tag="better_than"):
    """A metric is not worse than that of the version now in the stage by more than `tolerance`, or, with
    `by`, better by at least that much.

    Passes when the stage is empty. Inconclusive when one of the two was not measured, or when they were
    measured on different data, in different units, or with different ideas of which way is better.
    """

    metric: str
    tolerance: float = 0.0
    by: float | None = None
    split: str | None = None
    slice: str | None = None

    @property
    def label(self) -> str:
        return f"better_than:{self.shown}"

    @property
    def shown(self) -> str:
        """The metric with its split and slice."""
        return metric_label(self.metric, self.split, self.slice)

    def examine(self, facts: Facts) -> Finding:
        incumbent = facts.incumbent
        if incumbent is None:
            return Finding(outcome=Outcome.PASSED, why="the stage is empty, there is nothing to compare with")
        mine = facts.version.metric(self.metric, self.split, self.slice)
        theirs = incumbent.metric(self.metric, self.split, self.slice)
        seen = {
            "incumbent": incumbent.digest,
            "value": mine.value if mine is not None else None,
            "theirs": theirs.value if theirs is not None else None,
        }
        if mine is None or theirs is None:
            absent = facts.version if mine is None else incumbent
            return Finding(
                outcome=Outcome.INCONCLUSIVE,
                why=f"{self.shown} was not measured for {absent.reference}",
                fix=f"measure {self.shown} for both versions on the same data",
                seen=seen,
            )
        unlike = _unlike(mine, theirs)
        if unlike is not None:
            return Finding(
                outcome=Outcome.INCONCLUSIVE,
                why=f"{self.shown} cannot be compared with that of {incumbent.semver}: {unlike}",
                fix=f"measure {self.shown} for both versions on the same data and in the same way",
                seen=seen | {"unlike": unlike},
            )
        return self._compare(mine, theirs, incumbent, seen)

    @property
    def gain(self) -> Decimal:
        """By how much the version has to be better; below 0 it may be worse."""
        return _exact(self.by) if self.by is not None else -_exact(self.tolerance)

    def _compare(
        self, mine: Metric, theirs: Metric, incumbent: ModelVersion, seen: Mapping[str, Any]
    ) -> Finding:
        sign = 1 if mine.better is Direction.HIGHER else -1
        gain = sign * (_exact(mine.value) - _exact(theirs.value))
        how = f"{'better' if gain > 0 else 'worse'} by {_number(float(abs(gain)))}" if gain else "equal"
        against = f"{_number(theirs.value)} of {incumbent.semver} ({how})"
        why = f"{self.shown} is {_number(mine.value)} against {against}"
        if gain >= self.gain:
            return Finding(outcome=Outcome.PASSED, why=why, seen=dict(seen))
        limit = float(_exact(theirs.value) + sign * self.gain)
        fix = f"reach {self.shown} {'at least' if sign > 0 else 'at most'} {_number(limit)}"
        return Finding(outcome=Outcome.FAILED, why=why, fix=fix, seen=dict(seen))

    def problem(self) -> str | None:
        if not self.metric:
            return "needs the name of a 'metric'"
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            return "has a 'tolerance' that is not a number from 0 up; use 'by' to ask for a gain"
        if self.by is not None and not (math.isfinite(self.by) and self.by >= 0):
            return "has a 'by' that is not a number from 0 up; use 'tolerance' to allow a loss"
        if self.by is not None and self.tolerance:
            return "has both 'by' and 'tolerance'; keep one of them"
        return None


def _unlike(mine: Metric, theirs: Metric) -> str | None:
    """Why two measurements of one name are not measurements of one thing."""
    if mine.better is not theirs.better:
        return f"{mine.better} is better here, {theirs.better} there"
    for what, here, there in (
        ("unit", mine.unit, theirs.unit),
        ("data set", mine.dataset, theirs.dataset),
    ):
        if here is not None and there is not None and here != there:
            return f"the {what} is {here} here, {there} there"
    return None


class ChecklistGate(Gate, frozen=True, tag="checklist"):
    """People vouch for named items, each with its evidence, on the promotion request."""

    items: tuple[str, ...]

    def examine(self, facts: Facts) -> Finding:
        ticked = {check.item: check for check in facts.checks}
        open_items = [item for item in self.items if item not in ticked]
        seen = {item: [ticked[item].by, ticked[item].evidence] for item in self.items if item in ticked}
        if open_items:
            return Finding(
                outcome=Outcome.FAILED,
                why=f"not ticked: {', '.join(open_items)}",
                fix=f"vouch for it: modelkeep review REQUEST --check '{open_items[0]}=EVIDENCE'",
                seen=seen,
            )
        return Finding(outcome=Outcome.PASSED, why=f"ticked: {', '.join(self.items)}", seen=seen)

    def problem(self) -> str | None:
        if not 0 < len(self.items) <= CHECKLIST_MAX or len(set(self.items)) != len(self.items):
            return f"needs 1 to {CHECKLIST_MAX} different items"
        if not all(item.strip() and "=" not in item for item in self.items):
            return "needs items that are not empty and hold no '='"
        return None


GATES: tuple[type[Gate], ...] = (
    FilesVerifiedGate,
    SignatureGate,
    MetadataGate,
    MetricGate,
    BetterThanGate,
    ChecklistGate,
)

AnyGate = FilesVerifiedGate | SignatureGate | MetadataGate | MetricGate | BetterThanGate | ChecklistGate


def as_strict(inner: AnyGate, outer: AnyGate) -> bool:
    """Whether a gate passes nothing that another one with the same label stops."""
    match inner, outer:
        case MetadataGate(), MetadataGate():
            return set(inner.fields) >= set(outer.fields)
        case ChecklistGate(), ChecklistGate():
            return set(inner.items) >= set(outer.items)
        case MetricGate(), MetricGate():
            low = outer.min is None or (inner.min is not None and inner.min >= outer.min)
            high = outer.max is None or (inner.max is not None and inner.max <= outer.max)
            return low and high
        case BetterThanGate(), BetterThanGate():
            return inner.gain >= outer.gain
        case _:
            return type(inner) is type(outer)
