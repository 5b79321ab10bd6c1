"""Which version number a new version deserves, and why: facts in, rules as data, a verdict with reasons out.

The facts of the parent and of the new version are compared into differences; the first rule that names a
difference judges it; the highest judgement is the verdict. A model's own rules stand before the default ones.
This file does not measure anything, does not read files, and does not know which versions exist unless it is
told.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from math import isfinite
from typing import Any

from msgspec import Struct

from modelkeep.core import codec, errors, semver, values
from modelkeep.core.differences import KINDS, NEUTRAL, Difference, Facts, differences, unknown
from modelkeep.core.semver import Bump, SemVer

__all__ = [
    "DEFAULT_RULES",
    "Bump",
    "BumpVerdict",
    "Facts",
    "Rule",
    "RuleBook",
    "VersionRules",
    "book_of",
    "infer",
    "judge",
    "next_version",
    "parse_rules",
    "plain_rules",
]

FIRST_VERSION = SemVer(1, 0, 0)
"""What the first version of a model is called when nobody says otherwise."""

# Limits of what a person may state, and of what a verdict says.
RULES_MAX = 200
"""Rules of one model: the default list has about twenty."""
PATTERNS_MAX = 100
"""Patterns of one condition: more than there are kinds of difference."""
PATTERN_MAX = 64
"""Characters of a pattern; the longest kind of difference has 29."""
REASON_MAX = 500
"""Characters of a rule's reason: two sentences."""
REASONS_MAX = 50
"""Reasons that a verdict lists before it counts the rest."""


# ------------------------------------------------------------ rules


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One judgement. Patterns are kinds of difference, where `*` stands for any part: `input.*`, `*.lost`.

    The rule judges each difference that `any_of` names, provided that every pattern of `all_of` and none of
    `none_of` is found among the differences. In `reason`, `{what}` is the difference's sentence and
    `{subject}` its name.
    """

    name: str
    any_of: tuple[str, ...]
    all_of: tuple[str, ...] = ()
    none_of: tuple[str, ...] = ()
    bump: Bump
    reason: str = "{what}"


class RuleBook(Struct, frozen=True, kw_only=True):
    """Rules in order, and the relative distance below which two values of a metric count as the same."""

    rules: tuple[Rule, ...]
    metric_tolerance: float = 0.0


_UNSTATED = "{what} It is unknown whether it changed, so it is counted as unchanged for callers."

DEFAULT_RULES = RuleBook(
    rules=(
        Rule(name="field-removed", any_of=("input.removed", "output.removed"), bump=Bump.MAJOR),
        Rule(
            name="field-retyped",
            any_of=(
                "*put.retyped",
                "*put.narrowed",
                "*put.shape_changed",
                "*put.shape_narrowed",
                "output.widened",
                "output.shape_widened",
            ),
            bump=Bump.MAJOR,
        ),
        Rule(
            name="input-demands-more",
            any_of=(
                "input.added_required",
                "input.made_required",
                "input.nullable_removed",
                "input.range_narrowed",
                "input.categories_removed",
            ),
            bump=Bump.MAJOR,
        ),
        Rule(
            name="output-promises-less",
            any_of=("output.made_optional", "output.nullable_added", "output.range_*", "output.categories_*"),
            bump=Bump.MAJOR,
        ),
        Rule(name="meaning-changed", any_of=("*put.meaning_changed",), bump=Bump.MAJOR),
        Rule(name="order-changed", any_of=("*put.reordered", "input.positions_dropped"), bump=Bump.MAJOR),
        Rule(
            name="signature-lost",
            any_of=("signature.lost",),
            bump=Bump.MAJOR,
            reason="{what} Callers rely on it, and nothing shows that they still can: state the signature.",
        ),
        Rule(name="preprocessing-changed", any_of=("preprocessing.changed",), bump=Bump.MAJOR),
        Rule(name="new-architecture-family", any_of=("architecture_family.changed",), bump=Bump.MAJOR),
        Rule(name="labels-changed", any_of=("labels.removed", "labels.added"), bump=Bump.MAJOR),
        Rule(
            name="features-inside",
            any_of=("features.removed", "features.added"),
            all_of=("signature.compatible",),
            bump=Bump.MINOR,
            reason="{what} Callers do not notice: the signature is compatible.",
        ),
        Rule(name="features-changed", any_of=("features.removed", "features.added"), bump=Bump.MAJOR),
        Rule(
            name="signature-documented",
            any_of=("*put.meaning_stated", "*put.meaning_dropped", "*put.rearranged"),
            bump=Bump.PATCH,
        ),
        Rule(name="signature-extended", any_of=("input.*", "output.*"), bump=Bump.MINOR),
        Rule(
            name="signature-unknown",
            any_of=("signature.unknown", "signature.gained"),
            bump=Bump.MINOR,
            reason="{what} Whether callers are affected is unknown; nothing was promised to them.",
        ),
        Rule(
            name="new-weights",
            any_of=("weights.changed", "architecture.changed", "data.changed"),
            bump=Bump.MINOR,
        ),
        Rule(name="new-files", any_of=("content.changed", "content.unknown"), bump=Bump.MINOR),
        Rule(
            name="behaviour-unstated",
            any_of=tuple(
                f"{fact}.{state}"
                for fact in (
                    "preprocessing",
                    "architecture_family",
                    "architecture",
                    "features",
                    "labels",
                    "weights",
                )
                for state in ("lost", "gained")
            ),
            bump=Bump.MINOR,
            reason=_UNSTATED,
        ),
        Rule(
            name="about-the-version",
            any_of=("environment.*", "metrics.*", "metadata.*", "files.changed", "data.lost", "data.gained"),
            bump=Bump.PATCH,
        ),
    )
)
"""The rules of a model that has none of its own."""

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_RULE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}", re.ASCII)


class VersionRules(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model's rules as people write them; `book_of` reads them. With `extends: default` the default rules
    follow; with `extends: nothing` they do not, and a difference that no rule names is major.
    """

    rules: tuple[Rule, ...] = ()
    metric_tolerance: float = 0.0
    extends: str = "default"


