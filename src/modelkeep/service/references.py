"""From a reference to the version that it names, now or at a moment of the past.

What the caller may not read does not exist for them. When nothing is found, the error says what there is
instead and which name was probably meant. References are parsed in `core.values`; nothing is changed here.
"""

from difflib import get_close_matches
from typing import assert_never

from msgspec.structs import replace

from modelkeep.core import codec, errors, semver, values
from modelkeep.core.catalog import VIRTUAL_ALIASES, ModelVersion
from modelkeep.core.events import EventKind
from modelkeep.core.values import Aliased, Content, Exact, ModelName, Numbered, Ref, Staged, Within
from modelkeep.service.act import Act, no_model
from modelkeep.store import catalog as store
from modelkeep.store import models, renames
from modelkeep.store.catalog import Moment
from modelkeep.store.models import ModelRow

SHOWN = 8
"""Versions or aliases that an error lists."""
LOOKED_AT = 500
"""Versions among which a near one is looked for when a name is not found."""


def resolve_in_model(act: Act, ref: Ref) -> tuple[ModelRow, ModelVersion]:
    """`resolve`, and the row of the version's model with it. Raises as that."""
    act.readable(ref.model)
    if isinstance(ref.selector, Numbered) and ref.at is None:
        found = store.find_in_model(act.tx, ref.model, ref.selector.number)
        if found is not None:
            return found
    version = resolve(act, ref)
    return row_of(act, version.model), version


def resolve(act: Act, ref: Ref) -> ModelVersion:
    """The version that a reference names.

    With a time, it is the version named then, deleted ones included, with the stage and the aliases it had;
    its description and tags are today's. A range, and `@latest`, pass over what is taken back or yanked.

    Raises:
        ModelNotFound: there is no such model, or the caller may not see it.
        VersionNotFound, AliasNotFound, StageEmpty: nothing bears this name (at that time).
        InvalidReference: it names a model and no version.
    """
    act.readable(ref.model)
    moment = Moment(act.tx.events.as_of(ref.at)) if ref.at is not None else None
    version = _find(act, ref, moment)
    if version is None:
        raise _missing(act, ref, moment)
    if moment is None:
        return version
    then = store.aliases_then(act.tx, ref.model, moment)
    return replace(version, aliases=tuple(sorted(a for a, n in then.items() if n == version.number)))


def present(ref: Ref) -> Ref:
    """A reference by which something is to be changed.

    Raises:
        InvalidReference: it has a time: the past cannot be changed.
    """
    if ref.at is not None:
        raise errors.InvalidReference(f"{ref} names the past, which cannot be changed; leave '?at=' out.")
    return ref


def _find(act: Act, ref: Ref, moment: Moment | None) -> ModelVersion | None:
    tx, model = act.tx, ref.model

    def find(by: store.Found, **which: str | int) -> ModelVersion | None:
        if moment is None:
            return store.find(tx, by, model, **which)
        return store.find_then(tx, by, model, moment, **which)

    match ref.selector:
        case None:
            raise errors.InvalidReference(
                f"{model} names a model; add a version, such as {model}:1.0.0 or {model}#production."
            )
        case Exact(version=text):
            wanted = semver.parse(text)
            found = find(store.BY_SEMVER, key=semver.sort_key(wanted))
            return found if found is not None and (not wanted.build or found.semver == text) else None
        case Within(range=text):
            return store.find_in_range(tx, model, semver.parse_range(text), moment)
        case Numbered(number=number):
            return find(store.BY_NUMBER, number=number)
        case Aliased(alias="latest"):
            return store.find_latest(tx, model, moment)
        case Aliased(alias="newest"):
            return find(store.NEWEST)
        case Aliased(alias=alias):
            if moment is None:
                return store.find_aliased(tx, model, alias)
            pointed = _pointed_then(act, model, alias, moment)
            return find(store.BY_NUMBER, number=pointed) if pointed is not None else None
        case Staged(stage=stage):
            return store.find_staged(tx, model, stage, moment)
        case Content(digest=digest):
            return find(store.BY_DIGEST, digest=digest)
        case _:
            assert_never(ref.selector)


