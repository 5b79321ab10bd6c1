"""How answers of promotion read: gates with their verdicts, requests, moves, and what was when."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelkeep.cli.catalog_views import View, stage
from modelkeep.cli.plans import summary
from modelkeep.cli.show import Screen, Text, duration, moment, short

if TYPE_CHECKING:
    from modelkeep.core.answers import GateReport, History, PolicyRecord, Promotion, Rollback, WhatWas
    from modelkeep.core.catalog import ModelVersion, RegisteredModel
    from modelkeep.core.policy import GateResult, Policy
    from modelkeep.core.promotion import Approval, PromotionRequest

_OUTCOMES = {"passed": "good", "failed": "bad", "inconclusive": "warn", "waived": "warn"}
_RULINGS = {"granted": "good", "denied": "bad", "awaiting_approval": "warn"}


def _outcome(result: "GateResult") -> Text:
    mild = result.mode.value == "warn" and result.outcome.value != "passed"
    return Text(
        result.outcome.value + (" (warning)" if mild else ""),
        "warn" if mild else _OUTCOMES[result.outcome.value],
    )


def _gates(screen: Screen, results: Sequence["GateResult"], explain: bool = False) -> None:
    if not explain:
        screen.table(("gate", "outcome", "why"), ((g.gate, _outcome(g), g.why) for g in results))
        return
    for result in results:
        screen.line(Text(result.gate, "strong"), _outcome(result))
        screen.facts(
            (
                ("  why", result.why),
                ("  to pass", result.fix if result.outcome.value not in ("passed", "waived") else None),
                ("  waived by", result.waived_by),
                ("  evidence", Text(result.evidence, "dim")),
            )
        )


def gate(report: "GateReport", explain: bool) -> View:
    """Whether a version may enter a stage."""

    def draw(screen: Screen) -> None:
        word = report.ruling.value.replace("_", " ")
        screen.line(
            Text(report.version, "strong"), f"-> {report.stage}:", Text(word, _RULINGS[report.ruling.value])
        )
        if report.obstacle:
            screen.line(Text(report.obstacle, "bad"))
        if report.gates:
            _gates(screen, report.gates, explain)
        needed = report.approvals_missing + len(report.approved_by)
        if needed:
            who = ", ".join(report.approved_by) or "nobody yet"
            roles = " or ".join(report.approvals_roles)
            screen.line(
                f"approvals: {len(report.approved_by)} of {needed} ({who}); a person with the role {roles}"
            )
        if explain:
            screen.line(
                Text(f"policy {report.policy} version {report.policy_version} {report.policy_digest}", "dim")
            )
        if report.plan is not None:
            said = f"{summary(report.plan)} (by the {report.plan_from})"
            screen.line(f"traffic of {report.endpoint}: {said}")
        if report.next:
            screen.line(Text(f"next: {report.next}", "dim"))

    return draw


def promoted(done: "Promotion") -> View:
    """What a promotion came to."""

    def draw(screen: Screen) -> None:
        name = Text(done.version.reference, "strong")
        if done.kind.value == "rollout":
            screen.line(f"The rollout {done.rollout} of", name, f"to {done.stage} has begun.")
            if done.plan is not None:
                because = f" ({done.note})" if done.note is not None else ""
                screen.line(f"  {summary(done.plan)}{because}")
            screen.line(Text(f"  next: modelkeep rollout status {done.endpoint} --watch", "dim"))
        else:
            displaced = f"; #{done.displaced} left it" if done.displaced is not None else ""
            screen.line(name, f"is in {done.stage} now{displaced}.")
        warned = [g for g in done.gates if g.outcome.value != "passed"]
        if warned:
            _gates(screen, warned)

    return draw


def rolled_back(done: "Rollback") -> View:
    """What a rollback came to."""

    def draw(screen: Screen) -> None:
        taken = done.from_semver or (f"#{done.from_number}" if done.from_number is not None else "nothing")
        if done.kind.value == "rollout":
            screen.line(f"The rollout of {taken} is taken back; its traffic returns to", _now(done))
            screen.line(Text(f"  next: modelkeep rollout status {done.endpoint}", "dim"))
        else:
            where = f"in {done.stage}" if done.alias is None else f"@{done.alias}"
            screen.line(_now(done), f"is {where} again; {taken} was taken back.")
        if done.tombstoned and done.version is not None:
            clear = f"modelkeep clear {done.version.model}:{done.from_semver} -m WHY"
            screen.line(Text(f"  {taken} cannot return before somebody clears it: {clear}", "dim"))

    return draw


def _now(done: "Rollback") -> Text:
    return Text(done.version.reference if done.version is not None else "nothing", "strong")


def would_go_back(seen: "Rollback") -> View:
    """Where a rollback would go."""
    where = f"@{seen.alias}" if seen.alias is not None else seen.stage or ""
    if seen.kind.value == "rollout":
        taken = seen.from_semver or "the candidate"
        return lambda screen: screen.line(f"The rollout of {taken} would end; {where} stays at", _now(seen))
    return lambda screen: screen.line(f"{where} would go back to", _now(seen))


def cleared(version: "ModelVersion") -> View:
    """A version whose tombstone was lifted."""
    return lambda screen: screen.line(Text(version.reference, "strong"), "may be promoted again.")


# -----------------------------------------------------------------------------------------------------------
# requests

_STATES = {"open": "warn", "promoted": "good", "rejected": "bad"}


def requests(items: Sequence["PromotionRequest"]) -> View:
    """A list of requests."""

    def draw(screen: Screen) -> None:
        screen.table(
            ("id", "version", "to", "state", "approvals", "by", "asked", "reason"),
            (
                (
                    r.id,
                    f"{r.model}:{r.semver}",
                    r.to,
                    Text(r.state.value, _STATES.get(r.state.value, "dim")),
                    f"{_agreed(r)} of {r.approvals_needed}" if r.approvals_needed else "",
                    r.requested_by.name,
                    moment(r.created_at),
                    r.reason,
                )
                for r in items
            ),
        )

    return draw


def _agreed(request: "PromotionRequest") -> int:
    last: dict[str, Approval] = {}
    for review in request.reviews:
        if review.vote.value != "comment":
            last[review.by.name] = review
    return sum(1 for r in last.values() if r.vote.value == "approve" and r.dismissed is None)


def request(found: "PromotionRequest") -> View:
    """One request, whole."""

    def draw(screen: Screen) -> None:
        needed = f"{_agreed(found)} of {found.approvals_needed}" if found.approvals_needed else "none needed"
        ended = f"{moment(found.closed_at)} by {found.closed_by}" if found.closed_at else None
        is_open = found.state.value == "open"
        screen.facts(
            (
                ("request", Text(found.id, "strong")),
                ("version", f"{found.model}:{found.semver} -> {found.to}"),
                ("state", Text(found.state.value, _STATES.get(found.state.value, "dim"))),
                ("reason", found.reason),
                ("ticket", found.ticket),
                ("asked", f"{moment(found.created_at)} by {found.requested_by.name}"),
                ("expires", moment(found.expires_at) if is_open else None),
                ("closed", ended),
                ("because", found.closed_why),
                ("approvals", needed),
                ("digest", found.digest),
            )
        )
        if found.gates:
            screen.blank()
            _gates(screen, found.gates)
        if found.reviews:
            screen.blank()
            screen.table(
                ("by", "said", "at", "comment", "no longer counts"),
                ((r.by.name, r.vote.value, moment(r.at), r.comment, r.dismissed) for r in found.reviews),
            )
        if found.checks:
            screen.blank()
            screen.table(("item", "evidence", "by"), ((c.item, c.evidence, c.by) for c in found.checks))
        if is_open:
            done = found.approvals_needed and _agreed(found) >= found.approvals_needed
            then = (
                f"modelkeep promote {found.model}:{found.semver} --to {found.to} -m WHY"
                if done or not found.approvals_needed
                else f"somebody else runs 'modelkeep review {found.id} --approve'"
            )
            screen.line(Text(f"next: {then}", "dim"))

    return draw


# ------------------------------------------------------------------------------------------------------- time
# machine


def history(found: "History") -> View:
    """Stays in stages, the latest first."""

    def draw(screen: Screen) -> None:
        screen.table(
            ("version", "stage", "from", "to", "lasted", "how", "by", "approved by", "reason"),
            (
                (
                    f"{found.model}:{i.semver}",
                    stage(i.stage),
                    moment(i.from_at),
                    moment(i.to_at) if i.to_at else Text("now", "good"),
                    duration((i.to_at - i.from_at).total_seconds()) if i.to_at else "",
                    f"{i.cause.value} {i.rollout}" if i.rollout else i.cause.value,
                    i.actor,
                    ", ".join(i.approved_by),
                    i.reason,
                )
                for i in found.intervals
            ),
            right=(4,),
        )
        if found.attempts:
            screen.blank()
            screen.line("Rollouts that ended without their version there:")
            screen.table(
                ("version", "stage", "from", "to", "lasted", "outcome", "by", "why"),
                (
                    (
                        f"{found.model}:{a.semver}",
                        stage(a.stage) if a.stage is not None else f"@{a.alias}",
                        moment(a.started_at),
                        moment(a.finished_at),
                        duration((a.finished_at - a.started_at).total_seconds()),
                        Text(a.state.value.replace("_", " "), "bad"),
                        a.started_by.name,
                        a.outcome,
                    )
                    for a in found.attempts
                ),
                right=(4,),
            )

    return draw


def _brought_by(found: "WhatWas") -> str:
    """Who asked for it, and by what it came."""
    return f"{found.interval.actor} ({found.interval.cause.value})"


def _carried_out(found: "WhatWas") -> str | None:
    """Where a rollout did it: which, and who took its last step."""
    if found.interval.rollout is None:
        return None
    actor = found.event.actor
    how = "by its own verdict" if actor.kind.value == "system" else f"on the word of {actor.name}"
    return f"by the rollout {found.interval.rollout}, {how}"


def whatwas(found: "WhatWas") -> View:
    """What was in a stage, and why."""

    def draw(screen: Screen) -> None:
        stay = found.interval
        screen.line(Text(found.version.reference, "strong"), f"was in {found.stage} at {moment(found.at)}.")
        screen.facts(
            (
                ("digest", found.version.digest),
                ("since", moment(stay.from_at)),
                ("until", moment(stay.to_at) if stay.to_at else "it still is"),
                ("brought by", _brought_by(found)),
                ("reason", stay.reason),
                ("approved by", ", ".join(found.approved_by)),
                ("request", stay.request),
                ("carried out", _carried_out(found)),
                ("event", f"{found.event.sequence} {found.event.kind.value}"),
                ("as of event", str(found.sequence)),
            )
        )
        if found.gates:
            screen.blank()
            _gates(screen, found.gates)

    return draw


# -----------------------------------------------------------------------------------------------------
# policy, stages


def policy(found: "PolicyRecord") -> View:
    """A policy and where it comes from; on standard output it is the document, to be edited and set again."""

    def draw(screen: Screen) -> None:
        origin = f"set by {found.set_by}" if found.set_by else "the one Modelkeep begins with"
        screen.line(Text(f"# {found.source or 'installation'}, version {found.version}, {origin}", "dim"))
        screen.line(Text(f"# {short(found.digest)}", "dim"))
        moves = [(name, rules.rollout) for name, rules in found.policy.stages.items()]
        moves += [(f"@{alias}", own.rollout) for alias, own in found.policy.aliases.items()]
        for name, plan in (*moves, ("everything else", found.policy.rollout)):
            if plan is not None:
                screen.line(Text(f"# traffic to {name}: {summary(plan)}", "dim"))
        policy_document(found.policy)(screen)

    return draw


def policy_document(found: "Policy") -> View:
    """A policy as the YAML that it is set by."""

    def draw(screen: Screen) -> None:
        from modelkeep.core import codec

        screen.raw(codec.render_yaml(found))

    return draw


def stages(found: "RegisteredModel") -> View:
    """A model's stages, who is in them, and where one can go from each."""

    def draw(screen: Screen) -> None:
        graph = found.stages
        screen.table(
            ("stage", "holds", "kind", "from there to"),
            (
                (
                    s.name,
                    f"#{found.occupants[s.name]}" if s.name in found.occupants else "",
                    ", ".join(w for w, on in (("exclusive", s.exclusive), ("protected", s.protected)) if on),
                    ", ".join(b for a, b in graph.transitions if a == s.name),
                )
                for s in graph.stages
            ),
        )
        screen.line(Text(f"who is displaced goes to {graph.displaced_to}", "dim"))

    return draw
