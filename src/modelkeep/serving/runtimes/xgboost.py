"""XGBoost models, from the library's own JSON or UBJSON: data, and no code.

What XGBoost's scikit-learn classes write into the file about themselves is understood: a classifier answers
classes where nothing else is asked for, and trees behind the best round do not count.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xgboost

from modelkeep.core import codec, errors
from modelkeep.core.routing import VersionSpec
from modelkeep.serving.devices import Device
from modelkeep.serving.runtimes import Runtime, no_card, rows
from modelkeep.serving.validation import Array, Columns

_DECIDED_ITSELF = ("multi:softmax", "binary:hinge")
"""Objectives whose answers are classes already."""


class XgboostRuntime:
    """One booster."""

    name = "xgboost"

    def __init__(self, booster: Any, spec: VersionSpec, *, on_card: bool = False) -> None:
        config = codec.decode(booster.save_config(), dict[str, Any])["learner"]
        self._booster = booster
        self._on_card = on_card
        self._fields = spec.signature.outputs if spec.signature is not None else ()
        self._ordered = bool(spec.signature is not None and spec.signature.inputs)
        self._names = list(booster.feature_names or ())
        self._width = booster.num_features()
        objective = config["objective"]["name"]
        several = int(config["learner_model_param"].get("num_class", 0))
        self._classes = several if objective == "multi:softprob" else 2 * (objective == "binary:logistic")
        self._decided = objective in _DECIDED_ITSELF
        sklearn = booster.attr("scikit_learn")
        self._classifier = sklearn is not None and "classifier" in sklearn
        best = booster.attr("best_iteration") if sklearn is not None else None
        self._rounds = (0, int(best) + 1) if best is not None else (0, 0)

    def predict(self, columns: Columns) -> Columns:
        table = rows.table(columns, self._names, self._width, ordered=self._ordered)
        answers = self._answers(table)
        if self._decided:
            answers = answers.astype("int64")
        return rows.outputs(answers, self._fields, classes=self._classes, decides=self._classifier)

    def _answers(self, table: Array) -> Array:
        if self._on_card:  # rows that are in the processor's memory cannot be predicted in their place there
            given = xgboost.DMatrix(table)
            found = self._booster.predict(given, iteration_range=self._rounds, validate_features=False)
        else:
            found = self._booster.inplace_predict(
                table, iteration_range=self._rounds, validate_features=False
            )
        return np.asarray(found)


def load(
    spec: VersionSpec, files: Mapping[str, bytes], path: str, threads: int, device: Device = Device.CPU
) -> Runtime:
    """Load a booster.

    Raises:
        Invalid: XGBoost cannot read it.
        WorkerUnavailable: it cannot compute on a card here.
    """
    on_card = device is Device.CUDA
    if on_card and not xgboost.build_info().get("USE_CUDA"):
        raise no_card("XGBoost", "it was built without CUDA; install xgboost in place of xgboost-cpu.")
    if not files[path]:  # which ends XGBoost's process
        raise errors.Invalid(f"{path!r} of {spec.label} is empty; register the model's own file.")
    booster = xgboost.Booster()
    try:
        booster.load_model(bytearray(files[path]))
    except xgboost.core.XGBoostError as problem:
        first = str(problem).strip().partition("\n")[0][:200]
        raise errors.Invalid(f"XGBoost cannot load {path!r} of {spec.label}: {first}") from problem
    booster.set_param({"nthread": threads, "device": str(device)})
    if on_card:  # where it finds none it says so in its log alone, and takes the processor
        config = codec.decode(booster.save_config(), dict[str, Any])["learner"]
        if not str(config["generic_param"]["device"]).startswith(Device.CUDA):
            raise no_card("XGBoost", "it finds none; see that the driver fits.")
    return XgboostRuntime(booster, spec, on_card=on_card)
