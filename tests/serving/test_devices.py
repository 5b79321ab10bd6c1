"""On what versions compute: what can be wished for, which cards there are, who gets which, and what each
runtime makes of one.

No test here sees a card: what libraries say of theirs is put in their mouths, at the calls by which they are
asked. What a worker does where they cannot compute on one is seen whole, in real processes.
"""

import asyncio
import io
import resource
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import errors
from modelkeep.core.observation import VersionPhase, VersionReport
from modelkeep.core.routing import VersionSpec
from modelkeep.core.signature import Signature
from modelkeep.serving import runtimes
from modelkeep.serving.cache import Cache
from modelkeep.serving.devices import VISIBLE, Card, Cards, Device, Wish, read_wish, there
from modelkeep.serving.options import GatewayOptions
from modelkeep.serving.units import Owner, VersionUnit
from modelkeep.serving.workers import WorkerUnit
from tests.serving import models

pytestmark = pytest.mark.req("S2")

TWO = (Card(0, "4"), Card(1, "GPU-7f"))


# ------------------------------------------------------------------------------------------- wishes and cards


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("auto", Wish(Device.AUTO)),
        ("cpu", Wish(Device.CPU)),
        ("cuda", Wish(Device.CUDA)),
        ("cuda:2,0,2", Wish(Device.CUDA, (2, 0))),
    ],
)
def test_a_wish_is_read(text: str, wish: Wish) -> None:
    """The words of the command line, and the cards that were named, each once."""
    assert read_wish(text) == wish


@pytest.mark.parametrize(
    "text", ["", "gpu", "CUDA", "cpu:0", "auto:1", "cuda:", "cuda:-1", "cuda:a", "cuda:1,"]
)
def test_what_is_no_device_is_refused_with_those_that_are(text: str) -> None:
    """A misspelt device stops the start, in a sentence that names the words."""
    with pytest.raises(errors.InvalidSetting, match="auto, cpu, cuda, or cuda:0,2"):
        read_wish(text)


def test_cards_are_those_the_driver_shows_unless_the_environment_names_others(tmp_path: Path) -> None:
    """Numbered from 0 whatever they are called, as CUDA numbers them; and no further than CUDA reads."""
    for name in ("nvidia0", "nvidia7", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert [(card.label, card.name) for card in there({}, tmp_path)] == [("cuda:0", "0"), ("cuda:1", "1")]
    assert there({VISIBLE: "4, GPU-7f,-1,5"}, tmp_path) == TWO
    assert there({VISIBLE: "4,4,GPU-7f,4"}, tmp_path) == TWO
    for none in ("", "NoDevFiles", "void", "-1"):
        assert there({VISIBLE: none}, tmp_path) == ()
    assert there({}, tmp_path / "missing") == ()


@given(st.integers(1, 5), st.lists(st.booleans(), max_size=40))
def test_processes_spread_over_the_cards(number: int, comings: list[bool]) -> None:
    """Whoever comes and goes, whoever comes next gets a card that nobody has more rarely."""
    cards = Cards(Wish(Device.CUDA), tuple(Card(i, str(i)) for i in range(number)))
    held: list[Card] = []
    for comes in comings:
        if comes:
            counts = Counter(held)
            card = cards.take()
            assert card is not None
            assert counts[card] == min(counts[other] for other in cards)
            held.append(card)
        elif held:
            cards.give_back(held.pop(len(held) // 2))


def test_where_there_is_no_card_auto_is_the_processor_and_a_named_card_an_error() -> None:
    """What was left open falls to what there is; what was said is not silently something else."""
    assert Cards(Wish(), ()).device is Device.CPU
    assert Cards(Wish(), TWO).device is Device.AUTO
    assert Cards(Wish(Device.CUDA), ()).take() is None
    assert Cards(Wish(Device.CUDA), ()).device is Device.CUDA
    with pytest.raises(errors.InvalidSetting, match=r"no card 2: this gateway can see 2"):
        Cards(Wish(Device.CUDA, (0, 2)), TWO)
    only = Cards(Wish(Device.CUDA, (1,)), TWO)
    assert [only.take(), only.take()] == [TWO[1], TWO[1]]


def test_a_process_sees_its_own_card_and_without_one_none() -> None:
    """By CUDA's own variable; what the gateway was told of libraries goes to those alone that have a card."""
    said = {VISIBLE: "4,GPU-7f", "LD_LIBRARY_PATH": "/cuda"}
    cards = Cards(Wish(), TWO, said)
    assert cards.environment(TWO[1], on_card=True) == {VISIBLE: "GPU-7f", "LD_LIBRARY_PATH": "/cuda"}
    assert cards.environment(None, on_card=False) == {VISIBLE: ""}
    counted = Cards(Wish(), TWO).environment(TWO[0], on_card=True)
    assert counted == {VISIBLE: "4", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


# -------------------------------------------------------------------------------------------------- runtimes


def load(files: dict[str, bytes], signature: Signature | None, device: Device) -> runtimes.Runtime:
    """A runtime of these files on a device."""
    spec = models.spec(files, "1.0.0", signature=signature)
    return runtimes.load(spec, files, Path("/nowhere"), 1, device=device)


@pytest.mark.parametrize(
    ("path", "data", "word"),
    [
        ("model.onnx", b"..ai.onnx.ml..ai.onnx.ml..", "ONNX Runtime computes trees"),
        ("model.onnx", b"convolutions", None),
        ("model.pt2", b"", None),
        ("model.ubj", b"", None),
        ("predictor.py", b"", None),
        ("model.lgb", b"", "LightGBM computes on the processor"),
        ("model.skops", b"", "scikit-learn computes on the processor"),
        ("model.joblib", b"", "scikit-learn computes on the processor"),
    ],
)
def test_what_gains_nothing_by_a_card_stays_where_it_is_with_a_word(
    path: str, data: bytes, word: str | None
) -> None:
    """Known from the files alone, before a library is imported."""
    found = runtimes.left_on_cpu(models.spec({path: data}, "1.0.0"), {path: data})
    assert (found or "").startswith(word or "")
    assert (found is None) == (word is None)


def test_a_graph_of_classic_operators_stays_on_the_processor() -> None:
    """Its graph says what its operators are; that of a net says nothing of the kind, also where it names the
    operators that it might use, as what ONNX Runtime has written does."""
    from onnx import TensorProto, helper

    node = helper.make_node("Scaler", ["x"], ["score"], domain="ai.onnx.ml", scale=[2.0, 1.0])
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "score")]
    graph = helper.make_graph([node], "scaler", tensors[:1], tensors[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 3)], ir_version=8)
    classic, net = {"model.onnx": made.SerializeToString()}, {"model.onnx": models.linear_onnx()}
    assert runtimes.left_on_cpu(models.spec(classic, "1.0.0"), classic) is not None
    assert runtimes.left_on_cpu(models.spec(net, "1.0.0"), net) is None
    names = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["score"])], "relu", tensors[:1], tensors[1:])
    relu = helper.make_model(graph, opset_imports=names, ir_version=8)
    naming = {"model.onnx": relu.SerializeToString()}
    assert runtimes.left_on_cpu(models.spec(naming, "1.0.0"), naming) is None


