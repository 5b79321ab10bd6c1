"""Policies: what must hold before a version may enter a stage, and how traffic moves there, as data that
people write and machines replay.

A policy is a YAML document with a list of gates per stage (`gates`), how many people have to agree, and by
which rollout plan traffic goes where an endpoint follows a stage or an alias. Approvals, which are about
people rather than about facts, are counted in `promotion`.
"""

import hashlib
from collections.abc import Collection, Sequence
from typing import Any

from msgspec import Struct, field

from modelkeep.core import bump, codec, errors, values
from modelkeep.core.access import ROLE_VERBS, Role, Verb
from modelkeep.core.bump import VersionRules
from modelkeep.core.gates import (
    GATES,
    AnyGate,
    BetterThanGate,
    Check,
    ChecklistGate,
    Facts,
    FilesVerifiedGate,
    Finding,
    Gate,
    GateResult,
    MetadataGate,
    MetricGate,
    Mode,
    Outcome,
    Rule,
    SignatureGate,
    Waiver,
    as_strict,
)
from modelkeep.core.plan import SCHEMA as PLAN_SCHEMA
from modelkeep.core.plan import Plan, check_schema, check_standing, completed
from modelkeep.core.values import Digest
from modelkeep.core.windows import WINDOWS_MAX, read_window

__all__ = [
    "ALONE",
    "GATES",
    "TEAM",
    "VOTING_ROLES",
    "AliasRules",
    "AnyGate",
    "Approvals",
    "BetterThanGate",
    "Check",
    "ChecklistGate",
    "DrillRules",
    "Facts",
    "FilesVerifiedGate",
    "Finding",
    "Gate",
    "GateResult",
    "MetadataGate",
    "MetricGate",
    "Mode",
    "Outcome",
    "Policy",
    "Rule",
    "SignatureGate",
    "StageRules",
    "Waiver",
    "evaluate",
    "evidence_digest",
    "policy_digest",
    "read_policy",
    "weaker",
]

GATES_MAX = 100
"""Gates of one stage: a reviewer must be able to read them."""
ALIASES_MAX = 200
"""Aliases that one policy has rules for: as many as a model has."""
DIGESTED_MAX = 64
"""Policies whose digest is kept; past that all are forgotten and digested anew."""
APPROVALS_MAX = 20
"""People whose approval one stage can ask for."""
EXPIRES_MIN_S = 60.0
"""The shortest life of a request: long enough to read it."""
EXPIRES_MAX_S = 366 * 86_400.0
"""The longest life of a request: what was true a year ago has to be looked at again."""
SCHEMA = "modelkeep.policy/v1"
"""The form of the documents that this release reads."""
VOTING_ROLES = tuple(sorted(role.value for role in Role if Verb.REVIEW in ROLE_VERBS[role]))
"""The roles that a policy can ask approvals of; the others may not review at all."""


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
    the policy's holds, and without that the endpoint's own."""

    gates: tuple[AnyGate, ...] = ()
    approvals: Approvals = field(default_factory=Approvals)
    rollout: Plan | None = None


class AliasRules(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How traffic moves where an endpoint follows an alias; no gate is asked there."""

    rollout: Plan


