"""Turning a fitted scikit-learn model into ONNX before it is registered, on the machine of who registers.

The converted model is held against the original on sample rows; where the two differ there is no conversion.
Both forms go into the version, and gateways prefer ONNX. Some of the rows go with them as golden requests, so
that each gateway finds for itself that it answers as the original did. The server converts nothing.
"""

import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from modelkeep.client.files import LocalFile, find_files
from modelkeep.client.registration import read_document
from modelkeep.core import codec, errors, metadata, mlmodel, values
from modelkeep.core.catalog import FileEntry
from modelkeep.core.golden import GOLDEN_FILE, Golden, GoldenRequest, Tolerance, worst_difference
from modelkeep.core.routing import VersionSpec
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.core.values import Digest
from modelkeep.serving import protocols, runtimes, validation
from modelkeep.serving.messages import Door
from modelkeep.serving.validation import Array, Columns

SAMPLES_MADE = 512
"""Rows that are made where nobody gives some: enough to pass through most leaves of a forest."""
SAMPLES_MAX_BYTES = 64 * 1024 * 1024
"""Of a file of samples."""
MODEL_MAX_BYTES = 4 * 1024 * 1024 * 1024
"""Of the files that are read at once."""
GOLDEN_ROWS = 16
"""Rows that are kept as golden requests."""
TOLERANCE = Tolerance(relative=1e-4, absolute=1e-5)
"""ONNX computes in single precision, where scikit-learn does in double. Classes, whole numbers and text have
to be equal."""
_SEED = 20_260_101
_ANY_DIGEST = Digest("sha256:" + "0" * 64)


class Conversion(Struct, frozen=True, kw_only=True):
    """What came of it. `files`: to register beside the original. `rows`: on how many the two agree. `made`:
    the rows were made up, for nobody gave any."""

    files: tuple[LocalFile, ...]
    path: str
    rows: int
    made: bool


