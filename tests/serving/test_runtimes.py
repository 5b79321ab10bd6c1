"""Loading and running versions, without a process around it: ONNX, skops and joblib, what each takes, what is
refused at load, and what a worker makes of a model that misbehaves."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from modelkeep.core import errors
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.serving import runtimes
from modelkeep.serving.batcher import Ask, Limits, Queue
from modelkeep.serving.frames import Kind
from modelkeep.serving.messages import Door
from modelkeep.serving.upstream import PREFIX
from modelkeep.serving.worker import Service
from tests.serving import models

pytest.importorskip("onnxruntime", reason="the runtimes are extras")
pytest.importorskip("sklearn", reason="the runtimes are extras")

LABEL = (Field(name="label", type=DataType.BOOL),)
BOTH = (*LABEL, Field(name="probability", type=DataType.FLOAT64, minimum=0, maximum=1))


def load(
    files: dict[str, bytes], signature: Signature | None = models.SIGNATURE, **changes: Any
) -> runtimes.Runtime:
    """A runtime of these files."""
    spec = models.spec(files, "1.0.0", signature=signature)
    return runtimes.load(spec, files, Path("/nowhere"), 1)


def service(files: dict[str, bytes], signature: Signature | None = models.SIGNATURE) -> Service:
    """What a worker answers with."""
    return Service(models.spec(files, "1.0.0", signature=signature), load(files, signature))


def ask(made: Service, body: Any, door: Door = Door.PREDICT, deadline_s: float = 5.0) -> tuple[Kind, Any]:
    """One request frame, and its answer decoded where it is JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return answers(made, [(door, data)], deadline_s)[0]


def answers(
    made: Service, bodies: list[tuple[Door, bytes]], deadline_s: float = 5.0
) -> list[tuple[Kind, Any]]:
    """Requests that wait together, as a worker answers them: by its queue, in as few calls as it makes."""
    queue: Queue[int] = Queue(Limits(), together=made.together)
    found: dict[int, tuple[Kind, bytes]] = {}

    def read(request: Ask[int]) -> bool:
        refusal = made.read(request)
        if refusal is not None:
            found[request.ticket] = refusal
        return refusal is None

    until = time.monotonic() + deadline_s
    for number, (door, data) in enumerate(bodies):
        payload = PREFIX.pack(until, 0.0, door, 5) + b"churn" + data
        queue.put(Ask(number, payload, deadline=until, arrived=0.0))
    while queue:
        taken = queue.take(time.monotonic(), read, made.key)
        found |= {request.ticket: (Kind.EXPIRED, b"") for request in taken.expired}
        found |= {request.ticket: (kind, body) for request, kind, body in made.settle(taken.batch)}
        queue.together = made.together
    texts = [(found[number][0], found[number][1].decode()) for number in range(len(bodies))]
    return [(kind, json.loads(text) if text[:1] in ("{", "[") else text) for kind, text in texts]


ONNX = {"model.onnx": models.linear_onnx(2.0)}


@pytest.mark.req("S1")
def test_an_onnx_model_answers_by_every_door() -> None:
    """One graph, three protocols, the same numbers."""
    made = service(ONNX)
    assert made.warm_up()
    assert ask(made, {"inputs": [{"age": 10, "income": 1}]}) == (Kind.ANSWER, {"outputs": [21.0]})
    assert ask(made, {"instances": [[10, 1]]}, Door.INVOCATIONS) == (Kind.ANSWER, {"predictions": [21.0]})
    assert ask(made, b"income,age\n1,10\n", Door.INVOCATIONS_CSV) == (Kind.ANSWER, {"predictions": [21.0]})
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [10, 1, 0, 3]}
    kind, answer = ask(made, {"inputs": [tensor]}, Door.INFER)
    assert kind is Kind.ANSWER
    assert (answer["model_name"], answer["model_version"]) == ("churn", "1.0.0")
    assert answer["outputs"] == [{"name": "score", "shape": [2], "datatype": "FP32", "data": [21.0, 3.0]}]


