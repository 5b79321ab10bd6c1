"""Policies: what must hold before a version may enter a stage, as data that people write and machines replay.

A policy is a YAML document with a list of gates per stage. A gate is one rule; it looks at stored facts and
nothing else and answers passed, failed, inconclusive (it could not be measured, which never promotes) or,
when somebody with the right to do so has taken it upon themselves, waived. The same facts give the same
answer for ever. Approvals, which are about people rather than about facts, are counted in `promotion`.
"""

import hashlib
from enum import StrEnum
from typing import Any

from msgspec import Struct, field

from modelkeep.core import codec, errors, metadata, values
from modelkeep.core.catalog import Direction, Metric, ModelVersion
from modelkeep.core.values import Digest

GATES_MAX = 100
"""Gates of one stage: a reviewer must be able to read them."""
CHECKLIST_MAX = 100
"""Items of one checklist."""
APPROVALS_MAX = 20
"""People whose approval one stage can ask for."""


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
    """A rule. Subclasses are the rows of the gate table; their docstrings are its reference page."""

    mode: Mode = Mode.ENFORCE

    @property
    def label(self) -> str:
        """How people refer to it, for example in a waiver."""
        return str(self.__struct_config__.tag)

    def examine(self, facts: Facts) -> Finding:
        raise NotImplementedError


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
    """The stored bytes were hashed again and are still what was registered."""

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
        missing = metadata.required_for(facts.version.metadata, "stage", {"stage": self.fields})
        seen = {"fields": list(self.fields), "missing": list(missing)}
        if missing:
            return Finding(
                outcome=Outcome.FAILED,
                why=f"the metadata lacks {', '.join(missing)}",
                fix="register a version whose metadata has these fields",
                seen=seen,
            )
        return Finding(outcome=Outcome.PASSED, why=f"{', '.join(self.fields)} are filled in", seen=seen)


def _number(value: float) -> str:
    return f"{value:.6g}"


class MetricGate(Gate, frozen=True, tag="metric"):
    """A metric is at least `min` or at most `max`. A metric that was not measured is inconclusive."""

    name: str
    min: float | None = None
    max: float | None = None
    split: str | None = None
    slice: str | None = None

    @property
    def label(self) -> str:
        return f"metric:{self.name}"

    def examine(self, facts: Facts) -> Finding:
        metric = facts.version.metric(self.name, self.split, self.slice)
        wanted = " and ".join(
            text
            for text in (
                f"at least {_number(self.min)}" if self.min is not None else "",
                f"at most {_number(self.max)}" if self.max is not None else "",
            )
            if text
        )
        if metric is None:
            return Finding(
                outcome=Outcome.INCONCLUSIVE,
                why=f"{self.name} was not measured",
                fix=f"register the version with the metric {self.name} ({wanted})",
                seen={"metric": self.name, "value": None},
            )
        seen = {"metric": self.name, "value": metric.value, "min": self.min, "max": self.max}
        short = (self.min is not None and metric.value < self.min) or (
            self.max is not None and metric.value > self.max
        )
        if short:
            why = f"{self.name} is {_number(metric.value)}; {wanted} is required"
            return Finding(outcome=Outcome.FAILED, why=why, fix=f"reach {self.name} {wanted}", seen=seen)
        why = f"{self.name} is {_number(metric.value)}; {wanted} is required"
        return Finding(outcome=Outcome.PASSED, why=why, seen=seen)


class BetterThanGate(Gate, frozen=True, tag="better_than"):
    """A metric is better than that of the version now in the stage, or not worse by more than `tolerance`.

    Passes when the stage is empty. `by` asks for a gain of at least that much instead.
    """

    metric: str
    tolerance: float = 0.0
    by: float | None = None
    split: str | None = None

    @property
    def label(self) -> str:
        return f"better_than:{self.metric}"

    def examine(self, facts: Facts) -> Finding:
        if facts.incumbent is None:
            return Finding(outcome=Outcome.PASSED, why="the stage is empty, there is nothing to compare with")
        mine = facts.version.metric(self.metric, self.split)
        theirs = facts.incumbent.metric(self.metric, self.split)
        if mine is None or theirs is None:
            absent = facts.version if mine is None else facts.incumbent
            return Finding(
                outcome=Outcome.INCONCLUSIVE,
                why=f"{self.metric} was not measured for {absent.reference}",
                fix=f"measure {self.metric} for both versions on the same data",
                seen={"incumbent": facts.incumbent.digest},
            )
        return self._compare(mine, theirs, facts.incumbent)

    def _compare(self, mine: Metric, theirs: Metric, incumbent: ModelVersion) -> Finding:
        sign = 1.0 if mine.better is Direction.HIGHER else -1.0
        gain = sign * (mine.value - theirs.value)
        need = self.by if self.by is not None else -self.tolerance
        seen = {"incumbent": incumbent.digest, "value": mine.value, "theirs": theirs.value, "need": need}
        why = (
            f"{self.metric} is {_number(mine.value)} against {_number(theirs.value)} of {incumbent.semver} "
            f"({'better' if gain > 0 else 'equal' if gain == 0 else 'worse'} by {_number(abs(gain))})"
        )
        if gain >= need:
            return Finding(outcome=Outcome.PASSED, why=why, seen=seen)
        limit = theirs.value + sign * need
        word = "at least" if sign > 0 else "at most"
        return Finding(
            outcome=Outcome.FAILED, why=why, fix=f"reach {self.metric} {word} {_number(limit)}", seen=seen
        )


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
                fix=f"modelkeep review REQUEST --check {open_items[0]!r}=EVIDENCE",
                seen=seen,
            )
        return Finding(outcome=Outcome.PASSED, why=f"all {len(self.items)} items are ticked", seen=seen)


