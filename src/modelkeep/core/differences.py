"""What is known of a version, and how two versions differ: the facts that version rules and diffs are made
of.

Every difference has a kind, which rules can name, and a sentence, which people can read. This file does not
judge a difference (that is `core/bump.py`) and measures nothing itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import isclose, isnan

from msgspec import Struct

from modelkeep.core import values
from modelkeep.core.signature import ChangeKind, Side, Signature, compare

NAMES_SHOWN = 5
"""Names that one sentence lists before it counts the rest."""


class Facts(Struct, frozen=True, kw_only=True):
    """What is known of one version. None means unknown, which is never taken for equal.

    Digests and fingerprints are compared as text. `content` is the manifest's digest, `weights` the digests
    of the files that hold learned numbers, `architecture_family` a word (resnet, gradient boosting),
    `architecture` a fingerprint of the exact network, `metadata` a digest of what is stated about the version
    and changes no answer.
    """

    content: str | None = None
    signature: Signature | None = None
    preprocessing: str | None = None
    features: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None
    architecture_family: str | None = None
    architecture: str | None = None
    weights: tuple[str, ...] | None = None
    data: str | None = None
    environment: str | None = None
    metrics: dict[str, float] | None = None
    metadata: str | None = None


class Difference(Struct, frozen=True, kw_only=True):
    """One difference, or one sameness that rules may lean on. `kind` is one of KINDS; `sentence` is for a
    person."""

    kind: str
    subject: str
    sentence: str


_DIGESTS: Mapping[str, str] = {
    "preprocessing": "the preprocessing",
    "architecture_family": "the architecture family",
    "architecture": "the architecture",
    "data": "the training data",
    "environment": "the environment",
    "metadata": "the metadata",
}
"""Facts that are one text each, and how a sentence calls them."""
_SETS: Mapping[str, tuple[str, str]] = {"features": ("feature", "features"), "labels": ("label", "labels")}
"""Facts that are sets of names."""
_LEGIBLE = frozenset({"architecture_family"})
"""Facts whose value says something to a person; the others are digests."""

NEUTRAL = frozenset(
    {f"{fact}.same" for fact in (*_DIGESTS, *_SETS, "content", "weights", "metrics", "signature")}
) | {"signature.compatible"}
"""Kinds that say what did not change. They need no judgement; `all_of` and `none_of` may name them."""
KINDS = (
    NEUTRAL
    | {f"{side}.{kind}" for side in Side for kind in ChangeKind}
    | {
        f"{fact}.{state}"
        for fact in (*_DIGESTS, "weights", "metrics")
        for state in ("changed", "lost", "gained")
    }
    | {f"{fact}.{state}" for fact in _SETS for state in ("removed", "added", "lost", "gained")}
    | {f"signature.{state}" for state in ("lost", "gained", "unknown")}
    | {"content.changed", "content.unknown", "files.changed"}
)
"""Every kind of difference that rules can name."""


def differences(parent: Facts, new: Facts, *, metric_tolerance: float = 0.0) -> tuple[Difference, ...]:
    """What differs between two versions, and what provably does not (the kinds in NEUTRAL)."""
    same_bytes = parent.content is not None and parent.content == new.content
    return (
        *_signature_differences(parent.signature, new.signature, same_bytes=same_bytes),
        *(d for fact, called in _DIGESTS.items() for d in _digest_differences(fact, called, parent, new)),
        *(d for fact in _SETS for d in _set_differences(fact, getattr(parent, fact), getattr(new, fact))),
        *_file_differences(parent, new, same_bytes=same_bytes),
        *_metric_differences(parent.metrics, new.metrics, metric_tolerance),
    )


def unknown(parent: Facts, new: Facts) -> tuple[str, ...]:
    """The facts that could not be compared, because one version or both do not state them."""
    return tuple(
        fact
        for fact in Facts.__struct_fields__
        if getattr(parent, fact) is None or getattr(new, fact) is None
    )


def _signature_differences(
    old: Signature | None, new: Signature | None, *, same_bytes: bool
) -> Iterator[Difference]:
    if old is None and new is None:
        if not same_bytes:
            yield _difference("signature.unknown", "signature", "Neither version states its signature.")
    elif old is None:
        yield _difference("signature.gained", "signature", "Only the new version states its signature.")
    elif new is None:
        yield _difference(
            "signature.lost", "signature", "The new version states no signature, but its parent does."
        )
    else:
        changes = compare(old, new)
        for change in changes:
            yield _difference(f"{change.side}.{change.kind}", change.field, change.sentence)
        if not changes:
            yield _difference("signature.same", "signature", "The signature is the same.")
        if not any(change.breaks for change in changes):
            yield _difference("signature.compatible", "signature", "The signature is compatible.")


def _digest_differences(fact: str, called: str, parent: Facts, new: Facts) -> Iterator[Difference]:
    before, after = getattr(parent, fact), getattr(new, fact)
    if before is None and after is None:
        return
    subject = called.removeprefix("the ")
    if before is None or after is None:
        yield _one_sided(fact, called, known_before=after is None)
    elif before == after:
        yield _difference(f"{fact}.same", subject, f"{_upper(called)} is the same.")
    else:
        moved = f" from {_quoted(before)} to {_quoted(after)}" if fact in _LEGIBLE else ""
        yield _difference(f"{fact}.changed", subject, f"{_upper(called)} changed{moved}.")


def _set_differences(fact: str, old: Sequence[str] | None, new: Sequence[str] | None) -> Iterator[Difference]:
    one, many = _SETS[fact]
    if old is None and new is None:
        return
    if old is None or new is None:
        yield _one_sided(fact, f"the set of {many}", known_before=new is None)
        return
    gone, come = sorted(set(old) - set(new)), sorted(set(new) - set(old))
    if gone:
        yield _difference(f"{fact}.removed", gone[0], f"The {_counted(gone, one, many)} removed.")
    if come:
        yield _difference(f"{fact}.added", come[0], f"The {_counted(come, one, many)} added.")
    if not gone and not come:
        yield _difference(f"{fact}.same", many, f"The {many} are the same.")


def _file_differences(parent: Facts, new: Facts, *, same_bytes: bool) -> Iterator[Difference]:
    """Weights where they are known; else the files as a whole, since learned numbers may be in any of
    them."""
    if same_bytes:
        yield _difference("content.same", "files", "The files are the same, byte for byte.")
    compared = parent.weights is not None and new.weights is not None
    if compared and sorted(parent.weights or ()) != sorted(new.weights or ()):
        yield _difference("weights.changed", "weights", "The weights changed.")
        return
    if compared:
        yield _difference("weights.same", "weights", "The weights are the same.")
    elif (parent.weights is not None or new.weights is not None) and not same_bytes:
        yield _one_sided("weights", "the set of weights", known_before=new.weights is None)
    if same_bytes:
        return
    stated = parent.content is not None and new.content is not None
    if compared and stated:
        yield _difference("files.changed", "files", "Files beside the weights changed.")
    elif stated:
        yield _difference(
            "content.changed", "files", "The files changed, and it is unknown which of them hold the weights."
        )
    elif not compared:
        yield _difference("content.unknown", "files", "It is unknown whether the files changed.")


def _metric_differences(
    old: Mapping[str, float] | None, new: Mapping[str, float] | None, tolerance: float
) -> Iterator[Difference]:
    if old is None and new is None:
        return
    if old is None or new is None:
        yield _one_sided("metrics", "the set of metrics", known_before=new is None)
        return
    shared = [name for name in old if name in new and _moved(old[name], new[name], tolerance)]
    moved = [f"{name} {old[name]:g} to {new[name]:g}" for name in shared]
    moved += [f"{name} no longer measured" for name in old if name not in new]
    moved += [f"{name} measured anew" for name in new if name not in old]
    if moved:
        yield _difference("metrics.changed", "metrics", f"The metrics changed: {_some(moved)}.")
    else:
        yield _difference("metrics.same", "metrics", "The metrics are the same.")


def _moved(old: float, new: float, tolerance: float) -> bool:
    return not (isclose(old, new, rel_tol=tolerance, abs_tol=0.0) or (isnan(old) and isnan(new)))


def _one_sided(fact: str, called: str, *, known_before: bool) -> Difference:
    state, who = ("lost", "parent") if known_before else ("gained", "new version")
    return _difference(f"{fact}.{state}", called.removeprefix("the "), f"Only the {who} states {called}.")


def _difference(kind: str, subject: str, sentence: str) -> Difference:
    return Difference(kind=kind, subject=subject, sentence=sentence)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _quoted(text: str) -> str:
    return values.quoted(text, 60)


def _counted(names: Sequence[str], one: str, many: str) -> str:
    listed = _some([_quoted(name) for name in names])
    return f"{one} {listed} was" if len(names) == 1 else f"{many} {listed} were"


def _some(parts: Sequence[str]) -> str:
    rest = len(parts) - NAMES_SHOWN
    listed = ", ".join(values.printable(part)[:80] for part in parts[:NAMES_SHOWN])
    return f"{listed} and {rest:,} more" if rest > 0 else listed