class DrillRules(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When rollbacks may be rehearsed: in windows such as `Mon-Fri 10:00-16:00 Europe/Berlin`; without any,
    at all times."""

    windows: tuple[str, ...] = ()


class Policy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole policy document. A stage that is not named asks for nothing. `rollout` is the plan by which
    traffic moves where neither the stage nor the alias that an endpoint follows has one of its own.
    `versioning` are the rules by which the numbers of new versions are inferred.
    """

    name: str
    schema: str = SCHEMA
    description: str = ""
    stages: dict[str, StageRules] = {}
    aliases: dict[str, AliasRules] = {}
    rollout: Plan | None = None
    drills: DrillRules = field(default_factory=DrillRules)
    versioning: VersionRules = field(default_factory=VersionRules)

    def rules(self, stage: str) -> StageRules:
        """What this stage asks for."""
        return self.stages.get(stage, StageRules())

    def plan(self, stage: str | None, alias: str | None = None) -> Plan | None:
        """How traffic moves behind a stage, or behind an alias; None where the endpoint says it."""
        own: StageRules | AliasRules | None
        own = self.aliases.get(alias) if alias is not None else self.stages.get(stage or "")
        return own.rollout if own is not None and own.rollout is not None else self.rollout


def policy_digest(policy: Policy) -> Digest:
    """The policy's version: what approvals are bound to."""
    known = _digested.get(id(policy))
    if known is None or known[0] is not policy:
        if len(_digested) >= DIGESTED_MAX:
            _digested.clear()
        known = _digested[id(policy)] = (policy, _digest_of(policy))
    return known[1]


_digested: dict[int, tuple[Policy, Digest]] = {}
"""Policies whose digest is known, by where they are; each is held, so that no other can take its place."""


def _digest_of(policy: Policy) -> Digest:
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
    if len(policy.aliases) > ALIASES_MAX:
        raise errors.InvalidPolicy(f"A policy has rules for at most {ALIASES_MAX} aliases; name fewer.")
    for alias, own in policy.aliases.items():
        values.check_name(alias, "alias")
        _check_plan(f"@{alias}", own.rollout)
    if policy.rollout is not None:
        _check_plan("everything else", policy.rollout)
    if len(policy.drills.windows) > WINDOWS_MAX:
        raise errors.InvalidPolicy(f"A policy has at most {WINDOWS_MAX} windows for drills; merge some.")
    for window in policy.drills.windows:
        read_window(window)
    return policy


def _check_plan(place: str, plan: Plan) -> None:
    try:
        check_standing(plan)
    except errors.InvalidPlan as problem:
        raise errors.InvalidPolicy(f"The rollout for {place!r}: {problem.message}") from problem


def _with_whole_plans(document: Any) -> Any:
    """A document whose rollout plans have what their strategies bring along; what is no policy stays as it
    is.

    Raises:
        InvalidPolicy: a plan is of a form that this release does not read.
    """
    if not isinstance(document, dict):
        return document
    whole = _with_plan("everything else", document)
    for section, shown in (("stages", "{}"), ("aliases", "@{}")):
        if isinstance(places := document.get(section), dict):
            own = {place: _with_plan(shown.format(place), rules) for place, rules in places.items()}
            whole = {**whole, section: own}
    return whole


def _with_plan(place: str, rules: Any) -> Any:
    """Rules with a whole plan, where they have one."""
    if not isinstance(rules, dict) or "rollout" not in rules:
        return rules
    plan = rules["rollout"]
    if isinstance(plan, dict):
        try:
            check_schema(plan.get("schema", PLAN_SCHEMA))
        except errors.InvalidPlan as problem:
            raise errors.InvalidPolicy(f"The rollout for {place!r}: {problem.message}") from problem
    return {**rules, "rollout": completed(plan)}


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
        _check_plan(stage, rules.rollout)
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
    less = [reason for stage in named for reason in _less(stage, inner.rules(stage), outer.rules(stage))]
    moves = [(stage, outer.plan(stage), inner.plan(stage)) for stage in named]
    moves += [(f"@{alias}", outer.plan(None, alias), inner.plan(None, alias)) for alias in outer.aliases]
    moves.append(("everything else", outer.rollout, inner.rollout))
    less += [
        f"{place} moves traffic by another rollout plan"
        for place, theirs, mine in moves
        if theirs is not None and mine != theirs
    ]
    if outer.drills.windows and inner.drills != outer.drills:
        less.append("drills may be at other times")
    return tuple(less)


def _less(stage: str, inner: StageRules, outer: StageRules) -> list[str]:
    reasons = []
    mine, theirs = inner.approvals, outer.approvals
    if mine.count < theirs.count:
        reasons.append(f"{stage} asks for {mine.count} approvals instead of {theirs.count}")
    more = sorted(set(mine.roles) - set(theirs.roles))
    if theirs.count and mine.count and more:
        reasons.append(f"{stage} also takes the approval of {', '.join(more)}")
    kept = {gate.label: gate for gate in inner.gates}
    for gate in outer.gates:
        if gate.mode is not Mode.ENFORCE:
            continue
        own = kept.get(gate.label)
        if own is None:
            reasons.append(f"{stage} drops the gate {gate.label}")
        elif own.mode is not Mode.ENFORCE:
            reasons.append(f"{stage} only warns of the gate {gate.label}")
        elif not as_strict(own, gate):
            reasons.append(f"{stage} asks for less in the gate {gate.label}")
    return reasons


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
