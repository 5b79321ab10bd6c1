"""MLflow's `MLmodel` file and its signatures: what is read, what is left out, and that nothing in it stops
anybody.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import codec, errors
from modelkeep.core.metadata import check_metadata
from modelkeep.core.mlflow_signature import from_mlflow
from modelkeep.core.mlmodel import read_mlmodel
from modelkeep.core.signature import DataType, Field


def field(name: str, kind: str = "float64", **more: Any) -> Field:
    """A field."""
    return Field(name=name, type=DataType(kind), **more)


def test_mlflow_columns() -> None:
    """MLflow's columns are read by name and type, with what is optional."""
    value = from_mlflow(
        {
            "inputs": '[{"type": "double", "name": "x", "required": true}, '
            '{"type": "long", "name": "n", "required": false}, '
            '{"type": "string", "name": "s", "optional": true}]',
            "outputs": [{"type": "boolean"}],
            "params": None,
        }
    )
    assert value.inputs == (
        field("x"),
        field("n", "int64", required=False),
        field("s", "string", required=False),
    )
    assert value.outputs == (field("output", "bool"),)


def test_mlflow_tensors() -> None:
    """MLflow's tensors lose their batch axis; small integers keep their bounds in a wider type."""
    value = from_mlflow(
        {
            "inputs": '[{"type": "tensor", "name": "image", '
            '"tensor-spec": {"dtype": "uint8", "shape": [-1, 28, 28]}}]',
            "outputs": '[{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}, '
            '{"type": "tensor", "tensor-spec": {"dtype": "<U7", "shape": [-1, 3]}}]',
        }
    )
    assert value.inputs == (field("image", "int32", minimum=0, maximum=255, shape=(28, 28)),)
    assert value.outputs == (field("output_0", "int64"), field("output_1", "string", shape=(3,)))


def test_mlflow_arrays() -> None:
    """A column of arrays is a field with free axes."""
    inner = {"type": "array", "items": {"type": "float"}}
    value = from_mlflow({"inputs": [{"type": "array", "name": "v", "items": inner}]})
    assert value.inputs == (field("v", "float32", shape=(-1, -1)),)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("text", "is a mapping"),
        ({}, "has no fields"),
        ({"inputs": "[{"}, "cannot be read"),
        ({"inputs": '[{"name": "a", "name": "b", "type": "long"}]'}, "cannot be read"),
        ({"inputs": "[" * 100}, "cannot be read"),
        ({"inputs": "\ud800"}, "cannot be read"),
        ({"inputs": {"a": "long"}}, "not a list"),
        ({"inputs": ["long"]}, "not a list"),
        ({"inputs": [{"type": "object", "name": "o"}]}, "'o' has the MLflow type 'object'"),
        ({"inputs": [{"type": ["long"], "name": "o"}]}, "no counterpart"),
        ({"inputs": [{"name": "o"}]}, "'None'"),
        ({"inputs": [{"type": "array", "name": "o"}]}, "no counterpart"),
        ({"inputs": [{"type": "tensor", "name": "t"}]}, "has no dtype and shape"),
        (
            {"inputs": [{"type": "tensor", "tensor-spec": {"dtype": "complex64", "shape": [-1]}}]},
            "'complex64'",
        ),
        (
            {"inputs": [{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1, "a"]}}]},
            "whole numbers",
        ),
        (
            {"inputs": [{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1, 0]}}]},
            "axis of length 0",
        ),
        ({"inputs": [{"type": "long", "name": "a"}, {"type": "long", "name": "a"}]}, "stands twice"),
    ],
)
def test_bad_mlflow_signatures(value: object, why: str) -> None:
    """What cannot be read, or has no counterpart, is refused by a sentence that says so."""
    with pytest.raises(errors.InvalidSignature) as caught:
        from_mlflow(value)
    assert why in caught.value.message


def test_deep_mlflow_arrays_end() -> None:
    """Nesting is followed only as far as a shape can go."""
    spec: dict[str, Any] = {"type": "double"}
    for _ in range(50):
        spec = {"type": "array", "items": spec}
    with pytest.raises(errors.InvalidSignature):
        from_mlflow({"inputs": [{**spec, "name": "deep"}]})


# ------------------------------------------------------------------------------------------------ the file


def written(**document: Any) -> bytes:
    """A file with this in it."""
    return codec.render_yaml(document).encode()