def row_of(act: Act, model: ModelName) -> ModelRow:
    """The row of a model that the caller may read.

    Raises:
        ModelNotFound: it is not there, or not to be seen; or it is called something else now.
    """
    act.readable(model)
    row = models.find_model(act.tx, model)
    if row is None:
        raise no_model(model)
    return row


def alias_subject(model: ModelName, alias: str) -> str:
    """Under which subject the events of an alias stand."""
    return f"{model}@{alias}"


def _pointed_then(act: Act, model: ModelName, alias: str, moment: Moment) -> int | None:
    """The number an alias pointed to: its last event up to then says it."""
    for span in renames.spans(act.tx, str(model)):
        until = min(span.until, moment.sequence)
        last = act.tx.events.before(until + 1, limit=1, subject=f"{span.name}@{alias}")
        if last and last[0].event.sequence > span.after:
            event = last[0].event
            return int(event.body["to"]) if event.kind is EventKind.ALIAS_SET else None
    return None


# ---------------------------------------------------------------------------------------------- what there is


def _missing(act: Act, ref: Ref, moment: Moment | None) -> errors.NotFound:
    """The error about a reference that names nothing."""
    row = models.find_model(act.tx, ref.model, deleted=moment is not None)
    if row is None:
        return no_model(ref.model)
    then = f" at {codec.format_time(ref.at)}" if ref.at is not None else ""
    known = store.list_semvers(act.tx, ref.model, limit=LOOKED_AT, moment=moment)
    if not known:
        advice = "" if then else f"; run 'modelkeep register FILE --name {values.in_shell(ref.model)}'"
        return errors.VersionNotFound(f"{ref.model} has no version{then}{advice}.", model=str(ref.model))
    match ref.selector:
        case Aliased(alias=alias) if alias not in VIRTUAL_ALIASES:
            return _no_alias(act, ref, alias, moment, then)
        case Staged(stage=stage):
            return _empty(act, row, stage, moment, then)
        case Aliased(alias="latest") | Within():
            what = (
                "a released version"
                if isinstance(ref.selector, Aliased)
                else f"a version in {ref.selector.range}"
            )
            missing, near = f"{ref.model} does not have {what}{then} that is not withdrawn", None
        case Exact(version=text):
            missing, near = f"{ref.model} has no version {text}{then}", text
        case Numbered(number=number):
            missing, near = f"{ref.model} has no version number {number}{then}", None
        case _:
            missing, near = f"No version of {ref.model} is {str(ref)[len(str(ref.model)) :]}", None
    listed = ", ".join(known[:SHOWN]) + (" and more" if len(known) > SHOWN else "")
    return errors.VersionNotFound(
        f"{missing}; it has {listed}.{_meant(near, known)}", model=str(ref.model), versions=known[:SHOWN]
    )


def _no_alias(act: Act, ref: Ref, alias: str, moment: Moment | None, then: str) -> errors.AliasNotFound:
    if moment is None:
        row = models.get_row(act.tx, ref.model)
        known = [spec.alias for spec in models.list_aliases(act.tx, row.id)]
    else:
        known = sorted(store.aliases_then(act.tx, ref.model, moment))
    always = "latest and newest always work"
    listed = f"it has {', '.join(known[:SHOWN])}, and {always}" if known else always
    return errors.AliasNotFound(
        f"{ref.model} has no alias {alias}{then}; {listed}.{_meant(alias, known)}",
        model=str(ref.model),
        aliases=known[:SHOWN],
    )


def _empty(act: Act, row: ModelRow, stage: str, moment: Moment | None, then: str) -> errors.StageEmpty:
    names = [spec.name for spec in row.stages.stages]
    model = row.full_name
    if stage not in names:
        listed = ", ".join(names)
        return errors.StageEmpty(
            f"{model} has no stage {values.printable(stage)}; its stages are {listed}.{_meant(stage, names)}",
            model=str(model),
            stage=stage,
        )
    taken = [] if moment is not None else models.occupants(act.tx, row.id)
    listed = "; " + ", ".join(f"{semver_text} is in {name}" for name, semver_text in taken) if taken else ""
    return errors.StageEmpty(
        f"Nothing of {model} is in {stage}{then}{listed}.", model=str(model), stage=stage
    )


def _meant(name: str | None, known: list[str]) -> str:
    near = get_close_matches(name, known, n=1) if name is not None else []
    return f" Did you mean {near[0]}?" if near else ""