def parse_rules(value: object) -> RuleBook:
    """A model's rules from plain values as YAML and JSON give them.

    `{rules: [{name, any_of, all_of, none_of, bump, reason}], metric_tolerance: 0.001, extends: default}`.
    With `extends: default`, which is meant when it is left out, the default rules follow; with `extends:
    nothing` they do not, and a difference that no rule names is major.

    Raises:
        InvalidPolicy: unreadable, a name twice, a pattern that names no kind of difference, or a limit
        passed.
    """
    try:
        form = codec.convert(value, VersionRules)
    except errors.MalformedBody as problem:
        cause = str(problem.__cause__ or problem).rstrip(".")
        raise errors.InvalidPolicy(
            f"The version rules cannot be read: {cause}. A rule has a name, any_of, a bump "
            f"({', '.join(Bump)}) and, where needed, all_of, none_of and a reason.",
            field="rules",
        ) from problem
    return book_of(form)


def book_of(form: VersionRules) -> RuleBook:
    """The rules that people wrote, checked, with those that they extend.

    Raises:
        InvalidPolicy: a name twice, a pattern that names no kind of difference, or a limit passed.
    """
    if form.extends not in ("default", "nothing"):
        raise errors.InvalidPolicy("Version rules extend 'default' or 'nothing'.", field="extends")
    if not (isfinite(form.metric_tolerance) and 0 <= form.metric_tolerance < 1):
        raise errors.InvalidPolicy("metric_tolerance is a share between 0 and 1.", field="metric_tolerance")
    if len(form.rules) > RULES_MAX:
        raise errors.InvalidPolicy(
            f"A model has at most {RULES_MAX} version rules; merge some.", field="rules"
        )
    inherited = DEFAULT_RULES.rules if form.extends == "default" else ()
    seen: set[str] = set()
    for rule in form.rules:
        _check_rule(rule)
        if rule.name in seen:
            raise errors.InvalidPolicy(
                f"The version rule {rule.name!r} stands twice; keep one.", field=rule.name
            )
        seen.add(rule.name)
    kept = tuple(rule for rule in inherited if rule.name not in seen)
    return RuleBook(rules=form.rules + kept, metric_tolerance=form.metric_tolerance)