def test_an_onnx_model_without_a_signature_takes_matrices() -> None:
    """Rows as lists go in the model's order; names have no order, and wrong shapes are the caller's fault."""
    made = service(ONNX, None)
    assert not made.warm_up()
    assert ask(made, {"inputs": [[10, 1]]}) == (Kind.ANSWER, {"outputs": [[21.0]]})
    for inputs in ([{"age": 10, "income": 1}], [[1, 2, 3]], [1, 2], [["a", "b"]], [[[1, 2]]]):
        kind, problem = ask(made, {"inputs": inputs})
        assert (kind, problem["status"]) == (Kind.REFUSED, 422), problem


@pytest.mark.req("S1")
def test_a_classifier_gives_the_same_by_skops_and_by_onnx() -> None:
    """The pipeline with its column names, by skops, and its conversion agree on every row."""
    signature = Signature(inputs=models.AGE_INCOME, outputs=BOTH)
    made = service({"model.skops": models.classifier_skops()}, signature)
    assert made.warm_up()
    rows = [{"income": 50, "age": age} for age in (20, 45, 55, 80)]
    kind, answer = ask(made, {"inputs": rows})
    assert kind is Kind.ANSWER
    assert [row["label"] for row in answer["outputs"]] == [False, False, True, True]
    probabilities = [row["probability"] for row in answer["outputs"]]
    assert probabilities == sorted(probabilities)
    shaped = Signature(
        inputs=models.AGE_INCOME, outputs=(Field(name="probability", type=DataType.FLOAT64, shape=(2,)),)
    )
    _, both = ask(service({"model.skops": models.classifier_skops()}, shaped), {"inputs": rows})
    assert [pair[1] for pair in both["outputs"]] == probabilities
    kind, free = ask(
        service({"model.skops": models.classifier_skops()}, None), {"inputs": [[20, 50], [80, 50]]}
    )
    assert (kind, free) == (Kind.ANSWER, {"outputs": [False, True]})
    assert (
        ask(service({"model.skops": models.classifier_skops()}, None), {"inputs": [[1, 2, 3]]})[0]
        is Kind.REFUSED
    )


def test_a_converted_classifier_with_two_outputs_is_served() -> None:
    """Labels and a map of probabilities, as converters make them, leave as plain arrays."""
    files = {"model.onnx": models.classifier_onnx()}
    kind, answer = ask(service(files, None), {"inputs": [[0.1, 0.2]]})
    assert kind is Kind.ANSWER
    row = answer["outputs"][0]
    assert len(row) == 2
    assert sum(row["output_probability"]) == pytest.approx(1.0)


@pytest.mark.req("S1")
def test_a_shape_with_the_batch_axis_is_refused_at_load() -> None:
    """The shape that the file itself shows is one axis too many; the error says which to declare."""

    def signature(*shape: int) -> Signature:
        return Signature(inputs=(Field(name="x", type=DataType.FLOAT32, shape=shape),))

    with pytest.raises(errors.Invalid, match=r"without the batch axis: \[2\]"):
        load(ONNX, signature(-1, 2))
    assert ask(service(ONNX, signature(2)), {"inputs": [{"x": [10, 1]}]})[0] is Kind.ANSWER


LOADS: list[tuple[dict[str, bytes], type[errors.ModelkeepError], str]] = [
    ({"model.onnx": b"nonsense"}, errors.Invalid, "cannot load"),
    ({"model.skops": b"nonsense"}, errors.Invalid, "cannot be loaded"),
    ({"model.joblib": b"nonsense"}, errors.Invalid, "cannot be loaded"),
    ({"readme.md": b"hello"}, errors.Invalid, "no model file"),
    ({"a.onnx": b"x", "b.onnx": b"y"}, errors.Invalid, "several"),
]


@pytest.mark.req("S1")
@pytest.mark.parametrize(("files", "kind", "text"), LOADS)
def test_what_cannot_be_loaded_says_why(
    files: dict[str, bytes], kind: type[errors.ModelkeepError], text: str
) -> None:
    """Garbage, no model, and more than one to choose from."""
    with pytest.raises(kind, match=text):
        load(files)


@pytest.mark.req("S1")
def test_a_skops_file_with_foreign_types_is_refused_by_name() -> None:
    """A function of the system inside a pipeline is named, and is not called."""
    import os

    from sklearn.preprocessing import FunctionTransformer
    from skops import io as skops

    data = skops.dumps(FunctionTransformer(func=os.getcwd))
    with pytest.raises(errors.NotAllowed, match=r"posix\.getcwd") as caught:
        load({"model.skops": bytes(data)})
    assert caught.value.details["types"] == ["posix.getcwd"]


