"""What MLflow's client reads of the registry: a version or a model by what a client has in hand, and the
latest version of each stage.

Reading goes in two steps, as in `store.standing`: first the marks of what the caller may see, then the lines
of those that are not known yet. Words and their meaning are `mlflow_registry`'s, searches are
`registry_search`'s, and what all of it looks like on the wire is the door's part.
"""

from collections.abc import Sequence

from modelkeep.core import errors, semver, values
from modelkeep.core.values import Aliased, Exact, ModelName, Numbered, Ref, Within
from modelkeep.service import mlflow_registry as words
from modelkeep.service import references
from modelkeep.service.act import Act, no_model
from modelkeep.store import standing
from modelkeep.store.standing import Mark, ModelLine, VersionLine


def version_lines(act: Act, ids: Sequence[str]) -> dict[str, VersionLine]:
    """The lines of versions, by ids that the caller was given, so nobody is asked again."""
    return standing.version_lines(act.tx, ids)


def model_lines(act: Act, ids: Sequence[str]) -> dict[str, ModelLine]:
    """The lines of models, by ids that the caller was given, so nobody is asked again."""
    return standing.model_lines(act.tx, ids)


def mark_of_model(act: Act, name: ModelName) -> Mark:
    """One model.

    Raises:
        ModelNotFound: it is not there, or not to be seen; or it is called something else now.
    """
    act.readable(name)
    mark = standing.mark_of_model(act.tx, name)
    if mark is None:
        raise no_model(name)
    return mark


def mark_of_version(act: Act, ref: Ref) -> Mark:
    """One version.

    Raises:
        NotFound (its leaves): the reference names none, or none for this caller.
    """
    act.readable(ref.model)
    # What names it otherwise has rules of its own; and who is not found is told what there is instead.
    return _directly(act, ref) or Mark(references.resolve(act, ref).id)


def _directly(act: Act, ref: Ref) -> Mark | None:
    match ref.selector:
        case Numbered(number=number) if ref.at is None:
            return standing.mark_by_number(act.tx, ref.model, number)
        case Exact(version=text) if ref.at is None and not semver.parse(text).build:
            return standing.mark_by_key(act.tx, ref.model, semver.sort_key(semver.parse(text)))
        case _:
            return None


def by_alias(act: Act, model: ModelName, alias: str) -> Mark:
    """The version that an alias points to; `latest` is the one registered last, as MLflow has it.

    Raises:
        ModelNotFound: there is no such model. VersionNotFound: `latest` of a model without versions.
        InvalidParameter: there is no such alias, which MLflow calls an invalid parameter.
    """
    if alias.lower() == "latest":
        return Mark(last_registered(_line_of(act, model)).id)
    act.readable(model)
    mark = standing.mark_by_alias(act.tx, model, alias)
    if mark is not None:
        return mark
    try:
        return Mark(references.resolve(act, Ref(model=model, selector=Aliased(alias))).id)
    except (errors.AliasNotFound, errors.VersionNotFound) as missing:
        raise errors.InvalidParameter(
            f"Registered model alias {values.printable(alias)[:60]} not found. {missing}", field="alias"
        ) from missing


def _line_of(act: Act, model: ModelName) -> ModelLine:
    [line] = model_lines(act, [mark_of_model(act, model).id]).values()
    return line


def last_registered(model: ModelLine) -> VersionLine:
    """The version with the highest number that is neither taken back nor yanked, wherever it stands.

    Raises:
        VersionNotFound: there is nothing in the model.
    """
    if not model.latest:
        full_name = str(ModelName(model.project, model.name))
        raise errors.VersionNotFound(f"Latest version not found for model {full_name}.", model=full_name)
    offered = [each for each in model.latest if not each.withdrawn]
    return max(offered or model.latest, key=lambda each: each.number)


def latest_versions(act: Act, model: ModelName, wanted: Sequence[str]) -> tuple[VersionLine, ...]:
    """The latest version of each stage named, or of all; where a client has put a semver, a range, a number
    or `latest` in a stage's place, as it does with `models:/churn/2.1.0`, the version that this names.

    Raises:
        ModelNotFound: it is not there, or not to be seen.
        VersionNotFound: it has no version of that semver, range or number.
        InvalidParameter: a word is none of these.
    """
    found = _line_of(act, model)
    if not wanted:
        return found.latest
    named: set[str] = set()
    others: dict[int, VersionLine] = {}
    for word in wanted:
        stage = words.find_stage(found.stages, word)
        if stage is not None:
            named.add(stage)
            continue
        other = last_registered(found) if word.lower() == "latest" else _otherwise(act, model, found, word)
        others[other.number] = other
    chosen = {each.number: each for each in found.latest if each.stage in named}
    return tuple({**chosen, **others}[number] for number in sorted(chosen.keys() | others.keys()))


def _otherwise(act: Act, model: ModelName, found: ModelLine, word: str) -> VersionLine:
    try:
        if semver.is_range(word):
            ref = Ref(model=model, selector=Within(str(semver.parse_range(word))))
        else:
            ref = words.version_ref(model, word)
        [line] = version_lines(act, [mark_of_version(act, ref).id]).values()
    except (errors.InvalidParameter, errors.InvalidSemver):
        words.stage_named(found.stages, word)
        raise
    return line
