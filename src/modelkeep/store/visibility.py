"""What a caller may see, as a condition of a query: lists and searches leave out the rest before they cut
pages.

It says the same as `core.access.allowed`, model by model, which a test proves; roles and verbs stay the
core's.
"""

from collections.abc import Iterable
from typing import Any

from msgspec import Struct
from sqlalchemy import and_, bindparam, literal_column, not_, or_, true
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import FromClause

from modelkeep.core.access import ROLE_VERBS, Caller, Effect, Grant, Verb
from modelkeep.core.values import ModelName
from modelkeep.store.schema import models
from modelkeep.store.statements import one_of


class Scopes(Struct, frozen=True, kw_only=True):
    """Models, projects, or everything."""

    everything: bool = False
    projects: frozenset[str] = frozenset()
    models: frozenset[ModelName] = frozenset()

    def __contains__(self, model: object) -> bool:
        return self.everything or (
            isinstance(model, ModelName) and (model in self.models or model.project in self.projects)
        )


class Visible(Struct, frozen=True, kw_only=True):
    """What is allowed, less what is denied, within one project where the caller's token is bound to one."""

    allowed: Scopes = Scopes()
    denied: Scopes = Scopes()
    project: str | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing is hidden, so that no condition is needed."""
        nothing_denied = self.denied == Scopes()
        return self.allowed.everything and nothing_denied and self.project is None

    @property
    def nothing(self) -> bool:
        """Whether all is hidden."""
        return self.allowed == Scopes() or self.denied.everything

    @property
    def shape(self) -> tuple[bool, ...]:
        """What the text of the condition depends on."""
        sides = (self.allowed, self.denied)
        flags = [(side.everything, bool(side.projects), bool(side.models)) for side in sides]
        return (self.project is not None, *flags[0], *flags[1])

    def __contains__(self, model: object) -> bool:
        inside = self.project is None or (isinstance(model, ModelName) and model.project == self.project)
        return inside and model in self.allowed and model not in self.denied


def visible_to(caller: Caller, verb: Verb = Verb.READ) -> Visible:
    """The models on which the caller may do this."""
    if caller.verbs is not None and verb not in caller.verbs:
        return Visible()
    if caller.owner:
        return Visible(allowed=Scopes(everything=True), project=caller.project)
    giving = [grant for grant in caller.grants if verb in ROLE_VERBS[grant.role]]
    return Visible(
        allowed=_scopes(grant for grant in giving if grant.effect is Effect.ALLOW),
        denied=_scopes(grant for grant in giving if grant.effect is Effect.DENY),
        project=caller.project,
    )


def _scopes(grants: Iterable[Grant]) -> Scopes:
    found = list(grants)
    return Scopes(
        everything=any(grant.project is None for grant in found),
        projects=frozenset(g.project for g in found if g.project is not None and g.model is None),
        models=frozenset(
            ModelName(g.project, g.model) for g in found if g.project is not None and g.model is not None
        ),
    )


NOTHING: ColumnElement[bool] = literal_column("0") == literal_column("1")
"""Holds for no row. Unlike `false()` it is not folded, which would drop the other binds of a statement."""


def condition(visible: Visible) -> tuple[ColumnElement[bool], dict[str, Any]]:
    """The condition on the table `models`, and the values that its binds need when the statement is run.

    Its text depends on `Visible.shape` alone, so that statements can be kept.
    """
    if visible.nothing:
        return NOTHING, {}
    allowing, binds = allowed(visible, models)
    parts: list[ColumnElement[bool]] = [true()] if allowing is None else [allowing]
    if visible.denied != Scopes():
        denying, more = _within(visible.denied, "denied", models)
        parts.append(not_(denying))
        binds |= more
    return and_(*parts), binds


def allowed(visible: Visible, table: FromClause) -> tuple[ColumnElement[bool] | None, dict[str, Any]]:
    """What the caller was given, before anything is denied, as a condition that an index of models answers.

    Returns:
        the condition, None when that is everything or nothing, and its binds: some of those of `condition`.
    """
    parts: list[ColumnElement[bool]] = []
    binds: dict[str, Any] = {}
    if visible.nothing:
        return None, binds
    if visible.project is not None:
        binds["own_project"] = visible.project
        parts.append(table.c.project == bindparam("own_project"))
    if not visible.allowed.everything:
        given, more = _within(visible.allowed, "allowed", table)
        parts.append(given)
        binds |= more
    return (and_(*parts) if parts else None), binds


def _within(scopes: Scopes, name: str, table: FromClause) -> tuple[ColumnElement[bool], dict[str, Any]]:
    """Projects and models of which there is at least one."""
    parts: list[ColumnElement[bool]] = []
    binds: dict[str, Any] = {}
    if scopes.projects:
        binds[f"{name}_projects"] = sorted(scopes.projects)
        parts.append(one_of(table.c.project, f"{name}_projects"))
    if scopes.models:
        binds[f"{name}_names"] = sorted({model.name for model in scopes.models})
        binds[f"{name}_models"] = sorted(f"{model.project}/{model.name}" for model in scopes.models)
        whole = one_of(table.c.project + "/" + table.c.name, f"{name}_models")
        parts.append(and_(one_of(table.c.name, f"{name}_names"), whole))  # the name is what an index knows
    return or_(*parts), binds