@contextmanager
def to_onnx(
    path: str | Path,
    *,
    document: str | Path | Mapping[str, Any] | None = None,
    signature: Signature | None = None,
    samples: str | Path | None = None,
) -> Iterator[Conversion]:
    """Convert the model in a file or folder; what was made is there until the block ends.

        with to_onnx("model.skops", samples="rows.csv") as converted:
            client.register("churn", "model.skops", also=converted.files)

    Args:
        document: metadata, for the signature in it; a folder's own when left out.
        samples: rows to compare on, as CSV with a header, or as JSON in the form of a prediction request.

    Raises:
        Invalid: there is no such model, it cannot be converted, or the two answer differently; names where.
        ExtraMissing: the converter is not installed.
    """
    root = Path(path)
    found = find_files(root)
    _check_size(found)
    files = {file.path: file.source.read_bytes() for file in found}
    if signature is None:
        signature = _signature_of(files, read_document(document, root if root.is_dir() else None))
    spec = _spec(found, signature)
    original_path, kind = runtimes.choose(spec, files)
    if kind not in ("skops", "joblib"):
        raise errors.Invalid(
            f"There is no conversion to ONNX for {original_path!r} ({kind}); register it without --to-onnx."
        )
    original = runtimes.load(spec, files, root, 1)
    model: Any = original.model  # type: ignore[attr-defined]  # a runtime of scikit-learn has it
    columns, made = _samples(Path(samples) if samples is not None else None, signature, model)
    wanted = original.predict(columns)
    name = str(PurePosixPath(original_path).with_suffix(".onnx"))
    data = _converted(name, model, signature, columns, wanted)
    folder = Path(tempfile.mkdtemp(prefix="modelkeep-onnx-"))
    try:
        contents = {name: data}
        if GOLDEN_FILE not in files and signature is not None:
            contents[GOLDEN_FILE] = _golden(columns, wanted, signature)
        yield Conversion(
            files=tuple(_written(folder, path, content) for path, content in contents.items()),
            path=name,
            rows=_rows(columns),
            made=made,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_size(found: Sequence[LocalFile]) -> None:
    if sum(file.size_bytes for file in found) > MODEL_MAX_BYTES:
        raise errors.LimitExceeded(
            f"More than {MODEL_MAX_BYTES:,} bytes are not converted; register them without --to-onnx."
        )


def _written(folder: Path, path: str, content: bytes) -> LocalFile:
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return LocalFile(target, path, len(content))


def _spec(found: Sequence[LocalFile], signature: Signature | None) -> VersionSpec:
    """A version as a gateway knows it, but for what only a registry can say."""
    entries = tuple(FileEntry(path=f.path, size_bytes=f.size_bytes, digest=_ANY_DIGEST) for f in found)
    return VersionSpec.of(
        model="model", number=1, semver="0", digest=_ANY_DIGEST, files=entries, signature=signature
    )


def _signature_of(files: Mapping[str, bytes], document: Mapping[str, Any]) -> Signature | None:
    stated = metadata.check_metadata(document).view.signature if document else None
    if stated is None and mlmodel.MLMODEL in files:
        stated = mlmodel.read_mlmodel(files[mlmodel.MLMODEL]).signature
    return stated


# ---------------------------------------------------------------------------------------------------- samples


def _samples(path: Path | None, signature: Signature | None, model: Any) -> tuple[Columns, bool]:
    """Rows to compare on, and whether they were made up.

    Raises:
        Invalid: the file cannot be read, or its rows break the signature.
    """
    if path is not None:
        return _read_samples(path, signature), False
    random = np.random.default_rng(_SEED)
    if signature is not None and signature.inputs:
        return {field.name: _made_up(field, random) for field in signature.inputs}, True
    width = getattr(model, "n_features_in_", None)
    if width is None:
        raise errors.Invalid("Neither signature nor model says what a row is; give rows with --samples.")
    return {"": _numbers((SAMPLES_MADE, int(width)), random).astype("float32")}, True


def _read_samples(path: Path, signature: Signature | None) -> Columns:
    try:
        with open(path, "rb") as file:
            data = file.read(SAMPLES_MAX_BYTES + 1)
    except OSError as problem:
        raise errors.Invalid(f"The samples in {path} cannot be read: {problem.strerror}.") from problem
    if len(data) > SAMPLES_MAX_BYTES:
        raise errors.LimitExceeded(f"A file of samples has at most {SAMPLES_MAX_BYTES:,} bytes.")
    csv = path.suffix.lower() == ".csv"
    if not csv and data.lstrip().startswith(b"["):
        data = b'{"inputs":' + data + b"}"
    try:
        asked = protocols.Decoder(signature).decode(Door.INVOCATIONS_CSV if csv else Door.PREDICT, data)
    except errors.ModelkeepError as problem:
        raise errors.Invalid(f"The samples in {path} cannot be used: {problem.message}") from problem
    return asked.columns


def _made_up(field: Field, random: np.random.Generator) -> Array:
    """Values that the field allows."""
    shape = (SAMPLES_MADE, *(max(1, length) for length in field.dimensions))
    low, high = field.minimum, field.maximum
    if field.categories:
        drawn = random.integers(0, len(field.categories), SAMPLES_MADE)
        return validation.to_array(field, [field.categories[index] for index in drawn])
    match field.type:
        case DataType.BOOL:
            return random.integers(0, 2, shape).astype(bool)
        case DataType.STRING | DataType.BYTES | DataType.DATETIME:
            raise errors.Invalid(
                f"No rows can be made up for the field {field.name!r}; give its categories in the signature "
                "or rows with --samples."
            )
        case _:
            made = _numbers(shape, random)
    if low is not None and high is not None:
        made = random.uniform(low, high, shape)
    elif low is not None or high is not None:
        made = low + np.abs(made) if low is not None else high - np.abs(made)
    whole = field.type in (DataType.INT32, DataType.INT64)
    return (np.round(made) if whole else made).astype(validation.DTYPES[field.type])


def _numbers(shape: tuple[int, ...], random: np.random.Generator) -> Array:
    """Numbers of many sizes: a forest's thresholds may lie anywhere."""
    made: Array = random.normal(0, 1, shape) * 10.0 ** random.uniform(-1, 3, shape)
    return made


def _rows(columns: Columns) -> int:
    return len(next(iter(columns.values())))


# ------------------------------------------------------------------------------------------------- conversion


def _converted(
    name: str, model: Any, signature: Signature | None, columns: Columns, wanted: Columns
) -> bytes:
    """The model as ONNX, with the outputs of the original, in the first precision in which both agree.

    Raises:
        Invalid: it cannot be converted, or answers differently.
        ExtraMissing: the converter is not installed.
    """
    try:
        import onnx  # noqa: F401 - whether it is there
        import skl2onnx  # noqa: F401
    except ImportError as problem:
        raise errors.ExtraMissing(
            f"The converter is not installed ({problem}); install modelkeep[convert]."
        ) from problem
    refusal: errors.Invalid | None = None
    for precise in _precisions(columns):
        try:
            data = _graph(name, model, signature, columns, wanted, precise=precise)
            _check_parity(name, data, signature, columns, wanted)
        except errors.Invalid as problem:
            refusal = refusal or problem
        else:
            return data
    assert refusal is not None
    raise refusal


def _precisions(columns: Columns) -> tuple[bool, ...]:
    """Whether to compute in double precision: where callers send it, it is tried first."""
    return (True, False) if any(array.dtype == np.float64 for array in columns.values()) else (False,)


def _graph(
    name: str, model: Any, signature: Signature | None, columns: Columns, wanted: Columns, *, precise: bool
) -> bytes:
    import skl2onnx

    classifier = hasattr(model, "predict_proba")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = skl2onnx.to_onnx(
                model,
                initial_types=_initial_types(model, columns, precise=precise),
                options={id(model): {"zipmap": False}} if classifier else None,
            )
            fields = signature.outputs if signature is not None else ()
            return _with_outputs(made, fields, wanted, classifier=classifier)
        except Exception as problem:
            text = f"{type(problem).__name__}: {str(problem).strip().partition(chr(10))[0][:200]}"
            raise errors.Invalid(f"{name!r} cannot be made: {text}. Register without --to-onnx.") from problem


def _initial_types(model: Any, columns: Columns, *, precise: bool) -> list[tuple[str, Any]]:
    """What the graph takes: one matrix where all columns are numbers and the model asks for no names, else
    one input per column."""
    from skl2onnx.common import data_types as types

    number = types.DoubleTensorType if precise else types.FloatTensorType
    named = getattr(model, "feature_names_in_", None) is not None
    kinds = {array.dtype.kind for array in columns.values()}
    if len(columns) == 1 or (kinds <= set("biuf") and not (named and _picks_columns(model))):
        width = sum(array.shape[1] if array.ndim > 1 else 1 for array in columns.values())
        only = next(iter(columns)) if len(columns) == 1 else ""
        return [(only or "inputs", number([None, width]))]
    made: list[tuple[str, Any]] = []
    for name, array in columns.items():
        match array.dtype.kind:
            case "O" | "U":
                made.append((name, types.StringTensorType([None, 1])))
            case "b":
                made.append((name, types.BooleanTensorType([None, 1])))
            case "i" | "u":
                made.append((name, types.Int64TensorType([None, 1])))
            case _:
                made.append((name, number([None, 1])))
    return made


def _picks_columns(model: Any) -> bool:
    """Whether the model treats its columns apart, by their names."""
    steps = [step for _, step in getattr(model, "steps", ())] or [model]
    return any(hasattr(step, "transformers") for step in steps)


def _with_outputs(made: Any, fields: Sequence[Field], wanted: Columns, *, classifier: bool) -> bytes:
    """The graph with the outputs under the names and in the types in which the original gives them."""
    from onnx import checker, helper

    graph = made.graph
    label = graph.output[0].name
    probabilities = graph.output[1].name if classifier else label
    scores = _named_scores(fields) if classifier else frozenset()
    lengths = [None, *(axis.dim_value for axis in graph.output[0].type.tensor_type.shape.dim[1:])]
    outputs = []
    for index, (name, array) in enumerate(wanted.items()):
        source, inner = (probabilities if name in scores else label), f"modelkeep_{index}"
        if name in scores and array.ndim == 1:
            graph.initializer.append(helper.make_tensor(f"{inner}_which", _onnx_type("int64"), [1], [1]))
            graph.node.append(
                helper.make_node("Gather", [source, f"{inner}_which"], [f"{inner}_one"], axis=1)
            )
            source = f"{inner}_one"
        dtype = str(array.dtype)
        if array.dtype.kind in "biuf":
            graph.node.append(helper.make_node("Cast", [source], [inner], to=_onnx_type(dtype)))
        else:
            graph.node.append(helper.make_node("Identity", [source], [inner]))
        free = _free_name(graph, name)
        graph.node.append(helper.make_node("Identity", [inner], [free]))
        axes = [None, *array.shape[1:]] if name in scores and array.ndim > 1 else lengths
        axes = [None, 1] if name in scores and array.ndim == 1 else axes
        outputs.append(helper.make_tensor_value_info(free, _onnx_type(dtype), axes))
    del graph.output[:]
    graph.output.extend(outputs)
    checker.check_model(made)
    return bytes(made.SerializeToString())


def _named_scores(fields: Sequence[Field]) -> frozenset[str]:
    return frozenset(field.name for field in fields if runtimes.asks_for_probability(field.name))


def _free_name(graph: Any, name: str) -> str:
    """The output's name, or another where something in the graph is called so: then its place counts."""
    taken = {value for node in graph.node for value in (*node.input, *node.output)}
    taken |= {value.name for value in graph.input}
    return name if name not in taken else f"{name}_out"


def _onnx_type(dtype: str) -> int:
    from onnx import TensorProto, helper

    if dtype == "object":
        return int(TensorProto.STRING)
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


# ----------------------------------------------------------------------------------------------------- parity


def _check_parity(
    name: str, data: bytes, signature: Signature | None, columns: Columns, wanted: Columns
) -> None:
    """Hold the converted model against the original, in the runtime that gateways use.

    Raises:
        Invalid: they differ; names the worst place. Or it does not load.
    """
    entry = FileEntry(path=name, size_bytes=len(data), digest=_ANY_DIGEST)
    spec = VersionSpec.of(
        model="model", number=1, semver="0", digest=_ANY_DIGEST, files=(entry,), signature=signature
    )
    try:
        got = runtimes.load(spec, {name: data}, Path("."), 1).predict(columns)
    except errors.ExtraMissing:
        raise
    except Exception as problem:
        raise errors.Invalid(
            f"{name!r} cannot be made: {values.printable(str(problem))[:200]} Register without --to-onnx."
        ) from problem
    if set(got) != set(wanted) and len(got) == len(wanted):
        got = dict(zip(wanted, got.values(), strict=True))
    difference = worst_difference(_plain(wanted), _plain(got), TOLERANCE)
    if difference is not None:
        raise errors.Invalid(
            f"{name!r} answers differently from the original: {difference}, the worst of {_rows(columns)} "
            "rows. Register without --to-onnx.",
            **({"field": difference.field} if difference.field is not None else {}),
        )


def _plain(columns: Columns) -> dict[str, Any]:
    return {
        name: (array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array).tolist()
        for name, array in columns.items()
    }


def _golden(columns: Columns, wanted: Columns, signature: Signature) -> bytes:
    """The first rows and their answers, as golden requests."""
    fields = {field.name for field in signature.inputs} or set(columns)
    inputs = {name: array[:GOLDEN_ROWS] for name, array in columns.items() if name in fields}
    outputs = {name: array[:GOLDEN_ROWS] for name, array in wanted.items()}
    whole = {name: array.tolist() for name, array in inputs.items()}
    request = GoldenRequest(inputs=whole, outputs=_plain(outputs))
    golden = Golden(requests=(request,), relative=TOLERANCE.relative, absolute=TOLERANCE.absolute)
    return msgspec.json.format(codec.encode(golden), indent=1) + b"\n"
