"""Policies as people set and read them: one document for a model, a project or the whole installation.

The nearest one holds: a model's own, else its project's, else the installation's, else the one Modelkeep
begins with. Each change is a new version, kept whole in the audit log. What a policy's gates answer is
`core.policy`'s business.
"""

from collections.abc import Callable
from typing import Any

from modelkeep.core import errors, policy, values
from modelkeep.core.access import Verb
from modelkeep.core.answers import PolicyRecord
from modelkeep.core.events import EventKind
from modelkeep.core.policy import Policy
from modelkeep.core.values import ModelName
from modelkeep.service.act import Act, Context, Desk
from modelkeep.store import catalog as catalog_store
from modelkeep.store import policies as store
from modelkeep.store.transaction import Transaction

Scope = ModelName | str | None
"""A model, a project's name, or None for the installation."""


def nearest(tx: Transaction, scope: Scope) -> store.StoredPolicy | None:
    """The policy set nearest to a scope; None where nobody has set one."""
    return ask_nearest(tx, scope)()


def ask_nearest(tx: Transaction, scope: Scope) -> Callable[[], store.StoredPolicy | None]:
    """`nearest`, asked ahead."""
    keys = [store.scope_key(place) for place in _places(scope)]
    asked = store.ask_policies(tx, keys)

    def answer() -> store.StoredPolicy | None:
        found = asked()
        return next((found[key] for key in keys if key in found), None)

    return answer


def _places(scope: Scope) -> list[Scope]:
    """A scope and those around it, the nearest first."""
    places: list[Scope] = [scope]
    if isinstance(scope, ModelName):
        places.append(scope.project)
    if scope is not None:
        places.append(None)
    return places


class Policies:
    """Finds the policy that holds, and sets new ones."""

    def __init__(self, default: Policy) -> None:
        """
        Args:
            default: what holds until somebody sets a policy.
        """
        self._default = default
        self._default_digest = policy.policy_digest(default)

    def effective(self, tx: Transaction, scope: Scope) -> PolicyRecord:
        """The policy that holds for a scope, from the nearest place where one was set."""
        stored = nearest(tx, scope)
        if stored is None:
            return self._built_in(scope)
        place = next(place for place in _places(scope) if store.scope_key(place) == stored.scope)
        return _record(scope, place, stored)

    def _built_in(self, scope: Scope) -> PolicyRecord:
        return PolicyRecord(
            scope=scope_text(scope),
            source="built in",
            version=0,
            digest=self._default_digest,
            policy=self._default,
        )

    def outer(self, tx: Transaction, scope: Scope) -> PolicyRecord:
        """The policy that would hold for a scope had it none of its own."""
        match scope:
            case None:
                return self._built_in(None)
            case str():
                return self.effective(tx, None)
            case _:
                return self.effective(tx, scope.project)

    def get(self, act: Act, scope: str | None) -> PolicyRecord:
        """The policy that holds for a model, a project (`project/`), or, with None, the installation.

        Raises:
            ModelNotFound: there is no such model, or it is not to be seen.
            NotAllowed: the caller sees nothing of that project.
        """
        place = read_scope(scope)
        match place:
            case ModelName():
                act.readable(place)
                catalog_store.get_model(act.tx, place)
            case str():
                act.authorise(Verb.READ, place)
            case _:
                pass  # what holds for everybody may be known to everybody
        return self.effective(act.tx, place)

    def read(self, desk: Desk, context: Context, scope: str | None, document: bytes) -> Policy:
        """Read a document for `set`, outside of any transaction: YAML takes its time. No act.

        Raises:
            InvalidPolicy: names the place in the document. ModelNotFound, NotAllowed: as `set`.
        """
        desk.read(context, _may_set, scope)
        return policy.read_policy(document)

    def set(self, act: Act, scope: str | None, document: bytes | Policy) -> PolicyRecord:
        """Set the policy of a model, a project (`project/`), or, with None, the installation. The one that
        holds already is left as it is.

        Args:
            document: YAML or JSON, or what `read` made of it.

        Raises:
            InvalidPolicy: names the place in the document; for a model also a stage that it does not have.
            ModelNotFound, NotAllowed: the scope is not the caller's to configure, or the policy asks for less
                than that of the next scope up and the caller does not administer this one.
        """
        place = _may_set(act, scope)
        wanted = document if isinstance(document, Policy) else policy.read_policy(document)
        stages = _check_stages(act, place, wanted) if isinstance(place, ModelName) else None
        key = store.scope_key(place)
        former = store.latest_policies(act.tx, [key]).get(key)
        digest = policy.policy_digest(wanted)
        if former is not None and former.digest == digest:
            return _record(place, place, former)
        outer = self.outer(act.tx, place)
        refuse_weaker(
            act,
            place,
            f"This policy asks for less than {_whose(outer)}",
            policy.weaker(wanted, outer.policy, stages),
        )
        stored = store.StoredPolicy(
            scope=key,
            version=former.version + 1 if former is not None else 1,
            digest=digest,
            policy=wanted,
            created_at=act.now,
            created_by=act.by,
        )
        store.add_policy(act.tx, stored)
        change: dict[str, Any] = {"from": former.digest if former is not None else None, "to": digest}
        act.record(
            EventKind.POLICY_CHANGED,
            f"policy/{scope_text(place)}",
            model=place if isinstance(place, ModelName) else None,
            scope=scope_text(place),
            version=stored.version,
            digest=digest,
            document=wanted,
            **change,
        )
        return _record(place, place, stored)