class Session:
    """An ONNX Runtime that says it has cards; it computes on the processor all the same."""

    given: Any = None

    def __init__(self, source: Any, options: Any, providers: list[Any]) -> None:
        type(self).given = providers
        self._session = REAL_SESSION(source, options, providers=["CPUExecutionProvider"])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


class Started(Session):
    """Its cards' provider started."""

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]


onnxruntime = pytest.importorskip("onnxruntime", reason="the runtimes are extras")
REAL_SESSION = onnxruntime.InferenceSession
NET = {"model.onnx": models.linear_onnx(2.0)}


def test_an_onnx_session_takes_the_card_where_the_library_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first card that the process sees, in full precision, and the processor for what is not done there;
    where the provider is missing, or does not start, that is said."""
    with pytest.raises(errors.WorkerUnavailable, match="install onnxruntime-gpu"):
        load(NET, models.SIGNATURE, Device.CUDA)
    there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Started)
    runtime = load(NET, models.SIGNATURE, Device.CUDA)
    (first, options), second = Started.given
    assert [first, second] == there
    assert (options["device_id"], options["use_tf32"]) == ("0", "0")
    columns = {"age": np.array([10.0], "float32"), "income": np.array([1.0], "float32")}
    assert runtime.predict(columns)["score"].tolist() == [21.0]
    load(NET, models.SIGNATURE, Device.CPU)
    assert Started.given == ["CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(errors.WorkerUnavailable, match="CUDA provider did not start"):
        load(NET, models.SIGNATURE, Device.CUDA)


def boosted() -> bytes:
    """A small XGBoost model."""
    xgboost = pytest.importorskip("xgboost", reason="the runtimes are extras")
    rows = np.arange(20.0).reshape(10, 2)
    booster = xgboost.train({"max_depth": 2}, xgboost.DMatrix(rows, rows[:, 0] > 9), num_boost_round=3)
    return bytes(booster.save_raw("ubj"))


@pytest.mark.filterwarnings("ignore::UserWarning")  # the library's own: it finds no card
def test_a_booster_takes_the_card_where_the_library_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its parameter; where the build has no cards, or the machine none, that is said. Its answers are the
    same by the way that rows go to a card."""
    import xgboost

    files = {"model.ubj": boosted()}
    with pytest.raises(errors.WorkerUnavailable, match="built without CUDA"):
        load(files, None, Device.CUDA)
    monkeypatch.setattr(xgboost, "build_info", lambda: {"USE_CUDA": True})
    with pytest.raises(errors.WorkerUnavailable, match="it finds none"):  # as without a card it says itself
        load(files, None, Device.CUDA)
    real, said = xgboost.Booster, []

    class Carded(real):  # type: ignore[misc, valid-type]  # the library's own class, as it is
        """Says that it is on a card when it was told to be."""

        def set_param(self, params: Any, value: Any = None) -> None:
            said.append(params)

        def save_config(self) -> str:
            text: str = super().save_config()
            return text.replace('"device":"cpu"', '"device":"cuda:0"')

    monkeypatch.setattr(xgboost, "Booster", Carded)
    rows = {"": np.arange(8.0).reshape(4, 2)}
    on_card = load(files, None, Device.CUDA).predict(rows)
    assert said[-1]["device"] == "cuda"
    monkeypatch.setattr(xgboost, "Booster", real)
    plain = load(files, None, Device.CPU).predict(rows)
    assert np.array_equal(on_card["prediction"], plain["prediction"])


