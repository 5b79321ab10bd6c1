"""How answers about endpoints read: a list, one with its plan, and what requests missed of its signature.
What moves on an endpoint is drawn elsewhere.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelkeep.cli.catalog_views import View
from modelkeep.cli.plans import summary
from modelkeep.cli.show import Screen, Text, duration, moment, share

if TYPE_CHECKING:
    from modelkeep.core.answers import GatewayStatus, RolloutStatus
    from modelkeep.core.rollout import Endpoint


def endpoints(items: Sequence["Endpoint"]) -> View:
    """A list of endpoints."""

    def draw(screen: Screen) -> None:
        screen.table(
            ("endpoint", "follows", "serves", "rollout", "plan"),
            (
                (
                    e.name,
                    e.follows,
                    f"#{e.stable}" if e.stable is not None else Text("nothing yet", "dim"),
                    e.rollout,
                    summary(e.plan),
                )
                for e in items
            ),
        )

    return draw


def endpoint(found: "Endpoint") -> View:
    """One endpoint and its plan."""

    def draw(screen: Screen) -> None:
        plan = found.plan
        screen.facts(
            (
                ("endpoint", Text(found.name, "strong")),
                ("follows", found.follows),
                ("serves", f"#{found.stable}" if found.stable is not None else "nothing yet"),
                ("before", f"#{found.previous}" if found.previous is not None else None),
                ("rollout", found.rollout),
                ("disagrees", Text(disagreement(found), "bad") if found.disagreement else None),
                ("plan", summary(plan)),
                ("risk", f"a version no worse is taken back with a chance of at most {plan.alpha:.2%}"),
                ("key", _key(found)),
                ("slow", f"above {found.slow_ms:g} ms"),
                ("schema", found.schema.value if found.schema.value != "strict" else None),
                ("lease", duration(found.lease_s) if found.lease_s else None),
                ("workers", str(found.workers) if found.workers > 1 else None),
                ("loaded", "on demand" if found.load == "on_demand" else None),
                ("logged", _logged(found) if found.log_ppm else None),
                ("created", f"{moment(found.created_at)} by {found.created_by}"),
            )
        )

    return draw


def disagreement(found: "Endpoint") -> str:
    """What the reconciler says of an endpoint that does not serve what it follows."""
    note = found.disagreement
    if note is None:
        return ""
    return f"{note.why} (since {moment(note.since)}; {_MENDS.get(note.mend, note.mend)})"


_MENDS = {
    "start": "a rollout brings it there",
    "point": "it names what is served again",
    "let_go": "that rollout is forgotten",
    "republish": "the route was said again",
    "outrank": "the route was made newer",
    "take_over": "what is served is named",
    "take_back": "the candidate is taken back",
    "call_off": "that rollout has ended; begin it anew",
    "wait": "the end of the rollout mends it",
    "nothing": "promote or set what is meant",
}


def endpoint_with_misses(found: "RolloutStatus") -> View:
    """One endpoint, and what requests missed of the signature since its gateways started its versions."""

    def draw(screen: Screen) -> None:
        endpoint(found.endpoint)(screen)
        missed = misses(found.gateways)
        if missed:
            screen.blank()
            screen.table(("field", "refused", "made to fit"), missed, right=(1, 2))

    return draw


def misses(gateways: Sequence["GatewayStatus"]) -> list[tuple[str, int, int]]:
    """Field, requests refused for it and requests made to fit, of all gateways; the most first."""
    rows: dict[str, tuple[int, int]] = {}
    for gateway in gateways:
        told = gateway.misses
        for name in told.refused | told.fitted:
            refused, fitted = rows.get(name, (0, 0))
            rows[name] = (refused + told.refused.get(name, 0), fitted + told.fitted.get(name, 0))
    return [(name, *counts) for name, counts in sorted(rows.items(), key=lambda row: (-sum(row[1]), row[0]))]


def _logged(found: "Endpoint") -> str:
    """What share is logged, and what becomes of its fields."""
    privacy = found.privacy
    treated = [f"{name} {how}" for name, how in sorted(privacy.fields.items())]
    if privacy.others != "keep":
        treated.append(f"others {privacy.others}")
    return ", ".join([share(found.log_ppm), *treated])


def _key(found: "Endpoint") -> str:
    """Where a caller's key is looked for, in order."""
    cookie = f"the cookie {found.key_cookie}" if found.key_cookie else None
    field = f"{found.key_field} of the body" if found.key_field else None
    named = [place for place in (found.key_header, cookie, field) if place]
    return ", else ".join(named) or "the connection's address"
