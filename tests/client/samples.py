"""Things as a server would answer them, with times and ids that never change, for tests of what is sent and
shown.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec.structs import replace

from modelkeep.core.catalog import AliasSpec, FileEntry, Metric, ModelVersion, RegisteredModel
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.core.values import Digest, ModelName

T0 = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)
CHURN = ModelName("default", "churn")


def digest(letter: str) -> Digest:
    """A digest that a reader can tell from others."""
    return Digest("sha256:" + letter * 64)


def version(number: int = 2, semver: str = "1.1.0", **more: Any) -> ModelVersion:
    """A version of churn."""
    made = ModelVersion(
        id=f"ver_{number}",
        model=CHURN,
        number=number,
        semver=semver,
        digest=digest("a"),
        size_bytes=4_321_987,
        files=(
            FileEntry(
                path="metadata.yaml", size_bytes=987, digest=digest("b"), media_type="application/yaml"
            ),
            FileEntry(
                path="model.onnx", size_bytes=4_321_000, digest=digest("c"), media_type="application/vnd.onnx"
            ),
        ),
        signature=Signature(
            inputs=(
                Field(name="age", type=DataType.INT64, minimum=18),
                Field(name="plan", type=DataType.STRING, categories=("basic", "pro"), required=False),
            ),
            outputs=(Field(name="leaves", type=DataType.FLOAT32, meaning="probability of leaving"),),
        ),
        metrics=(
            Metric(name="accuracy", value=0.94, split="test"),
            Metric(name="f1", value=0.913456),
            Metric(name="latency_p95", value=4.2, unit="ms"),
        ),
        params={"max_depth": "6"},
        description="Trained on the January snapshot.",
        tags={"team": "risk"},
        stage="staging",
        aliases=("challenger",),
        parent=1,
        bump="minor",
        bump_reasons=("new weights with a compatible signature",),
        created_at=T0,
        created_by="ada",
    )
    return replace(made, **more)


def model(**more: Any) -> RegisteredModel:
    """The model churn."""
    made = RegisteredModel(
        id="mdl_1",
        name=CHURN,
        description="Who is about to leave.",
        owner="ada",
        tags={"team": "risk"},
        aliases=(AliasSpec(alias="champion", number=1, protected=True, updated_at=T0, updated_by="ada"),),
        occupants={"staging": 2, "production": 1},
        versions=2,
        latest="1.1.0",
        created_at=T0 - timedelta(days=9),
        created_by="ada",
        updated_at=T0,
    )
    return replace(made, **more)