def test_an_object_that_predicts_nothing_is_refused() -> None:
    """A transformer is no model."""
    import io

    import joblib
    from sklearn.preprocessing import StandardScaler

    buffer = io.BytesIO()
    joblib.dump(StandardScaler(), buffer)
    with pytest.raises(errors.Invalid, match="predicts nothing"):
        load({"model.joblib": buffer.getvalue()})


@pytest.mark.hostile("foreign-models")
@pytest.mark.req("S6")
@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        ("[][1]", Kind.FAILED, "IndexError"),
        ("__import__('sys').exit(3)", Kind.FAILED, "SystemExit"),
        ("None", Kind.FAILED, "Error"),
        ("'text'", Kind.FAILED, "Error"),
        (models.BREAKS_SIGNATURE, Kind.VIOLATION, "must be float32"),
        (f"{models.ECHO}[:0]", Kind.VIOLATION, "0 rows for 1"),
        (f"{models.ECHO} * float('nan')", Kind.VIOLATION, "not a finite"),
        (f"[print('noise'), {models.ECHO}][1]", Kind.ANSWER, "outputs"),
    ],
)
def test_a_model_that_misbehaves_is_to_blame_itself(code: str, kind: Kind, text: str) -> None:
    """Raising, exiting, and answers that break the signature are the version's fault, and the worker goes
    on."""
    made = service({"model.joblib": models.misbehaving(code)})
    answer = ask(made, {"inputs": [[1, 2]]})
    assert answer[0] is kind, answer
    assert text in str(answer[1])
    assert ask(made, {"inputs": [[1, "x"]]})[0] is Kind.REFUSED


def test_outputs_that_can_never_fit_fail_the_load() -> None:
    """A version whose output has another type is found by the warm-up, before anybody asks it."""
    with pytest.raises(errors.Invalid, match="do not fit the signature"):
        service({"model.joblib": models.misbehaving(models.BREAKS_SIGNATURE)}).warm_up()
    raising = service({"model.joblib": models.misbehaving("[][1]")})
    assert not raising.warm_up()


def test_what_expired_in_the_queue_is_not_computed() -> None:
    """A request whose deadline has passed costs nothing."""
    made = service({"model.joblib": models.misbehaving("[][1]")})
    assert ask(made, {"inputs": [[1, 2]]}, deadline_s=-0.001) == (Kind.EXPIRED, "")


def test_bad_requests_have_their_status() -> None:
    """400 for what is no document, 413 for too much, 422 for what breaks the signature."""
    made = service(ONNX)
    assert ask(made, b"{")[1]["status"] == 400
    assert ask(made, {"inputs": [{"age": 200, "income": 0}]})[1] == {
        "status": 422,
        "code": "INVALID_INPUT",
        "detail": "In row 0, field 'age': expected float <= 150.0.",
        "row": 0,
        "field": "age",
    }


