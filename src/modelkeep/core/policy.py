"""Policies: what must hold before a version may enter a stage, as data that people write and machines replay.

A policy is a YAML document with a list of gates per stage. A gate is one rule; it looks at stored facts and
nothing else and answers passed, failed, inconclusive (it could not be measured, which never promotes) or,
when somebody with the right to do so has taken it upon themselves, waived. The same facts give the same
answer for ever. Approvals, which are about people rather than about facts, are counted in `promotion`.
"""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from enum import StrEnum
from typing import Any, ClassVar, Protocol

from msgspec import Struct, field

from modelkeep.core import bump, codec, errors, metadata, values
from modelkeep.core.access import ROLE_VERBS, Role, Verb
from modelkeep.core.bump import VersionRules
from modelkeep.core.catalog import Direction, Metric, ModelVersion, metric_label
from modelkeep.core.plan import Plan, check_standing, completed
from modelkeep.core.values import Digest

GATES_MAX = 100
"""Gates of one stage: a reviewer must be able to read them."""
CHECKLIST_MAX = 100
"""Items of one checklist."""
APPROVALS_MAX = 20
"""People whose approval one stage can ask for."""
EXPIRES_MIN_S = 60.0
"""The shortest life of a request: long enough to read it."""
EXPIRES_MAX_S = 366 * 86_400.0
"""The longest life of a request: what was true a year ago has to be looked at again."""
SCHEMA = "modelkeep.policy/v1"
"""The form of the documents that this release reads."""


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
"""The gate table: a new gate is a class above and a row here."""

VOTING_ROLES = tuple(sorted(role.value for role in Role if Verb.REVIEW in ROLE_VERBS[role]))
"""The roles that a policy can ask approvals of; the others may not review at all."""

AnyGate = FilesVerifiedGate | SignatureGate | MetadataGate | MetricGate | BetterThanGate | ChecklistGate


