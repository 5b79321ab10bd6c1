"""How answers about people and records read: who one is, roles, tokens, events."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelkeep.cli.catalog_views import View
from modelkeep.cli.show import Screen, Text, moment

if TYPE_CHECKING:
    from modelkeep.core.access import Grant, Principal, TokenInfo
    from modelkeep.core.answers import EventPage, NewToken, Verification, WhoAmI
    from modelkeep.core.events import Event


def whoami(found: "WhoAmI", url: str) -> View:
    """Who the server takes one for."""

    def draw(screen: Screen) -> None:
        sure = "asserted, nobody checked" if found.actor.asserted else "by token"
        rights = "everything: you own this installation" if found.owner else None
        if not found.owner:
            rights = "; ".join(_grant(g) for g in found.grants) or "nothing yet; ask an admin for a role"
        screen.facts(
            (
                ("you are", Text(found.actor.name, "strong")),
                ("known", sure),
                ("at", url),
                ("you may", rights),
                ("token narrowed to", ", ".join(found.verbs) if found.verbs is not None else None),
                ("in project", found.project),
            )
        )

    return draw


def _where(grant: "Grant") -> str:
    if grant.project is None:
        return "everywhere"
    return f"{grant.project}/{grant.model or ''}"


def _grant(grant: "Grant") -> str:
    return f"{'not ' if grant.effect.value == 'deny' else ''}{grant.role.value} on {_where(grant)}".replace(
        "on everywhere", "everywhere"
    )


def principal(made: "Principal") -> View:
    """Somebody who was added."""

    def draw(screen: Screen) -> None:
        screen.line("Added", Text(made.name, "strong"), f"({made.kind.value}).")
        screen.line(Text(f"  next: modelkeep grant add {made.name} contributor --on PROJECT/", "dim"))
        screen.line(Text(f"  and:  modelkeep token create --for {made.name}", "dim"))

    return draw


def principals(items: Sequence["Principal"]) -> View:
    """People and programs."""

    def draw(screen: Screen) -> None:
        screen.table(
            ("name", "kind", "state", "added", "by"),
            (
                (
                    p.name,
                    p.kind.value,
                    Text("shut out", "bad") if p.disabled else "",
                    moment(p.created_at),
                    p.created_by,
                )
                for p in items
            ),
        )

    return draw


def grants(items: Sequence["Grant"]) -> View:
    """Who holds what where."""

    def draw(screen: Screen) -> None:
        screen.table(
            ("id", "name", "role", "on", "effect", "given", "by"),
            (
                (
                    g.id,
                    g.principal,
                    g.role.value,
                    _where(g),
                    Text("denied", "bad") if g.effect.value == "deny" else "",
                    moment(g.created_at),
                    g.created_by,
                )
                for g in items
            ),
        )

    return draw


def tokens(items: Sequence["TokenInfo"]) -> View:
    """Tokens without their secrets."""

    def draw(screen: Screen) -> None:
        screen.table(
            ("id", "of", "label", "narrowed to", "expires", "last used", "state"),
            (
                (
                    t.id,
                    t.principal,
                    t.label,
                    ", ".join([*(t.verbs or ()), *([f"project {t.project}"] if t.project else [])]),
                    moment(t.expires_at),
                    t.last_used_on,
                    Text("revoked", "bad") if t.revoked_at else "",
                )
                for t in items
            ),
        )

    return draw


def new_token(made: "NewToken") -> View:
    """The secret alone, so that it can be captured."""
    return lambda screen: screen.line(made.secret)


def events(page: "EventPage") -> View:
    """Events, one a line."""

    def draw(screen: Screen) -> None:
        screen.table(
            ("event", "at", "kind", "subject", "by", "reason"),
            (
                (
                    e.event.sequence,
                    moment(e.event.at),
                    e.event.kind.value,
                    e.event.subject,
                    _actor(e.event),
                    e.event.reason,
                )
                for e in page.items
            ),
            right=(0,),
        )

    return draw


def _actor(event: "Event") -> str:
    return event.actor.name + ("?" if event.actor.asserted else "")


def verification(found: "Verification") -> View:
    """What the walk over the chain has shown."""

    def draw(screen: Screen) -> None:
        report = found.report
        span = (
            f" from {moment(report.first_at)} to {moment(report.last_at)}"
            if report.first_at and report.last_at
            else ""
        )
        screen.line(Text("intact:", "good"), f"{report.events:,} events{span}, every link recomputed")
        screen.line(Text(f"head {found.head}", "dim"))

    return draw