def test_inputs_by_name_reach_a_graph_with_named_inputs() -> None:
    """Strings, integers and floats each in their own tensor, as converters of pipelines make them."""
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["f", "x"], ["sum"]),
            helper.make_node("Identity", ["s"], ["same"]),
        ],
        "named",
        [
            helper.make_tensor_value_info("n", TensorProto.INT64, ["b", 1]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 1]),
            helper.make_tensor_value_info("s", TensorProto.STRING, ["b", 1]),
        ],
        [
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["b", 1]),
            helper.make_tensor_value_info("same", TensorProto.STRING, ["b", 1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    signature = Signature(
        inputs=(
            Field(name="s", type=DataType.STRING, nullable=True),
            Field(name="x", type=DataType.FLOAT64),
            Field(name="n", type=DataType.INT32, nullable=True),
        ),
        outputs=(Field(name="same", type=DataType.STRING), Field(name="sum", type=DataType.FLOAT32)),
    )
    made = service({"model.onnx": model.SerializeToString()}, signature)
    assert made.warm_up()
    kind, answer = ask(made, {"inputs": [{"s": "a", "x": 1.5, "n": 2}]})
    assert (kind, answer) == (Kind.ANSWER, {"outputs": [{"same": "a", "sum": 3.5}]})
    for row in ({"s": None, "x": 1.5, "n": 2}, {"s": "a", "x": 1.5, "n": None}):
        kind, problem = ask(made, {"inputs": [row]})
        assert (kind, problem["status"]) == (Kind.REFUSED, 422)
        assert "missing value" in problem["detail"]


def test_the_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence with what to install, not an import error."""
    import sys

    monkeypatch.delitem(sys.modules, "modelkeep.serving.runtimes.onnx", raising=False)
    monkeypatch.delattr(runtimes, "onnx", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(errors.ExtraMissing, match=r"modelkeep\[onnx\]"):
        load(ONNX)


def test_a_runtime_can_be_named() -> None:
    """With several kinds of file the version's own word decides."""
    files = {"a.onnx": b"x", "b.skops": b"y"}
    spec = models.spec(files, "1.0.0")
    assert runtimes.choose(structs.replace(spec, runtime="skops"), files) == ("b.skops", "skops")


FOLDERS: list[tuple[str, dict[str, bytes], tuple[str, str] | str]] = [
    ("sklearn: {pickled_model: m.pkl}", {"m.pkl": b"", "model.skops": b""}, ("m.pkl", "joblib")),
    ("onnx: {data: m/net.onnx}", {"m/net.onnx": b"", "code/model.pkl": b""}, ("m/net.onnx", "onnx")),
    ("sklearn: {pickled_model: gone.pkl}", {"model.skops": b""}, ("model.skops", "skops")),
    ("lightgbm: {data: model.pkl}", {"model.pkl": b""}, ("model.pkl", "joblib")),
    ("xgboost: {data: model.json}", {"model.json": b""}, ("model.json", "xgboost")),
    ("sklearn: {pickled_model: m.pkl}", {"m.pkl": b"", "m.onnx": b""}, ("m.onnx", "onnx")),
    ("keras: {data: model.keras}", {"model.keras": b""}, "the flavor keras, which"),
    ("python_function: {loader_module: x}", {"model.keras": b""}, ("MLmodel", "pyfunc")),
    (
        "python_function: {loader_module: mlflow.pyfunc.model}",
        {"python_model.pkl": b""},
        ("MLmodel", "pyfunc"),
    ),
    ("[]", {"model.skops": b""}, ("model.skops", "skops")),
    ("sklearn: {", {"model.skops": b""}, ("model.skops", "skops")),
    ("{a: 1, python_function: [], b: {}}", {"x.txt": b""}, "the flavors a, b, which"),
]


CHOICES: list[tuple[dict[str, bytes], tuple[str, str] | str]] = [
    ({"model.joblib": b"", "model.onnx": b"", "model.skops": b""}, ("model.onnx", "onnx")),
    ({"m.joblib": b"", "m.onnx": b""}, ("m.onnx", "onnx")),
    ({"a.joblib": b"", "b.onnx": b""}, "several"),
    ({"model.onnx": b"", "weights.pt": b""}, ("model.onnx", "onnx")),
    ({"weights.pt": b""}, ("weights.pt", "torch")),
    ({"m.json": b'{"learner":{', "config.json": b"{}", "notes.txt": b"hello"}, ("m.json", "xgboost")),
    ({"m.txt": b"tree\nversion=v4", "requirements.txt": b"a==1"}, ("m.txt", "lightgbm")),
    ({"predictor.py": b"", "model.onnx": b""}, ("predictor.py", "python")),
    ({"code/predictor.py": b"", "model.onnx": b""}, ("model.onnx", "onnx")),
    (
        {"predictor.py": b"", "MLmodel": b"flavors: {onnx: {data: m.onnx}}", "m.onnx": b""},
        ("predictor.py", "python"),
    ),
]


@pytest.mark.req("S1")
@pytest.mark.parametrize(("files", "wanted"), CHOICES)
def test_the_model_is_found_among_the_files(files: dict[str, bytes], wanted: tuple[str, str] | str) -> None:
    """The same model as ONNX is preferred; files that only may be models do not stand in a model's way; a
    class of somebody's own says how all the others are used."""
    spec = models.spec(files, "1.0.0")
    if isinstance(wanted, tuple):
        assert runtimes.choose(spec, files) == wanted
    else:
        with pytest.raises(errors.Invalid, match=wanted):
            runtimes.choose(spec, files)


@pytest.mark.req("S1")
@pytest.mark.parametrize(
    "files",
    [{"predictor.py": b"raise KeyError"}, {"MLmodel": b"flavors: {python_function: {loader_module: x}}"}],
)
def test_code_runs_only_where_it_is_allowed(files: dict[str, bytes]) -> None:
    """Without the option, code of somebody's own is refused before a line of it runs."""
    with pytest.raises(errors.NotAllowed, match="--allow-code"):
        load(files)


@pytest.mark.req("S1")
@pytest.mark.parametrize(("flavors", "files", "wanted"), FOLDERS)
def test_a_folder_of_mlflow_says_which_file_is_the_model(
    flavors: str, files: dict[str, bytes], wanted: tuple[str, str] | str
) -> None:
    """What its file names is loaded; what no worker can load is refused with the flavor and a way out; a file
    that says nothing, or nonsense, changes nothing."""
    files = {**files, "MLmodel": f"flavors:\n  {flavors}\n".encode()}
    spec = models.spec(files, "1.0.0")
    if isinstance(wanted, tuple):
        assert runtimes.choose(spec, files) == wanted
    else:
        with pytest.raises(errors.Invalid, match=wanted):
            runtimes.choose(spec, files)


@pytest.mark.req("S2")
def test_requests_that_wait_share_a_call_and_nothing_else() -> None:
    """Every door, one call, each its own rows; who is refused by the signature, makes the model raise, or is
    answered against the signature is so by itself."""
    bodies = [
        (Door.PREDICT, b'{"inputs": [{"age": 10, "income": 1}]}'),
        (Door.INVOCATIONS, b'{"instances": [[20, 1], [30, 1]]}'),
        (Door.PREDICT, b'{"inputs": {"age": [40], "income": [1]}}'),
        (Door.PREDICT, b'{"inputs": [[500, 1]]}'),
        (Door.INVOCATIONS_CSV, b"age,income\n50,1\n"),
    ]
    good = [
        (Kind.ANSWER, {"outputs": [11.0]}),
        (Kind.ANSWER, {"predictions": [21.0, 31.0]}),
        (Kind.ANSWER, {"outputs": {"score": [41.0]}}),
    ]
    found = answers(service({"model.onnx": models.linear_onnx(1.0)}), bodies)
    assert found[:3] == good
    assert (found[3][0], found[3][1]["field"]) == (Kind.REFUSED, "age")
    assert found[4] == (Kind.ANSWER, {"predictions": [51.0]})
    poisoned = [(Door.PREDICT, b'{"inputs": [[%d, 1]]}' % age) for age in (10, 20, 120, 30)]
    for misbehaviour, kind in (
        (models.RAISES_ABOVE_100, Kind.FAILED),
        (models.ODD_OUTPUT_ABOVE_100, Kind.VIOLATION),
    ):
        found = answers(service({"model.joblib": models.misbehaving(misbehaviour)}), poisoned)
        assert [kind for kind, _ in found] == [Kind.ANSWER, Kind.ANSWER, kind, Kind.ANSWER], misbehaviour


@pytest.mark.req("S2")
def test_a_version_whose_rows_know_each_other_gets_one_request_a_call() -> None:
    """A fixed first axis, a mean over the rows, one answer for all rows: found out while loading where the
    signature tells what to try, else by the first answer; nobody's answer depends on who else asked."""
    mean = models.misbehaving("x[:, 0] - x[:, 0].sum() / 2")
    made = service({"model.joblib": mean})
    assert made.together
    assert made.warm_up()
    assert not made.together
    total = service({"model.joblib": models.misbehaving("x.sum(axis=0)[:1]")}, None)
    bodies = [(Door.PREDICT, b'{"inputs": [[%d, 1]]}' % age) for age in (10, 20, 30)]
    assert [answer for _, answer in answers(total, bodies)] == [
        {"outputs": [value]} for value in (10.0, 20.0, 30.0)
    ]
    assert not total.together
    assert not service({"model.onnx": models.linear_onnx(1.0, rows=1)}, None).together
    assert service({"model.onnx": models.linear_onnx(1.0)}, None).together
