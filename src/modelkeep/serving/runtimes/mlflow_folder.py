"""Which file of a folder that MLflow wrote is the model, by its `MLmodel` file.

The flavors that are read are those whose file a runtime here loads. All others, and models that are a class
of somebody's own, are MLflow's to run.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from modelkeep.core import codec, errors, values
from modelkeep.core.mlmodel import MLMODEL_MAX_BYTES

_FILES: tuple[tuple[str, str, str | None], ...] = (
    ("onnx", "data", None),
    ("xgboost", "data", "xgboost"),
    ("lightgbm", "data", None),
    ("sklearn", "pickled_model", None),
)
"""Flavors in the order in which they are liked, the key under which each has its file's path, and the
runtime where the file's ending may not tell."""
_GENERIC = "python_function"
_OWN_CODE = "mlflow.pyfunc.model"
"""The loader of models that are a class of somebody's own."""
FLAVORS_SHOWN = 5
"""Flavors that a sentence names; MLflow itself writes two or three."""


class Folder(NamedTuple):
    """What an `MLmodel` file says of its folder.

    `path`: the model's file, where a runtime may load it, and `kind` which one, where the file's ending does
    not say. `own_code`: the model is a class of somebody's own, and whatever else lies in the folder is a
    part of it. `generic`: MLflow can run it without being told of what flavor it is. `flavors`: as people
    read them, after "of".
    """

    path: str | None
    kind: str | None
    own_code: bool
    generic: bool
    flavors: str

    def refusal(self, label: str) -> errors.Invalid:
        """That no worker can load it, and what to do."""
        return errors.Invalid(
            f"{label} is an MLflow model of {self.flavors}, which cannot be asked for predictions; log it "
            "with a flavor that has python_function."
        )


def read_folder(data: bytes, paths: Collection[str]) -> Folder | None:
    """Read an `MLmodel` file; None when it cannot be read, for then it says nothing.

    Args:
        paths: the folder's files; one that is named but not there is no model's file.
    """
    if len(data) > MLMODEL_MAX_BYTES:
        return None
    try:
        document = codec.parse_yaml(data)
    except errors.Invalid:
        return None
    flavors = document.get("flavors") if isinstance(document, dict) else None
    if not isinstance(flavors, dict) or not flavors:
        return None
    named = ((_member(flavors, flavor, key), kind) for flavor, key, kind in _FILES)
    path, kind = next(((path, kind) for path, kind in named if path in paths), (None, None))
    return Folder(
        path=path,
        kind=kind,
        own_code=_member(flavors, _GENERIC, "loader_module") == _OWN_CODE,
        generic=_member(flavors, _GENERIC, "loader_module") is not None,
        flavors=_shown([str(name) for name in flavors]),
    )


def _member(flavors: Mapping[str, Any], flavor: str, key: str) -> str | None:
    stated = flavors.get(flavor)
    value = stated.get(key) if isinstance(stated, dict) else None
    return value if isinstance(value, str) else None


def _shown(names: list[str]) -> str:
    names = sorted(name for name in names if name != _GENERIC) or [_GENERIC]
    listed = ", ".join(values.printable(name)[:60] for name in names[:FLAVORS_SHOWN])
    return f"the flavor{'s' if len(names) > 1 else ''} {listed}"
