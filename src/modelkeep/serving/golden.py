"""Asking a version that was just loaded what it is known to answer, in the way in which callers ask it.

A version that answers otherwise is not loaded: its library, its environment or its conversion is not what it
was made with. What golden requests are stands in `core/golden.py`.
"""

from collections.abc import Mapping

from modelkeep.core import codec, errors
from modelkeep.core.golden import GOLDEN_FILE, read_golden, worst_difference
from modelkeep.core.routing import VersionSpec
from modelkeep.serving import protocols, runtimes, validation
from modelkeep.serving.messages import Door


def ask(spec: VersionSpec, runtime: runtimes.Runtime, files: Mapping[str, bytes]) -> int:
    """Ask a version its golden requests. Returns how many there were.

    Raises:
        Invalid: an answer is another; names the request, the row and the field. Or the file is none.
    """
    data = files.get(GOLDEN_FILE)
    if data is None:
        return 0
    golden = read_golden(data)
    decoder = protocols.Decoder(spec.signature)
    fields = spec.signature.outputs if spec.signature is not None else ()
    for number, request in enumerate(golden.requests):
        try:
            asked = decoder.decode(Door.PREDICT, codec.encode({"inputs": request.inputs}))
            outputs = runtime.predict(asked.columns)
        except errors.ModelkeepError as problem:
            raise _failed(spec, number, problem.message) from problem
        except Exception as problem:
            raise _failed(spec, number, f"the model raised {type(problem).__name__}: {problem}") from problem
        broken = validation.output_problem(fields, outputs, asked.rows)
        if broken is not None:
            raise _failed(spec, number, broken)
        body = protocols.encode(Door.PREDICT, asked, outputs, endpoint="", semver=spec.semver)
        difference = worst_difference(request.outputs, codec.decode(body, dict)["outputs"], golden)
        if difference is not None:
            raise _failed(spec, number, f"{difference}.", field=difference.field)
    return len(golden.requests)


def _failed(spec: VersionSpec, number: int, text: str, field: str | None = None) -> errors.Invalid:
    return errors.Invalid(
        f"Golden request {number} of {spec.label} has another answer here: {text}",
        **({"field": field} if field is not None else {}),
    )