class Tensor:
    """A tensor that knows where it lies; numpy cannot read it on a card."""

    def __init__(self, array: Any, place: str) -> None:
        self.array, self.place = array, place

    def to(self, place: str) -> "Tensor":
        return Tensor(self.array, place)

    def detach(self) -> "Tensor":
        return self

    def cpu(self) -> "Tensor":
        return Tensor(self.array, "cpu")

    def numpy(self) -> Any:
        assert self.place == "cpu"
        return self.array


class Program:
    """A TorchScript program; it takes tensors that lie where it lies."""

    def __init__(self, place: str) -> None:
        self.place = place
        argument = SimpleNamespace(name="x", has_default_value=lambda: False)
        self.forward = SimpleNamespace(schema=SimpleNamespace(arguments=[None, argument]))

    def eval(self) -> "Program":
        return self

    def __call__(self, x: Tensor) -> Tensor:
        assert x.place == self.place
        return Tensor(x.array.sum(axis=1), self.place)


def fake_torch(*, cards: bool) -> ModuleType:
    """As much of PyTorch as serving a TorchScript program takes."""
    made: Any = ModuleType("torch")
    made.Tensor = Tensor
    made.cuda = SimpleNamespace(is_available=lambda: cards)
    made.backends = SimpleNamespace(cudnn=SimpleNamespace(allow_tf32=True))
    made.jit = SimpleNamespace(load=lambda data, map_location: Program(map_location))
    made.from_numpy = lambda array: Tensor(array, "cpu")
    made.inference_mode = io.BytesIO  # something to be entered and left
    made.set_num_threads = made.set_num_interop_threads = lambda number: None
    return cast(ModuleType, made)


def archive() -> bytes:
    """What begins like a TorchScript program."""
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("model/code/x.py", "")
    return buffer.getvalue()


def test_a_program_its_inputs_and_its_answers_move_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model goes to the card and each request's tensors too; what comes of them is brought back."""
    name = "modelkeep.serving.runtimes.torch"
    files, rows = {"model.ts": archive()}, {"": np.array([[1.0, 2.0]])}
    kept = sys.modules.pop(name, None)
    try:
        for device, cards in ((Device.CUDA, True), (Device.CPU, True), (Device.CPU, False)):
            made = fake_torch(cards=cards)
            monkeypatch.setitem(sys.modules, "torch", made)
            sys.modules.pop(name, None)
            vars(runtimes).pop("torch", None)
            found = load(files, None, device).predict(rows)
            assert found["prediction"].tolist() == [3.0]
            assert cast(Any, made).backends.cudnn.allow_tf32 is (device is Device.CPU)
        with pytest.raises(errors.WorkerUnavailable, match="PyTorch cannot compute on a card here"):
            load(files, None, Device.CUDA)
    finally:
        sys.modules.pop(name, None)
        if kept is not None:
            sys.modules[name] = kept
        vars(runtimes).pop("torch", None)


# ------------------------------------------------------------------------------------------------- processes