class Approvals(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many other people have to agree, in which roles, and for how long a request stays open."""

    count: int = 0
    roles: tuple[str, ...] = ("approver", "maintainer", "admin")
    expires_s: float = 14 * 86_400.0

    def problem(self) -> str | None:
        """What is wrong with the numbers and roles, for whoever writes the policy."""
        if not 0 <= self.count <= APPROVALS_MAX:
            return f"may ask for 0 to {APPROVALS_MAX} approvals"
        if not EXPIRES_MIN_S <= self.expires_s <= EXPIRES_MAX_S:
            return "lets a request live for a minute up to a year (expires_s)"
        unfit = [role for role in self.roles if role not in VOTING_ROLES]
        if unfit or (self.count and not self.roles):
            named = f", not {unfit[0]!r}" if unfit else ""
            return f"takes approvals of {', '.join(VOTING_ROLES)}{named}"
        return None


class StageRules(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one stage asks for. `rollout` is the plan by which a promotion to it moves traffic; without one
    the endpoint's own holds."""

    gates: tuple[AnyGate, ...] = ()
    approvals: Approvals = field(default_factory=Approvals)
    rollout: Plan | None = None


class Policy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole policy document. A stage that is not named asks for nothing. `versioning` are the rules by
    which the numbers of new versions are inferred.
    """

    name: str
    schema: str = SCHEMA
    description: str = ""
    stages: dict[str, StageRules] = {}
    versioning: VersionRules = field(default_factory=VersionRules)

    def rules(self, stage: str) -> StageRules:
        """What this stage asks for."""
        return self.stages.get(stage, StageRules())


def policy_digest(policy: Policy) -> Digest:
    """The policy's version: what approvals are bound to."""
    return Digest("sha256:" + hashlib.sha256(b"modelkeep.policy.v1\n" + codec.canonical(policy)).hexdigest())


def read_policy(text: str | bytes) -> Policy:
    """Read and check a policy document in YAML or JSON.

    Raises:
        InvalidPolicy: not a policy; the message names the place.
        Invalid, InvalidName, LimitExceeded: a name or text in it is unfit, or it is too large.
    """
    try:
        policy = codec.convert(_with_whole_plans(codec.parse_yaml(text)), Policy)
    except errors.MalformedBody as problem:
        known = ", ".join(str(gate.__struct_config__.tag) for gate in GATES)
        raise errors.InvalidPolicy(f"This is not a policy: {problem} The gates are: {known}.") from problem
    if policy.schema != SCHEMA:
        raise errors.InvalidPolicy(
            f"The policy schema {values.quoted(policy.schema, 60)} is unknown; write {SCHEMA!r}."
        )
    values.check_name(policy.name, "policy")
    _check_texts(codec.builtins(policy))
    bump.book_of(policy.versioning)
    for stage, rules in policy.stages.items():
        if values.check_name(stage, "stage") != stage.lower():
            raise errors.InvalidPolicy(f"Stages are written in lower case: {stage.lower()!r}, not {stage!r}.")
        _check_rules(stage, rules)
    return policy


def _with_whole_plans(document: Any) -> Any:
    """A document whose rollout plans have what their strategies bring along; what is no policy stays as it
    is.
    """
    stages = document.get("stages") if isinstance(document, dict) else None
    if not isinstance(stages, dict):
        return document
    whole = {
        stage: {**rules, "rollout": completed(rules["rollout"])}
        if isinstance(rules, dict) and "rollout" in rules
        else rules
        for stage, rules in stages.items()
    }
    return {**document, "stages": whole}


def _check_texts(value: object) -> None:
    """Every text of a policy is shown to people sooner or later."""
    match value:
        case str():
            values.check_text(value, "policy")
        case dict():
            for key, item in value.items():
                _check_texts(key)
                _check_texts(item)
        case list() | tuple():
            for item in value:
                _check_texts(item)


def _check_rules(stage: str, rules: StageRules) -> None:
    if len(rules.gates) > GATES_MAX:
        raise errors.InvalidPolicy(f"The stage {stage!r} has more than {GATES_MAX} gates; merge some.")
    wrong = rules.approvals.problem()
    if wrong is not None:
        raise errors.InvalidPolicy(f"The policy for {stage!r} {wrong}.")
    if rules.rollout is not None:
        try:
            check_standing(rules.rollout)
        except errors.InvalidPlan as problem:
            raise errors.InvalidPolicy(f"The rollout for {stage!r}: {problem.message}") from problem
    labels: set[str] = set()
    for gate in rules.gates:
        wrong = gate.problem()
        if wrong is not None:
            raise errors.InvalidPolicy(f"The gate {gate.label!r} for {stage!r} {wrong}.")
        if gate.label in labels:
            raise errors.InvalidPolicy(
                f"The gate {gate.label!r} stands twice for the stage {stage!r}; merge them."
            )
        labels.add(gate.label)


def evaluate(rules: StageRules, facts: Facts) -> tuple[GateResult, ...]:
    """Every gate's answer, in the policy's order."""
    waivers = {waiver.gate: waiver for waiver in facts.waivers}
    return tuple(_answer(gate, facts, waivers.get(gate.label)) for gate in rules.gates)


def _answer(gate: Rule, facts: Facts, waiver: Waiver | None) -> GateResult:
    finding = gate.examine(facts)
    outcome, why, fix = finding.outcome, finding.why, finding.fix
    waived = waiver if waiver is not None and gate.waivable and outcome is not Outcome.PASSED else None
    if waived is not None:
        outcome, why, fix = Outcome.WAIVED, f"{why}; waived by {waived.by}: {waived.reason}", ""
    # The evidence is what the gate saw of the world, and who took it upon themselves, so that an approval of
    # it falls when either changes.
    document = codec.canonical(
        {
            "gate": gate.label,
            "rule": gate,
            "version": facts.version.digest,
            "seen": finding.seen,
            "waived": waived,
        }
    )
    return GateResult(
        gate=gate.label,
        outcome=outcome,
        mode=gate.mode,
        why=why,
        fix=fix,
        evidence=Digest("sha256:" + hashlib.sha256(b"modelkeep.evidence.v1\n" + document).hexdigest()),
        waived_by=waived.by if waived is not None else None,
    )


def evidence_digest(results: Sequence[GateResult]) -> Digest:
    """One digest over everything the gates saw."""
    document = codec.canonical([[result.gate, result.evidence] for result in results])
    return Digest("sha256:" + hashlib.sha256(b"modelkeep.evidence-list.v1\n" + document).hexdigest())


def weaker(inner: Policy, outer: Policy, stages: Collection[str] | None = None) -> tuple[str, ...]:
    """In what a policy asks for less than the one of the next scope up; nothing when it asks for as much.

    Fewer approvals, approvals of more roles, an enforced gate that is gone, only warns or asks for less, and
    another rollout plan than the one that is set there.

    Args:
        stages: the stages to look at; all that `outer` names when None.
    """
    named = [stage for stage in outer.stages if stages is None or stage in stages]
    return tuple(reason for stage in named for reason in _less(stage, inner.rules(stage), outer.rules(stage)))


def _less(stage: str, inner: StageRules, outer: StageRules) -> list[str]:
    reasons = []
    mine, theirs = inner.approvals, outer.approvals
    if mine.count < theirs.count:
        reasons.append(f"{stage} asks for {mine.count} approvals instead of {theirs.count}")
    more = sorted(set(mine.roles) - set(theirs.roles))
    if theirs.count and mine.count and more:
        reasons.append(f"{stage} also takes the approval of {', '.join(more)}")
    if outer.rollout is not None and inner.rollout != outer.rollout:
        reasons.append(f"{stage} moves traffic by another rollout plan")
    kept = {gate.label: gate for gate in inner.gates}
    for gate in outer.gates:
        if gate.mode is not Mode.ENFORCE:
            continue
        own = kept.get(gate.label)
        if own is None:
            reasons.append(f"{stage} drops the gate {gate.label}")
        elif own.mode is not Mode.ENFORCE:
            reasons.append(f"{stage} only warns of the gate {gate.label}")
        elif not _as_strict(own, gate):
            reasons.append(f"{stage} asks for less in the gate {gate.label}")
    return reasons


def _as_strict(inner: AnyGate, outer: AnyGate) -> bool:
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


ALONE = Policy(
    name="default",
    description="For one person on one machine: facts are checked, nobody else is asked.",
    stages={
        "staging": StageRules(gates=(FilesVerifiedGate(),)),
        "production": StageRules(gates=(FilesVerifiedGate(), SignatureGate(mode=Mode.WARN))),
    },
)
"""The policy of local mode, where there is nobody else to ask."""

TEAM = Policy(
    name="default",
    description="For a team: facts are checked, and one other person agrees before production.",
    stages={
        "staging": StageRules(gates=(FilesVerifiedGate(),)),
        "production": StageRules(
            gates=(
                FilesVerifiedGate(),
                SignatureGate(),
                MetadataGate(fields=("business.owner",), mode=Mode.WARN),
            ),
            approvals=Approvals(count=1),
        ),
    },
)
"""The policy of a server with users, until a project or model has its own."""
