"""A program that uses the SDK, for the type checker alone: it is checked and never run."""

from collections.abc import Iterator
from typing import assert_type

import modelkeep
from modelkeep.client.answers import Listing, Pulled
from modelkeep.core.answers import GateReport, Promotion, Registration, WhatWas
from modelkeep.core.catalog import ModelVersion, RegisteredModel


def use(client: modelkeep.Client) -> None:
    """Each line would be an error if a method's type were lost on the way to the public face."""
    assert_type(client.get_version("churn:1.0.0"), ModelVersion)
    assert_type(client.list_models(), Listing[RegisteredModel])
    assert_type(iter(client.search("metrics.f1 > 0.9")), Iterator[ModelVersion])
    assert_type(client.register("churn", "model.onnx", metrics={"f1": 0.9}), Registration)
    assert_type(client.pull("churn#production", "here"), Pulled)
    assert_type(client.gate("churn:1.0.0", "production"), GateReport)
    assert_type(client.promote("churn:1.0.0", "production", "why"), Promotion)
    assert_type(client.whatwas("churn#production"), WhatWas)
    with client.draft("churn") as draft:
        draft.metrics(f1=0.9)
        assert_type(draft.registration, Registration | None)