def _may_set(act: Act, scope: str | None) -> Scope:
    """The scope, where the caller may set its policy. Raises ModelNotFound, NotAllowed, InvalidName."""
    place = read_scope(scope)
    if isinstance(place, ModelName):
        act.readable(place)
    act.authorise(Verb.CONFIGURE, place)
    return place


def refuse_weaker(act: Act, scope: Scope, what: str, reasons: tuple[str, ...]) -> None:
    """Go on only when nothing is weakened, or the caller administers the scope: who may configure it alone
    could otherwise do alone what takes several.

    Raises:
        NotAllowed: names what is weaker.
    """
    if reasons and not act.may(Verb.ADMINISTER, scope):
        where = scope_text(scope) if scope is not None else "the installation"
        raise errors.NotAllowed(
            f"{what}: {'; '.join(reasons)}. Keep at least that, or ask an admin of {where} to set it.",
            verb=Verb.ADMINISTER,
            scope=scope_text(scope),
            weaker=list(reasons),
        )


def _whose(record: PolicyRecord) -> str:
    match record.source:
        case "built in":
            return "the built-in one"
        case source:
            return f"that of {'the ' if source == 'installation' else ''}{source}"


def read_scope(text: str | None) -> Scope:
    """Read a scope as people write it. Raises InvalidName."""
    if text is None:
        return None
    if text.endswith("/"):
        return values.check_name(text.removesuffix("/"), "project")
    return values.parse_model_name(text)


def scope_text(scope: Scope) -> str:
    """A scope as people read it."""
    match scope:
        case None:
            return "installation"
        case str():
            return f"{scope}/"
        case _:
            return str(scope)


def _record(scope: Scope, source: Scope, stored: store.StoredPolicy) -> PolicyRecord:
    return PolicyRecord(
        scope=scope_text(scope),
        source=scope_text(source),
        version=stored.version,
        digest=stored.digest,
        policy=stored.policy,
        set_at=stored.created_at,
        set_by=stored.created_by,
    )


def _check_stages(act: Act, model: ModelName, wanted: Policy) -> list[str]:
    """The model's stages. A misspelt one would ask for nothing where something was meant."""
    graph = catalog_store.get_model(act.tx, model).stages
    known = [spec.name for spec in graph.stages]
    for stage in wanted.stages:
        if stage not in known:
            raise errors.InvalidPolicy(
                f"{model} has no stage {stage!r}; its stages are {', '.join(known)}.", stage=stage
            )
    return known