def _check_rule(rule: Rule) -> None:
    shown = values.printable(rule.name)[:60]
    if not _RULE_NAME.fullmatch(rule.name):
        raise errors.InvalidPolicy(
            f"'{shown}' cannot be the name of a version rule: use up to 64 of a to z, 0 to 9, '-' and '_'.",
            field="name",
        )
    if not rule.any_of:
        raise errors.InvalidPolicy(
            f"The version rule '{shown}' names no difference in any_of.", field=rule.name
        )
    for patterns in (rule.any_of, rule.all_of, rule.none_of):
        if len(patterns) > PATTERNS_MAX:
            raise errors.InvalidPolicy(f"'{shown}' has more than {PATTERNS_MAX} patterns.", field=rule.name)
        for pattern in patterns:
            _check_pattern(pattern, shown)
    if not rule.reason.strip() or len(rule.reason) > REASON_MAX or not rule.reason.isprintable():
        raise errors.InvalidPolicy(
            f"The version rule '{shown}' needs a reason of 1 to {REASON_MAX} printable characters.",
            field=rule.name,
        )
    strange = set(_PLACEHOLDER.findall(rule.reason)) - {"what", "subject"}
    if strange:
        raise errors.InvalidPolicy(
            f"The reason of the version rule '{shown}' may use {{what}} and {{subject}}, not "
            f"{{{values.printable(min(strange))[:30]}}}.",
            field=rule.name,
        )


