"""MLflow's `MLmodel` file, read for what it says of a model: its signature, its framework, how it was saved.

The file comes with the bytes of a version and is as trustworthy as they are: it is read as data, and what
cannot be read is left out with a sentence that says so, never guessed. Loading a model is the data plane's
part.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from modelkeep.core import codec, errors, metadata, values
from modelkeep.core.mlflow_signature import from_mlflow
from modelkeep.core.signature import Signature

MLMODEL = "MLmodel"
"""The file's name, at the top of a model's files."""
MLMODEL_MAX_BYTES = codec.YAML_MAX_BYTES
"""Bytes of the file that are read."""
KEPT = 64
"""Files whose reading is remembered: the same one comes again with each copy of its model."""
KEPT_BYTES = 16 * 1024
"""Bytes of such a file; few have more than two thousand."""
FLAVORS_MAX = 50
"""Flavors that are named; MLflow itself writes two or three."""
NOTE_MAX = 200
"""Characters of what a sentence repeats of an error."""

_GENERIC = "python_function"
_FRAMEWORKS: Mapping[str, str] = {"sklearn": "scikit-learn"}
"""Flavors whose framework people call by another name."""
_VERSION_KEYS: Mapping[str, str] = {"xgboost": "xgb_version", "lightgbm": "lgb_version"}
"""Flavors that shorten their framework's name in the key of its version; others have `<flavor>_version`."""
_SCALARS = (
    "model_uuid",
    "mlflow_version",
    "utc_time_created",
    "model_size_bytes",
    "model_id",
    "artifact_path",
)
"""What is kept as it is, under `mlflow` in the metadata."""


class ModelFile(NamedTuple):
    """What an `MLmodel` file says: a signature that is one here too, sections of metadata, and sentences
    about what was left out."""

    signature: Signature | None = None
    metadata: dict[str, Any] = {}  # noqa: RUF012  (a field's default, and never changed)
    notes: tuple[str, ...] = ()


def read_mlmodel(data: bytes) -> ModelFile:
    """Read the file. Nothing in it is an error: a model that is stored with a file that cannot be read is
    still a model. Nobody changes what is returned."""
    return _read_again(data) if len(data) <= KEPT_BYTES else _read(data)


@lru_cache(maxsize=KEPT)
def _read_again(data: bytes) -> ModelFile:
    return _read(data)


def _read(data: bytes) -> ModelFile:
    if len(data) > MLMODEL_MAX_BYTES:
        return ModelFile(
            notes=(f"The {MLMODEL} file has more than {MLMODEL_MAX_BYTES:,} bytes and was not read.",)
        )
    try:
        document = codec.parse_yaml(data)
    except errors.Invalid as problem:
        return ModelFile(notes=(f"The {MLMODEL} file cannot be read: {_short(problem)}",))
    if not isinstance(document, dict):
        return ModelFile(notes=(f"The {MLMODEL} file is no mapping and was not read.",))
    notes: list[str] = []
    return ModelFile(_signature(document.get("signature"), notes), _described(document, notes), tuple(notes))


def _signature(stated: object, notes: list[str]) -> Signature | None:
    if not isinstance(stated, Mapping) or not (stated.get("inputs") or stated.get("outputs")):
        return None
    try:
        return from_mlflow(stated)
    except errors.Invalid as problem:
        notes.append(f"The signature was left out: {_short(problem)}")
        return None


def _described(document: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """The sections of metadata; each is kept only where it can be, and the others stay."""
    flavors = document.get("flavors")
    flavors = flavors if isinstance(flavors, dict) else {}
    said: dict[str, Any] = {"flavors": [str(name) for name in list(flavors)[:FLAVORS_MAX]]}
    said |= {key: document[key] for key in _SCALARS if isinstance(document.get(key), str | int)}
    example = document.get("saved_input_example_info")
    if isinstance(example, dict):
        said["input_example"] = {
            key: str(example[key]) for key in ("artifact_path", "type") if key in example
        }
    if isinstance(document.get("metadata"), dict):
        said["metadata"] = document["metadata"]
    kept: dict[str, Any] = {}
    for section, content in (
        ("model", _model(flavors)),
        ("environment", _environment(flavors)),
        ("mlflow", said),
    ):
        if not content:
            continue
        if _fits(section, content):
            kept[section] = content
        elif section == "mlflow" and _fits(
            section, smaller := {k: v for k, v in said.items() if k != "metadata"}
        ):
            kept[section] = smaller
            notes.append(f"The metadata in the {MLMODEL} file was left out: it cannot be kept as metadata.")
        else:
            notes.append(f"What the {MLMODEL} file says of the {section} was left out: it cannot be kept.")
    return kept


def _fits(section: str, content: dict[str, Any]) -> bool:
    try:
        metadata.check_metadata({section: content})
    except errors.Invalid:
        return False
    return True


def _model(flavors: dict[str, Any]) -> dict[str, Any]:
    own = next((name for name in flavors if name != _GENERIC and isinstance(flavors[name], dict)), None)
    generic = flavors.get(_GENERIC)
    if own is None:
        return {"framework": "pyfunc"} if isinstance(generic, dict) else {}
    flavor: dict[str, Any] = flavors[own]
    model: dict[str, Any] = {"framework": _FRAMEWORKS.get(str(own), str(own))}
    version = flavor.get(_VERSION_KEYS.get(str(own), f"{own}_version"))
    if isinstance(version, str) and version:
        model["framework_version"] = version
    form = flavor.get("serialization_format") or flavor.get("model_format")
    if isinstance(form, str) and form:
        model["format"] = form
    kind = flavor.get("model_class") or flavor.get("model_type")
    if isinstance(kind, str) and kind:
        model["algorithm"] = kind
    return model


def _environment(flavors: dict[str, Any]) -> dict[str, Any]:
    generic = flavors.get(_GENERIC)
    python = generic.get("python_version") if isinstance(generic, dict) else None
    return {"python": python} if isinstance(python, str) and python else {}


def _short(problem: errors.ModelkeepError) -> str:
    return values.printable(problem.message)[:NOTE_MAX]