GATES: tuple[type[Gate], ...] = (
    FilesVerifiedGate,
    SignatureGate,
    MetadataGate,
    MetricGate,
    BetterThanGate,
    ChecklistGate,
)
"""The gate table: a new gate is a class above and a row here."""

AnyGate = FilesVerifiedGate | SignatureGate | MetadataGate | MetricGate | BetterThanGate | ChecklistGate


class Approvals(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many other people have to agree, in which roles, and for how long a request stays open."""

    count: int = 0
    roles: tuple[str, ...] = ("approver", "maintainer", "admin")
    expires_s: float = 14 * 86_400.0


class StageRules(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one stage asks for."""

    gates: tuple[AnyGate, ...] = ()
    approvals: Approvals = field(default_factory=Approvals)


class Policy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole policy document. A stage that is not named asks for nothing."""

    name: str
    schema: str = "modelkeep.policy/v1"
    description: str = ""
    stages: dict[str, StageRules] = {}

    def rules(self, stage: str) -> StageRules:
        return self.stages.get(stage, StageRules())


def policy_digest(policy: Policy) -> Digest:
    """The policy's version: what approvals are bound to."""
    return Digest("sha256:" + hashlib.sha256(b"modelkeep.policy.v1\n" + codec.canonical(policy)).hexdigest())


def read_policy(text: str | bytes) -> Policy:
    """Read and check a policy document in YAML or JSON.

    Raises:
        InvalidPolicy: not a policy; the message names the place.
    """
    try:
        policy = codec.convert(codec.parse_yaml(text), Policy)
    except errors.MalformedBody as problem:
        known = ", ".join(str(gate.__struct_config__.tag) for gate in GATES)
        raise errors.InvalidPolicy(f"This is not a policy: {problem} The gates are: {known}.") from problem
    if policy.schema != "modelkeep.policy/v1":
        raise errors.InvalidPolicy(
            f"The policy schema {policy.schema!r} is unknown; write 'modelkeep.policy/v1'."
        )
    values.check_name(policy.name, "policy")
    for stage, rules in policy.stages.items():
        values.check_name(stage, "stage")
        _check_rules(stage, rules)
    return policy


def _check_rules(stage: str, rules: StageRules) -> None:
    if len(rules.gates) > GATES_MAX:
        raise errors.InvalidPolicy(f"The stage {stage!r} has more than {GATES_MAX} gates.")
    if not 0 <= rules.approvals.count <= APPROVALS_MAX:
        raise errors.InvalidPolicy(f"The stage {stage!r} may ask for 0 to {APPROVALS_MAX} approvals.")
    if not 60 <= rules.approvals.expires_s <= 366 * 86_400:
        raise errors.InvalidPolicy(
            f"Requests for {stage!r} may expire after a minute up to a year (expires_s)."
        )
    labels: set[str] = set()
    for gate in rules.gates:
        if gate.label in labels:
            raise errors.InvalidPolicy(
                f"The gate {gate.label!r} stands twice for the stage {stage!r}; merge them."
            )
        labels.add(gate.label)
        match gate:
            case MetricGate(min=None, max=None):
                raise errors.InvalidPolicy(f"The gate {gate.label!r} needs 'min' or 'max'.")
            case BetterThanGate(tolerance=tolerance) if tolerance < 0:
                raise errors.InvalidPolicy(
                    f"The tolerance of {gate.label!r} must not be negative; use 'by' to ask for a gain."
                )
            case ChecklistGate(items=items) if not 0 < len(items) <= CHECKLIST_MAX or len(set(items)) != len(
                items
            ):
                raise errors.InvalidPolicy(f"A checklist has 1 to {CHECKLIST_MAX} different items.")
            case MetadataGate(fields=()):
                raise errors.InvalidPolicy(
                    "The gate 'metadata' needs at least one field, for example business.owner."
                )
            case _:
                pass


def evaluate(rules: StageRules, facts: Facts) -> tuple[GateResult, ...]:
    """Every gate's answer, in the policy's order."""
    waivers = {waiver.gate: waiver for waiver in facts.waivers}
    return tuple(_answer(gate, facts, waivers.get(gate.label)) for gate in rules.gates)


def _answer(gate: Gate, facts: Facts, waiver: Waiver | None) -> GateResult:
    finding = gate.examine(facts)
    # The evidence is what the gate saw of the world, so that an approval of it falls when the world changes.
    document = codec.canonical(
        {"gate": gate.label, "rule": gate, "version": facts.version.digest, "seen": finding.seen}
    )
    evidence = Digest("sha256:" + hashlib.sha256(b"modelkeep.evidence.v1\n" + document).hexdigest())
    outcome, why = finding.outcome, finding.why
    if waiver is not None and outcome is not Outcome.PASSED:
        why = f"{why}; waived by {waiver.by}: {waiver.reason}"
        return GateResult(
            gate=gate.label,
            outcome=Outcome.WAIVED,
            mode=gate.mode,
            why=why,
            evidence=evidence,
            waived_by=waiver.by,
        )
    return GateResult(
        gate=gate.label, outcome=outcome, mode=gate.mode, why=why, fix=finding.fix, evidence=evidence
    )


def evidence_digest(results: tuple[GateResult, ...]) -> Digest:
    """One digest over everything the gates saw."""
    document = codec.canonical([[result.gate, result.evidence] for result in results])
    return Digest("sha256:" + hashlib.sha256(b"modelkeep.evidence-list.v1\n" + document).hexdigest())


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
