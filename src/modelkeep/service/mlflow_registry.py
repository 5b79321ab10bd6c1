"""What MLflow's words mean in the registry: stages by their words, versions by what a client has in hand, a
transition, and the labels that belong to Modelkeep.

Each function is an act, or part of one, over the same verbs that every other face uses: a transition is a
promotion, with its policy and its events. What the words look like on the wire is `web.mlflow.registry`'s
part; what clients read is `mlflow_reading`'s, and how a version comes from a run `sources`'.
"""

from collections.abc import Callable, Sequence

from msgspec import Struct

from modelkeep.core import codec, errors, promotion, semver, values
from modelkeep.core.access import Verb
from modelkeep.core.catalog import OWN_TAGS, ModelVersion, RegisteredModel, StageGraph
from modelkeep.core.policy import GateResult
from modelkeep.core.promotion import MoveCause
from modelkeep.core.values import Exact, ModelName, Numbered, Ref
from modelkeep.service import references, stages
from modelkeep.service.act import Act
from modelkeep.service.promotion import Promotion, PromotionKind, Promotions
from modelkeep.service.stages import Because, Place
from modelkeep.store import standing
from modelkeep.store.database import Kept
from modelkeep.store.models import ModelRow
from modelkeep.store.standing import Beside, ModelLine, VersionLine

RUN_LINK = f"{OWN_TAGS}run_link"
"""Where a client said that a version's run is to be looked at: MLflow has a field for it, we a label."""
ARCHIVED_MAX = 1_000
"""Versions that one transition moves out of a shared stage: each is an event."""
NUMBER_DIGITS_MAX = 18
"""Digits of a version's number: what fits the database."""

_WORDS = {"none": "None", "staging": "Staging", "production": "Production", "archived": "Archived"}
"""MLflow's words for the stages that have one; any other is shown by its own name."""


class Seen(Struct, frozen=True, kw_only=True):
    """A version with what stands beside it."""

    version: ModelVersion
    beside: Beside

    @property
    def line(self) -> VersionLine:
        """The same as lists have it."""
        return standing.line_of(self.version, self.beside)


# ------------------------------------------------------------------------------------------------------ words


def stage_word(stage: str) -> str:
    """A stage as MLflow calls it."""
    return _WORDS.get(stage, stage)


def stage_named(graph: StageGraph, word: str) -> str:
    """The stage that a word means, in any case.

    Raises:
        InvalidParameter: the model has no such stage; says which it has.
    """
    found = find_stage(graph, word)
    if found is None:
        known = ", ".join(stage_word(spec.name) for spec in graph.stages)
        raise errors.InvalidParameter(
            f"Invalid Model Version stage: {values.quoted(word, 60)}. Value must be one of {known}.",
            field="stage",
        )
    return found


def find_stage(graph: StageGraph, word: str) -> str | None:
    """The stage that a word means, in any case; None where the model has no such stage."""
    wanted = word.lower()
    return next((spec.name for spec in graph.stages if spec.name.lower() == wanted), None)


def version_ref(model: ModelName, text: str) -> Ref:
    """A version as clients name it where MLflow wants a number: by that, or by its semver.

    Raises:
        InvalidParameter: it is neither.
    """
    if text.isascii() and text.isdigit() and len(text) <= NUMBER_DIGITS_MAX:
        return Ref(model=model, selector=Numbered(int(text)))
    if text[:1].isdigit() and "." in text:
        try:
            return Ref(model=model, selector=Exact(str(semver.parse(text))))
        except errors.InvalidSemver:
            pass
    raise errors.InvalidParameter(
        f"Parameter 'version' must be an integer, got {values.quoted(text, 60)}.", field="version"
    )


def check_alias(alias: str) -> str:
    """What MLflow lets an alias be called: letters, digits, `_` and `-`, and nothing that reads as a version.

    Raises:
        InvalidParameter: it is none of these.
    """
    if not alias or not all(mark in "_-" or (mark.isascii() and mark.isalnum()) for mark in alias):
        raise errors.InvalidParameter(
            f"Invalid alias name: {values.quoted(alias, 60)}. Names may only contain alphanumerics, "
            "underscores (_), and dashes (-).",
            field="alias",
        )
    if alias[0] in "vV" and alias[1:].isdigit():
        raise errors.InvalidParameter(
            f"Version alias name {values.quoted(alias, 60)} is reserved; versions have numbers already.",
            field="alias",
        )
    return alias


# ------------------------------------------------------------------------------------------------- what it is


def seen(act: Act, versions: Sequence[ModelVersion]) -> tuple[Seen, ...]:
    """Versions with what stands beside them; those that the caller was given, so nobody is asked again."""
    found = standing.beside(act.tx, [version.id for version in versions])
    return tuple(Seen(version=version, beside=found[version.id]) for version in versions)


def just_made(version: ModelVersion) -> Seen:
    """A version that was registered in this act: nothing can stand beside it yet."""
    return Seen(version=version, beside=Beside(version.created_at))


def new_model(model: RegisteredModel) -> ModelLine:
    """A model that was made in this act, as lists have it: nothing points into it, and it has no version."""
    made_at = codec.format_time(model.created_at)
    return ModelLine(
        id=model.id,
        project=model.name.project,
        name=model.name.name,
        description=model.description,
        created_at=made_at,
        created_by=model.created_by,
        updated_at=made_at,
        stages=model.stages,
        tags=model.tags,
        aliases=(),
        latest=(),
    )


# ------------------------------------------------------------------------------------------------- transition