class Watcher:
    """Who is told of every phase."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.options = GatewayOptions(data=folder, allow_code=True, **options)
        self.changed = asyncio.Event()

    def version_changed(self, unit: VersionUnit) -> None:
        self.changed.set()

    def worker_changed(self, unit: VersionUnit, worker: WorkerUnit) -> None:
        self.changed.set()

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


PREDICTOR = b"""
import os
class Predictor:
    def __init__(self, folder):
        if os.environ.get("CUDA_VISIBLE_DEVICES") == "broken":
            raise RuntimeError("CUDA error: no kernel image")
    def predict(self, columns):
        return columns["age"]
"""
LIMIT = 8 << 30


async def settled(
    folder: Path, files: dict[str, bytes], cards: Cards, *, workers: int = 1, limit_bytes: int = LIMIT
) -> tuple[VersionReport, list[str], list[int]]:
    """Have a version loaded, or fail; how it then stands, what its workers compute on, and to how much memory
    the system holds those that serve."""
    blobs = models.blobs(files)
    watcher = Watcher(folder, worker_memory_bytes=limit_bytes)
    spec: VersionSpec = models.spec(files, "1.0.0")
    cache, loads = Cache(folder / "cache"), asyncio.Semaphore(2)
    unit = VersionUnit(
        cast(Owner, watcher), spec, cache, lambda digest: iter([blobs[digest]]), folder / "w", loads,
        cards=cards,
    )  # fmt: skip
    unit.start(workers)
    try:
        async with asyncio.timeout(60):
            while len(unit.ready) < workers and unit.phase is not VersionPhase.FAILED:
                await watcher.changed.wait()
                watcher.changed.clear()
        limits = [resource.prlimit(worker.pid, resource.RLIMIT_AS)[0] for worker in unit.ready]
        return unit.report(), [worker.device for worker in unit.workers], limits
    finally:
        await unit.stop(grace_s=0)


def test_a_version_that_cannot_compute_on_a_card_is_served_by_the_processor(tmp_path: Path) -> None:
    """Where that was left open: it is tried once, a new process takes its place, and why is told."""
    cards = Cards(Wish(), TWO)
    report, devices, limits = asyncio.run(settled(tmp_path, NET, cards))
    assert (report.phase, devices, report.devices) == (VersionPhase.READY, ["cpu"], ("cpu",))
    assert report.device_word is not None
    assert "install onnxruntime-gpu" in report.device_word
    assert report.crashes == 0
    assert limits == [LIMIT]
    assert [cards.take(), cards.take()] == list(TWO)  # none is held for it


def test_a_version_that_was_to_compute_on_a_card_and_cannot_is_not_loaded(tmp_path: Path) -> None:
    """Where a card was asked for, the processor is no answer."""
    report, *_ = asyncio.run(settled(tmp_path, NET, Cards(Wish(Device.CUDA), TWO)))
    assert report.phase is VersionPhase.FAILED
    assert "install onnxruntime-gpu" in (report.error or "")


def test_workers_of_one_version_have_a_card_each(tmp_path: Path) -> None:
    """Two processes of somebody's own code, two cards; that only the code knows what it does there is
    said."""
    files = {"predictor.py": PREDICTOR}
    report, devices, limits = asyncio.run(settled(tmp_path, files, Cards(Wish(), TWO), workers=2))
    assert report.phase is VersionPhase.READY
    assert sorted(devices) == ["cuda:0", "cuda:1"]
    assert limits == [resource.RLIM_INFINITY] * 2  # the gateway looks at what is resident instead
    assert "own code's business" in (report.device_word or "")


def test_a_version_that_breaks_on_its_card_is_loaded_beside_it(tmp_path: Path) -> None:
    """Whatever goes wrong there: another process, which sees none, has the version."""
    broken = Cards(Wish(), (Card(0, "broken"),))
    report, devices, _ = asyncio.run(settled(tmp_path, {"predictor.py": PREDICTOR}, broken))
    assert (report.phase, devices) == (VersionPhase.READY, ["cpu"])
    assert "no kernel image" in (report.device_word or "")


HOLDS_MUCH = b"""
import time
import numpy
class Predictor:
    def __init__(self, folder):
        self.kept = numpy.ones(50_000_000)  # resident, all of it
        time.sleep(60)
"""


@pytest.mark.hostile("foreign-models")
def test_a_process_on_a_card_is_held_to_its_limit_by_what_is_resident(tmp_path: Path) -> None:
    """The system cannot, for CUDA maps far more than it uses: the process is ended, and why is told."""
    cards, limit_bytes = Cards(Wish(Device.CUDA), TWO), 256 << 20
    given = {"predictor.py": HOLDS_MUCH}
    report, *_ = asyncio.run(settled(tmp_path, given, cards, limit_bytes=limit_bytes))
    assert report.phase is VersionPhase.FAILED
    assert "raise --worker-memory" in (report.error or "")