def _check_pattern(pattern: str, rule: str) -> None:
    if len(pattern) <= PATTERN_MAX and any(_matches(kind, pattern) for kind in KINDS):
        return
    near = get_close_matches(pattern[:PATTERN_MAX], sorted(KINDS), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "; the reference of version rules lists them all."
    raise errors.InvalidPolicy(
        f"{values.quoted(pattern, 60)} in the version rule '{rule}' is no kind of difference{hint}",
        field=rule,
    )


def _matches(kind: str, pattern: str) -> bool:
    return fnmatchcase(kind, pattern) if "*" in pattern else kind == pattern


# ------------------------------------------------------------ the verdict


class BumpVerdict(Struct, frozen=True, kw_only=True):
    """How far the number has to move, and why.

    `reasons` are sentences, the gravest first, each opened by its bump; `rules_applied` names the rules that
    judged, in the same order, each once; `unknown` names the facts that could not be compared. `same_bytes`
    says that the files are those of the parent; with the bump `none` the new version is the parent, and not
    to be registered again.
    """

    bump: Bump
    reasons: tuple[str, ...]
    same_bytes: bool = False
    rules_applied: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


UNNAMED = "no-rule"
"""Stands in `rules_applied` for a difference that no rule names: major, since nobody said that it is less."""
UNPROVEN = "files-not-the-same"
"""Stands in `rules_applied` where rules wave all through, but the files are not shown to be equal."""


def infer(parent: Facts | None, new: Facts, rules: RuleBook = DEFAULT_RULES) -> BumpVerdict:
    """Judge a new version by its differences from its parent.

    Args:
        parent: None when the new version has none; the verdict is then major, and the reason says that it is
        the first.
    """
    if parent is None:
        return BumpVerdict(
            bump=Bump.MAJOR, reasons=("major: This is the first version.",), rules_applied=("first-version",)
        )
    found = differences(parent, new, metric_tolerance=rules.metric_tolerance)
    judged = judge(found, rules)
    same_bytes = any(difference.kind == "content.same" for difference in found)
    if not same_bytes and all(bump is Bump.NONE for bump, _, _ in judged):
        judged.insert(
            0, (Bump.PATCH, UNPROVEN, "The files are not known to be the same; versions never change.")
        )
    reasons = [f"{bump}: {reason}" for bump, _, reason in judged[:REASONS_MAX]]
    if len(judged) > REASONS_MAX:
        reasons.append(
            f"And {len(judged) - REASONS_MAX:,} more differences of at most {judged[REASONS_MAX][0]}."
        )
    if not reasons:
        reasons.append("none: The files and everything stated about them are the same.")
    return BumpVerdict(
        bump=judged[0][0] if judged else Bump.NONE,
        reasons=tuple(reasons),
        same_bytes=same_bytes,
        rules_applied=tuple(dict.fromkeys(name for _, name, _ in judged)),
        unknown=unknown(parent, new),
    )


def judge(found: Sequence[Difference], rules: RuleBook) -> list[tuple[Bump, str, str]]:
    """Bump, rule and reason of each difference that needs a judgement, the gravest first."""
    kinds = {difference.kind for difference in found}
    active = [rule for rule in rules.rules if _applies(rule, kinds)]
    by_kind = {kind: _first_rule(kind, active) for kind in kinds - NEUTRAL}
    judged = [
        _judgement(difference, by_kind[difference.kind]) for difference in found if difference.kind in by_kind
    ]
    return sorted(judged, key=lambda judgement: -judgement[0].rank)


def _applies(rule: Rule, kinds: set[str]) -> bool:
    def present(pattern: str) -> bool:
        return any(_matches(kind, pattern) for kind in kinds)

    return all(map(present, rule.all_of)) and not any(map(present, rule.none_of))


def _first_rule(kind: str, active: Sequence[Rule]) -> Rule | None:
    return next((rule for rule in active if any(_matches(kind, pattern) for pattern in rule.any_of)), None)


def _judgement(difference: Difference, rule: Rule | None) -> tuple[Bump, str, str]:
    if rule is None:
        return Bump.MAJOR, UNNAMED, f"{difference.sentence} No rule names the difference {difference.kind}."
    return rule.bump, rule.name, _filled(rule.reason, difference)


def _filled(template: str, difference: Difference) -> str:
    """The reason with its places filled; not `str.format`, whose templates can reach into objects."""
    words = {"what": difference.sentence, "subject": difference.subject}
    return _PLACEHOLDER.sub(lambda place: words[place[1]], template)


# ------------------------------------------------------------ the number


def next_version(
    existing: Iterable[SemVer],
    parent: SemVer | None,
    verdict: BumpVerdict,
    *,
    explicit: SemVer | None = None,
    bump: Bump | None = None,
    override_reason: str | None = None,
) -> tuple[SemVer, tuple[str, ...]]:
    """The number to give, with the reasons to keep.

    Without `explicit` and `bump` it is the inferred one, or the next free one of its line where that is
    taken: minor versions of 1 continue after the highest 1.x. More than was inferred may be asked for freely;
    less needs `override_reason`. A pre-release counts as the release it announces. 0.x has no licence to
    break: what callers would notice leads to 1.0.0.

    Args:
        existing: every version the model ever had, since a number is never given twice.
        parent: the version that `verdict` compares with; None for a first version.

    Returns:
        The version, and the verdict's reasons followed by what the person's choice changed. The parent
        itself, when the verdict is `none` and nothing was asked for: it is the same version.

    Raises:
        VersionExists: the explicit version is taken (build metadata makes no new version), or a number was
            asked for a version that is its parent in every respect. Details: `semver`, and `next_free` for a
            taken one.
        SemverTooLow: less was asked for than was inferred, without a reason. Details: `inferred`, `reasons`.
        InvalidSemver: a number would outgrow its limit.
    """
    taken = {semver.sort_key(version): version for version in existing}
    inferred = FIRST_VERSION if parent is None else semver.bump(parent, verdict.bump)
    if parent is not None and verdict.bump is Bump.NONE and not override_reason:
        if explicit is None and bump in (None, Bump.NONE):
            return parent, verdict.reasons
        raise errors.VersionExists(
            f"This is {parent} again: the files and everything stated about them are the same. Use {parent}.",
            semver=str(parent),
        )
    if explicit is not None:
        return _explicit(explicit, parent, inferred, verdict, taken, override_reason)
    wanted = verdict.bump if bump is None else bump
    reasons = verdict.reasons
    if parent is not None and wanted.rank < verdict.bump.rank:
        low = semver.bump(parent, wanted)
        reasons += (_overridden(str(low) if low != parent else wanted, inferred, verdict, override_reason),)
    elif wanted.rank > verdict.bump.rank:
        reasons += (f"A {wanted} version was asked for; {verdict.bump} would do.",)
    if wanted is Bump.NONE:
        wanted = Bump.PATCH  # whoever overrides down to nothing still gets a new number
    start = FIRST_VERSION if parent is None else semver.bump(parent, wanted)
    given = _next_free(start, Bump.MAJOR if parent is None else wanted, taken)
    if given != start:
        reasons += (f"{start} exists already, so {given} is the next free {wanted} version.",)
    return given, reasons


def _explicit(
    explicit: SemVer,
    parent: SemVer | None,
    inferred: SemVer,
    verdict: BumpVerdict,
    taken: Mapping[str, SemVer],
    override_reason: str | None,
) -> tuple[SemVer, tuple[str, ...]]:
    present = taken.get(semver.sort_key(explicit))
    free = _next_free(inferred, verdict.bump, taken)
    if present is not None:
        raise errors.VersionExists(
            f"{present} exists already and versions never change; the next free version is {free}.",
            semver=str(present),
            next_free=str(free),
        )
    if parent is None:
        return explicit, verdict.reasons
    announced = SemVer(*explicit.triple)
    if announced < inferred or semver.sort_key(explicit) <= semver.sort_key(parent):
        return explicit, (*verdict.reasons, _overridden(str(explicit), inferred, verdict, override_reason))
    if announced.triple != free.triple:
        return explicit, (*verdict.reasons, f"{explicit} was asked for; {free} would do.")
    return explicit, verdict.reasons


def _overridden(asked: str, inferred: SemVer, verdict: BumpVerdict, reason: str | None) -> str:
    """The sentence that records an override.

    Raises:
        SemverTooLow: there is no reason to record.
    """
    if reason and reason.strip():
        return f"{asked} was given instead of the inferred {inferred}, because: {reason.strip()}"
    first = verdict.reasons[0].partition(": ")[2].rstrip(".")
    more = f" (and {len(verdict.reasons) - 1} more)" if len(verdict.reasons) > 1 else ""
    raise errors.SemverTooLow(
        f"{asked} is too low; it has to be {inferred} or higher: {first}{more}. "
        "Take a higher version, or override with a reason.",
        inferred=str(inferred),
        reasons=list(verdict.reasons),
    )


def _next_free(start: SemVer, by: Bump, taken: Mapping[str, SemVer]) -> SemVer:
    """`start`, or the version after the highest of its line when it is taken."""
    if semver.sort_key(start) not in taken:
        return start
    if by is Bump.NONE:
        by = Bump.PATCH  # whatever is new needs a number of its own
    depth = {Bump.MAJOR: 0, Bump.MINOR: 1, Bump.PATCH: 2}[by]
    line = (version for version in taken.values() if version.triple[:depth] == start.triple[:depth])
    return semver.bump(max(line), by)


def plain_rules(book: RuleBook) -> dict[str, Any]:
    """A rule book as `parse_rules` reads it, whole, so that it can be shown, kept and edited."""
    return {
        "extends": "nothing",
        "metric_tolerance": book.metric_tolerance,
        "rules": codec.builtins(book.rules),
    }