class Transition(Struct, frozen=True, kw_only=True):
    """What a client asks for.

    Attributes:
        word: the stage, in MLflow's words or our own.
        archive_others: have whoever is in the stage leave it, which in an exclusive one they do anyway.
        client: what the request says of the program that sent it, for the event.
    """

    ref: Ref
    word: str
    archive_others: bool = False
    client: str = ""


def to_be_moved(act: Act, asked: Transition) -> ModelVersion | None:
    """The version of a transition whose files are to be looked at; None when it stands there already.

    Raises:
        NotFound (its leaves), NotAllowed, InvalidParameter: it cannot be carried out.
    """
    row, version = references.resolve_in_model(act, asked.ref)
    act.authorise(Verb.PROMOTE, version.model)
    stage = stage_named(row.stages, asked.word)
    return version if version.stage != stage else None


def transition(
    act: Act,
    promotions: Promotions,
    asked: Transition,
    *,
    files_verified: bool | None = None,
    look: Callable[[Act, ModelVersion], Callable[[], bool]] | None = None,
) -> Seen:
    """Move a version as MLflow says it: an ordinary promotion, which the policy may refuse.

    Where an endpoint follows the stage, its rollout begins, and the answer names it; the stage follows the
    traffic. Nothing happens to a version that stands there already.

    Args:
        files_verified: whether the stored bytes still match, hashed before the act; None when unknown.
        look: says it within the act instead.

    Raises:
        NotAtHand: from `look`, that the files have to be hashed before.
        NotFound (its leaves): no such version, or not for this caller. NotAllowed: the right to promote.
        InvalidParameter: there is no such stage, or nobody is archived by a move to it.
        InvalidTransition, Tombstoned, Protected: the version cannot go there at all.
        PolicyDenied, ApprovalRequired: recorded; with every gate's answer, and what to do next.
        RolloutActive, StageMoved: another move is under way.
    """
    row, version = references.resolve_in_model(act, references.present(asked.ref))
    act.authorise(Verb.PROMOTE, version.model)
    to = stage_named(row.stages, asked.word)
    if asked.archive_others and to in (row.stages.initial, row.stages.displaced_to):
        raise errors.InvalidParameter(
            f"Nothing is archived by a move to {stage_word(to)}; leave 'archive_existing_versions' out.",
            field="archive_existing_versions",
        )
    done: Promotion | None = None
    bringing = standing.ask_rollout(act.tx, version.id)
    if version.stage != to:
        looked = look(act, version) if look is not None else None
        place = promotions.place_in(act, row, version, to)
        if looked is not None:
            files_verified = looked()
        try:
            done = promotions.promote_from(act, place, _reason(place, asked), files_verified=files_verified)
        except Kept as kept:
            report = promotions.gate(act, asked.ref, to, files_verified=files_verified)
            raise _told(kept, act, report.gates) from kept
    shared = not row.stages.stage(to).exclusive
    if asked.archive_others and shared and (done is None or done.kind is PromotionKind.MOVED):
        _archive_others(act, row, version, to, asked)
    if done is not None and done.kind is PromotionKind.MOVED:
        return Seen(version=done.version, beside=Beside(act.now, bringing()))  # no more than this changed
    [after] = seen(act, [done.version if done is not None else version])
    if done is not None and done.rollout is not None:
        return Seen(version=after.version, beside=after.beside._replace(rollout=done.rollout))
    return after


def _who(asked: Transition) -> str:
    return f"transition by MLflow client{f' ({asked.client})' if asked.client else ''}"


def _reason(place: Place, asked: Transition) -> str:
    """What the event says: who asked in which words, and why another version has to leave."""
    reason = _who(asked) + (", archive_existing_versions" if asked.archive_others else "")
    if place.incumbent is not None:
        aside = place.model.stages.displaced_to
        reason += f"; {place.to} holds one version, so number {place.incumbent} goes to {aside}"
    return reason


def _archive_others(act: Act, row: ModelRow, version: ModelVersion, stage: str, asked: Transition) -> None:
    """Empty a shared stage but for one version, an event each.

    Raises:
        InvalidTransition: the model's stages do not lead there.
        LimitExceeded: there are too many to move at once.
    """
    numbers = standing.numbers_in(act.tx, row.id, stage, ARCHIVED_MAX + 2)
    others = [number for number in numbers if number != version.number]
    if len(others) > ARCHIVED_MAX:
        raise errors.LimitExceeded(
            f"More than {ARCHIVED_MAX:,} versions are in {stage}; archive some of them one by one.",
            limit=ARCHIVED_MAX,
        )
    reason = f"{_who(asked)}, archive_existing_versions: number {version.number} is in {stage}"
    because = Because(cause=MoveCause.PROMOTION, reason=reason)
    for number in others:
        other = references.resolve(act, Ref(model=version.model, selector=Numbered(number)))
        promotion.check_transition(row.stages, other, row.stages.displaced_to)
        stages.move(act, row, other, row.stages.displaced_to, because)


def _told(kept: Kept, act: Act, gates: Sequence[GateResult]) -> Kept:
    """A refusal with every gate's answer in its sentence: an MLflow client shows nothing else."""
    error = kept.error
    if not isinstance(error, errors.PolicyDenied | errors.ApprovalRequired) or not gates:
        return kept
    answers = "; ".join(f"{gate.gate} {gate.outcome} ({gate.why})" for gate in gates)
    return act.keep(type(error)(f"{error.message} Gates: {answers}.", **error.details), passing=kept.passing)
