"""Two answers to one request, compared: whether the shadow says what stable says, and how far off it is.

Numbers are equal within the precision of their type, everything else only when it is the same. Two versions
of a model that was trained again rarely agree in every digit of a score: the mean and the largest difference
say how far they are apart, and what follows from it is judged elsewhere.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np

from modelkeep.core import codec, errors
from modelkeep.core.observation import PairCounts
from modelkeep.core.signature import DataType, Signature
from modelkeep.serving import binary
from modelkeep.serving.messages import Door
from modelkeep.serving.records import Pair
from modelkeep.serving.tensors import TENSOR_TYPES

TOLERANCES: Mapping[DataType | None, tuple[float, float]] = {
    DataType.FLOAT32: (1e-4, 1e-6),
    DataType.FLOAT64: (1e-9, 1e-12),
    None: (1e-4, 1e-6),
}
"""By type of an output (None: no signature says), the relative and the absolute difference of numbers that
count as equal. What a float32 model answers depends on the order of its sums in about the fifth digit."""
UNREADABLE = (errors.ModelkeepError, LookupError, TypeError, ValueError, AttributeError)
"""What reading an answer raises that is none of ours, whatever a model made of it."""
_DIFFERENCE_MAX = 1e300
"""Differences add up; two infinities apart must not make the sum useless."""


def outputs(door: Door, body: bytes) -> dict[str, list[Any]]:
    """The outputs of an answer by name, rows first. An output without a name has the name ''.

    Raises:
        one of UNREADABLE: no answer of ours.
    """
    if door in (Door.INFER, Door.INFER_BINARY):
        head, rest = binary.parts(body) if body[:1] != b"{" else (body, b"")
        blobs = binary.Blobs(rest)
        return {str(t["name"]): _tensor(t, blobs) for t in codec.decode(head, dict)["outputs"]}
    answer = codec.decode(body, dict)
    found = answer.get("predictions" if door in (Door.INVOCATIONS, Door.INVOCATIONS_CSV) else "outputs")
    if isinstance(found, dict):
        return found
    if not isinstance(found, list):
        raise errors.MalformedBody("This is no answer of a worker.")
    if found and all(isinstance(row, dict) for row in found):
        return {name: [row.get(name) for row in found] for name in found[0]}
    return {"": found}


def _tensor(tensor: dict[str, Any], blobs: binary.Blobs) -> list[Any]:
    """A tensor's values, nested as its shape says."""
    name, shape, (dtype, _) = tensor["name"], tensor["shape"], TENSOR_TYPES[tensor["datatype"]]
    if "data" in tensor:
        array = np.empty(len(tensor["data"]), dtype=object)
        array[:] = tensor["data"]
        array = array.reshape(shape)
    else:
        blob = blobs.take(tensor["parameters"]["binary_data_size"], name)
        if dtype == "object":
            array = binary.strings(blob, shape, name, as_text=True)
        else:
            array = binary.numbers(blob, dtype, shape, name)
    listed: list[Any] = array.tolist()
    return listed


def compared(pair: Pair, signature: Signature | None) -> PairCounts:
    """One pair as counts.

    Args:
        signature: of the stable version; its outputs say how precise numbers are.
    """
    stable_ok, shadow_ok = pair.stable.status == 200, pair.shadow.status == 200
    stable_slow, shadow_slow = (reply.latency_ms > pair.slow_ms for reply in (pair.stable, pair.shadow))
    counts = PairCounts(
        version=pair.shadow.version,
        pairs=1,
        both_failed=int(not stable_ok and not shadow_ok),
        only_stable_failed=int(not stable_ok and shadow_ok),
        only_shadow_failed=int(stable_ok and not shadow_ok),
        only_stable_slow=int(stable_slow and not shadow_slow),
        only_shadow_slow=int(shadow_slow and not stable_slow),
        stable_ms_sum=pair.stable.latency_ms,
        shadow_ms_sum=pair.shadow.latency_ms,
    )
    if not (stable_ok and shadow_ok):
        return counts
    try:
        door = Door(pair.door)
        ours, theirs = outputs(door, pair.stable.body), outputs(door, pair.shadow.body)
    except UNREADABLE:  # answered, but not in a form that is compared
        return counts
    types = {field.name: field.type for field in signature.outputs} if signature is not None else {}
    if len(types) == 1:
        types[""] = next(iter(types.values()))
    equal, differences = _apart(ours, theirs, types)
    return msgspec.structs.replace(
        counts,
        compared=1,
        disagreements=int(not equal),
        values=len(differences),
        difference_sum=min(math.fsum(differences), _DIFFERENCE_MAX),
        difference_max=max(differences, default=0.0),
    )


def _apart(
    ours: dict[str, list[Any]], theirs: dict[str, list[Any]], types: Mapping[str, DataType]
) -> tuple[bool, list[float]]:
    """Whether two answers are equal, and the differences of all their numbers."""
    equal = ours.keys() == theirs.keys()
    differences: list[float] = []
    for name in ours.keys() & theirs.keys():
        relative, absolute = TOLERANCES.get(types.get(name), TOLERANCES[None])
        exact = types.get(name) in (DataType.INT32, DataType.INT64)
        mine, other = list(_flat(ours[name])), list(_flat(theirs[name]))
        equal &= len(mine) == len(other)
        for a, b in zip(mine, other, strict=False):
            if not (_number(a) and _number(b)):
                equal &= a == b and type(a) is type(b)
                continue
            difference = min(abs(a - b), _DIFFERENCE_MAX)
            differences.append(float(difference))
            near = a == b if exact else difference <= max(absolute, relative * max(abs(a), abs(b)))
            equal &= near
    return equal, differences


def _flat(value: Any) -> Iterable[Any]:
    """The single values of nested lists, in order."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting.extend(reversed(item))
        elif isinstance(item, dict):
            waiting.extend(item[key] for key in sorted(item, reverse=True))
        else:
            yield item


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