@pytest.mark.req("T3", "V6")
@pytest.mark.parametrize(
    ("flavors", "model"),
    [
        (
            {"python_function": {}, "sklearn": {"sklearn_version": "1.9.1", "serialization_format": "skops"}},
            {"framework": "scikit-learn", "framework_version": "1.9.1", "format": "skops"},
        ),
        (
            {
                "xgboost": {
                    "xgb_version": "3.1.0",
                    "model_class": "xgboost.XGBClassifier",
                    "model_format": "ubj",
                }
            },
            {
                "framework": "xgboost",
                "framework_version": "3.1.0",
                "format": "ubj",
                "algorithm": "xgboost.XGBClassifier",
            },
        ),
        ({"lightgbm": {"lgb_version": "4.6.0"}}, {"framework": "lightgbm", "framework_version": "4.6.0"}),
        ({"python_function": {"python_version": "3.11.7"}}, {"framework": "pyfunc"}),
    ],
)
def test_the_framework(flavors: dict[str, Any], model: dict[str, Any]) -> None:
    """Framework, version, format and class come from the flavor that is not the generic one."""
    found = read_mlmodel(written(flavors=flavors))
    assert found.metadata["model"] == model
    assert found.metadata["mlflow"]["flavors"] == list(flavors)
    assert found.notes == ()


@pytest.mark.req("T3")
def test_what_is_kept_beside() -> None:
    """Ids, versions, the example and the model's own metadata stay under `mlflow`; unknown parts do not."""
    found = read_mlmodel(
        written(
            model_uuid="4a1f",
            mlflow_version="3.18.0",
            model_size_bytes=512,
            metadata={"team": "risk", "notes": ["a", 1]},
            saved_input_example_info={"artifact_path": "input_example.json", "type": "dataframe", "x": 1},
            flavors={"python_function": {"python_version": "3.11.7"}},
            unheard_of={"a": 1},
        )
    )
    assert found.metadata == {
        "model": {"framework": "pyfunc"},
        "environment": {"python": "3.11.7"},
        "mlflow": {
            "flavors": ["python_function"],
            "model_uuid": "4a1f",
            "mlflow_version": "3.18.0",
            "model_size_bytes": 512,
            "input_example": {"artifact_path": "input_example.json", "type": "dataframe"},
            "metadata": {"team": "risk", "notes": ["a", 1]},
        },
    }


@pytest.mark.parametrize("value", [".nan", '"\\e[31m"', "1180591620717411303424"])
def test_metadata_that_cannot_be_kept_is_left_out(value: str) -> None:
    """The model's own metadata may hold what ours cannot: then it is left out, with a sentence, and the rest
    stays."""
    found = read_mlmodel(f"metadata: {{a: {value}}}\nmodel_uuid: u\n".encode())
    assert found.metadata == {"mlflow": {"flavors": [], "model_uuid": "u"}}
    assert len(found.notes) == 1


def test_a_signature_without_a_counterpart_is_left_out() -> None:
    """A signature with a type that there is not here is left out with the reason; the framework stays."""
    signature = {"inputs": '[{"type": "any", "name": "x"}]', "outputs": None}
    found = read_mlmodel(written(signature=signature, flavors={"sklearn": {}}))
    assert found.signature is None
    assert found.metadata["model"] == {"framework": "scikit-learn"}
    assert len(found.notes) == 1
    assert "no counterpart" in found.notes[0]


@given(
    st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
)
def test_any_bytes_are_read(data: bytes) -> None:
    """Whatever stands in the file, reading it gives something that can be kept, and raises nothing."""
    found = read_mlmodel(data)
    check_metadata(found.metadata)
    assert all(note.isprintable() for note in found.notes)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
KEYS = st.sampled_from(
    ["flavors", "signature", "metadata", "model_uuid", "saved_input_example_info", "mlflow_version", "x"]
)


@given(
    st.dictionaries(KEYS, VALUES | st.fixed_dictionaries({"sklearn": VALUES, "inputs": VALUES}), max_size=6)
)
def test_any_document_is_read(document: dict[str, Any]) -> None:
    """Any shapes in any places give metadata that can be kept."""
    import yaml

    found = read_mlmodel(yaml.safe_dump(document).encode("utf-8", "surrogatepass"))
    check_metadata(found.metadata)
    assert all(note.isprintable() for note in found.notes)
