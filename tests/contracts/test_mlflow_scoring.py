"""MLflow's scoring protocol, held against MLflow's own reading of it: every form that its server takes for a
signature means the same table here, and both refuse what is no form."""

import json
from typing import Any

import numpy as np
import pytest

from modelkeep.core import errors
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.serving.messages import Door
from modelkeep.serving.protocols import Decoder
from tests.mlflow_client import MlflowClient

pytestmark = [pytest.mark.network, pytest.mark.req("S1")]

READ = """
import json, sys
import numpy as np, pandas as pd
from mlflow.models import ModelSignature
from mlflow.models.utils import _enforce_schema
from mlflow.pyfunc import scoring_server
from mlflow.types.schema import ColSpec, DataType, Schema, TensorSpec

columns = Schema([ColSpec(DataType.double, "age"), ColSpec(DataType.string, "name")])
one = Schema([ColSpec(DataType.double, "age")])
tensor = Schema([TensorSpec(np.dtype("float32"), (-1, 2))])
schemas = {"columns": columns, "one": one, "tensor": tensor}

def table(found):
    if isinstance(found, pd.DataFrame):
        return {str(name): found[name].tolist() for name in found.columns}
    if isinstance(found, dict):
        return {name: np.asarray(value).tolist() for name, value in found.items()}
    return {"": np.asarray(found).tolist()}

def read(name, kind, body):
    schema = schemas[name]
    if kind == "csv":
        import io
        return table(_enforce_schema(scoring_server.parse_csv_input(io.StringIO(body), schema), schema))
    data, _ = scoring_server._split_data_and_params(body)
    return table(_enforce_schema(scoring_server.infer_and_parse_data(data, schema), schema))

answers = []
for name, kind, body in json.loads(sys.argv[1]):
    try:
        answers.append(read(name, kind, body))
    except Exception as problem:
        answers.append(f"{type(problem).__name__}: {problem}"[:200])
print(json.dumps(answers))
"""
SIGNATURES = {
    "columns": Signature(
        inputs=(Field(name="age", type=DataType.FLOAT64), Field(name="name", type=DataType.STRING))
    ),
    "one": Signature(inputs=(Field(name="age", type=DataType.FLOAT64),)),
    "tensor": Signature(inputs=(Field(name="input", type=DataType.FLOAT32, shape=(2,)),)),
}
RECORDS = [{"age": 1.5, "name": "a"}, {"age": 2, "name": "b"}]
GOOD: list[tuple[str, str, Any]] = [
    ("columns", "json", {"dataframe_split": {"columns": ["age", "name"], "data": [[1.5, "a"], [2, "b"]]}}),
    (
        "columns",
        "json",
        {"dataframe_split": {"index": [3, 9], "columns": ["name", "age"], "data": [["a", 1.5], ["b", 2]]}},
    ),
    ("columns", "json", {"dataframe_records": RECORDS}),
    ("columns", "json", {"dataframe_records": RECORDS, "params": {"temperature": 1}}),
    ("columns", "json", {"instances": RECORDS}),
    ("columns", "json", {"instances": {"age": [1.5, 2], "name": ["a", "b"]}}),
    ("columns", "json", {"inputs": {"age": [1.5, 2], "name": ["a", "b"]}}),
    ("columns", "json", {"inputs": {"age": 1.5, "name": "a"}}),
    ("columns", "json", {"inputs": RECORDS}),
    ("columns", "csv", "age,name\n1.5,a\n2,b\n"),
    ("columns", "csv", 'name,age\n"a, and b",1.5\n'),
    ("one", "json", {"inputs": [1.5, 2]}),
    ("one", "json", {"instances": [1.5, 2]}),
    ("tensor", "json", {"inputs": [[1, 2], [3, 4]]}),
    ("tensor", "json", {"instances": [[1, 2], [3, 4]], "params": None}),
]
BAD: list[tuple[str, str, Any]] = [
    ("columns", "json", {}),
    ("columns", "json", {"data": [[1, "a"]]}),
    ("columns", "json", {"dataframe_split": {"columns": ["age", "name"]}}),
    ("columns", "json", {"dataframe_split": [[1, "a"]]}),
    ("columns", "json", {"dataframe_records": {"age": [1]}}),
    ("columns", "json", {"inputs": [[1, "a"]], "instances": [[1, "a"]]}),
    ("columns", "json", {"dataframe_records": [{"age": 1}]}),
    ("columns", "json", {"dataframe_records": [{"age": "old", "name": "a"}]}),
    ("tensor", "json", {"inputs": [[1, 2, 3]]}),
]


def ours(name: str, kind: str, body: Any) -> dict[str, list[Any]] | None:
    """Our reading; None for a refusal."""
    door = Door.INVOCATIONS if kind == "json" else Door.INVOCATIONS_CSV
    data = json.dumps(body) if kind == "json" else body
    try:
        asked = Decoder(SIGNATURES[name]).decode(door, data.encode())
    except errors.ModelkeepError:
        return None
    return {column: np.asarray(array).tolist() for column, array in asked.columns.items()}


def test_every_form_means_what_it_means_to_mlflow(mlflow_client: MlflowClient) -> None:
    """The same tables, by name where there are names; a tensor by itself has none there."""
    theirs = json.loads(mlflow_client.run(READ, "", json.dumps([*GOOD, *BAD])).splitlines()[-1])
    for case, table in zip(GOOD, theirs, strict=False):
        assert isinstance(table, dict), (case, table)
        mine = ours(*case)
        assert mine is not None, case
        if set(table) == {""} or case[0] == "tensor":
            assert list(mine.values()) == list(table.values()), case
        else:
            assert mine == table, case
    for case, answer in zip(BAD, theirs[len(GOOD) :], strict=True):
        assert isinstance(answer, str), (case, answer)
        assert ours(*case) is None, case
