"""What every runtime must do, as one suite: subclass `RuntimeContract` and give it a `backend`.

It checks the promises of `modelkeep.serving.runtimes.Runtime` on a small model of two columns, age and
income, and nothing that one library alone has.
"""

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import psutil
import pytest

from modelkeep.core import errors
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.serving import runtimes, validation
from modelkeep.serving.validation import Array, Columns
from tests.serving import models

INPUTS = (Field(name="age", type=DataType.FLOAT32), Field(name="income", type=DataType.FLOAT32))
SCORE = Field(name="score", type=DataType.FLOAT32)
SIGNATURE = Signature(inputs=INPUTS, outputs=(SCORE,))
ROWS = 64


def some_columns(rows: int = ROWS, seed: int = 3) -> Columns:
    """Columns as the worker hands them over."""
    random = np.random.default_rng(seed)
    return {
        "age": random.uniform(18, 90, rows).astype("float32"),
        "income": random.normal(50, 10, rows).astype("float32"),
    }


def training_rows() -> Array:
    """The same, as people train with them: [rows, 2]."""
    return np.column_stack(list(some_columns(200, seed=7).values()))


class Backend(ABC):
    """How the suite comes by models of one runtime."""

    kind: str
    knows_width: bool = True
    """Whether a model knows how many values a row has."""
    damages: tuple[bytes, ...] = (b"", b"nonsense", b"\x00" * 4096)
    """What no model is."""

    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """The files of a version whose score is `expected`; the model's own comes first."""

    @abstractmethod
    def expected(self, rows: Array) -> Array:
        """What the library itself answers to [rows, 2]."""

    def load(self, files: dict[str, bytes], signature: Signature | None, folder: Path) -> runtimes.Runtime:
        """Load them as a worker does."""
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        spec = models.spec(files, "1.0.0", signature=signature)
        return runtimes.load(spec, files, folder, 1, allow_code=True)

    def threads(self) -> int:
        """Of the process that loads them."""
        return psutil.Process().num_threads()


class RuntimeContract(ABC):
    """The suite."""

    @pytest.fixture
    @abstractmethod
    def backend(self) -> Backend:
        """The runtime to test."""

    @pytest.fixture
    def runtime(self, backend: Backend, tmp_path: Path) -> runtimes.Runtime:
        return backend.load(backend.files(), SIGNATURE, tmp_path)

    @pytest.mark.req("S1")
    def test_columns_go_in_and_columns_come_out(self, backend: Backend, runtime: runtimes.Runtime) -> None:
        """The outputs have the names and types of the signature, and are what the library itself answers."""
        columns = some_columns()
        outputs = runtime.predict(columns)
        assert list(outputs) == ["score"]
        assert validation.output_problem(SIGNATURE.outputs, outputs, ROWS) is None
        wanted = backend.expected(np.column_stack(list(columns.values())))
        np.testing.assert_allclose(outputs["score"], wanted, rtol=1e-5)
        assert np.ptp(outputs["score"]) > 0

    @pytest.mark.req("S1")
    def test_rows_do_not_know_of_each_other(self, runtime: runtimes.Runtime) -> None:
        """A row's answer is the same alone, in a batch, and in a batch of another order."""
        columns = some_columns()
        together = runtime.predict(columns)["score"]
        backwards = runtime.predict({name: array[::-1].copy() for name, array in columns.items()})["score"]
        np.testing.assert_allclose(backwards[::-1], together, rtol=1e-5)
        for row in range(0, ROWS, 16):
            alone = runtime.predict({name: array[row : row + 1] for name, array in columns.items()})["score"]
            np.testing.assert_allclose(alone, together[row : row + 1], rtol=1e-5)

    def test_what_was_sent_is_not_changed(self, runtime: runtimes.Runtime) -> None:
        """The columns of a request are the caller's, also after the answer."""
        columns = some_columns()
        before = {name: array.copy() for name, array in columns.items()}
        runtime.predict(columns)
        for name, array in before.items():
            np.testing.assert_array_equal(columns[name], array)

    @pytest.mark.req("S1")
    def test_a_matrix_goes_in_without_a_signature(self, backend: Backend, tmp_path: Path) -> None:
        """Rows as lists are taken in the model's own order, and named fields are never guessed at."""
        runtime = backend.load(backend.files(), None, tmp_path)
        rows = np.column_stack(list(some_columns().values()))
        (answer,) = runtime.predict({"": rows}).values()
        np.testing.assert_allclose(np.asarray(answer).reshape(ROWS), backend.expected(rows), rtol=1e-5)

    @pytest.mark.req("S1")
    def test_another_number_of_values_is_the_callers_fault(self, backend: Backend, tmp_path: Path) -> None:
        """Too few and too many values in a row are refused, and the runtime goes on."""
        if not backend.knows_width:
            pytest.skip("such a model does not say how many values it takes")
        runtime = backend.load(backend.files(), None, tmp_path)
        for width in (1, 3):
            with pytest.raises(errors.InvalidInput):
                runtime.predict({"": np.zeros((2, width), dtype="float32")})
        runtime.predict({"": np.zeros((2, 2), dtype="float32")})

    @pytest.mark.req("S1")
    def test_a_damaged_file_says_so(self, backend: Backend, tmp_path: Path) -> None:
        """Other bytes in the model's place, and half of its own, are an error that names file and version."""
        path, data = next(iter(backend.files().items()))
        for damaged in (*backend.damages, data[: len(data) // 2]):
            with pytest.raises((errors.Invalid, errors.NotAllowed)) as caught:
                backend.load({**backend.files(), path: damaged}, SIGNATURE, tmp_path)
            assert "churn:1.0.0" in caught.value.message

    @pytest.mark.req("S2")
    def test_it_keeps_to_its_threads(self, backend: Backend, tmp_path: Path) -> None:
        """With one thread allowed, loading and a large batch start no other."""
        backend.load(backend.files(), SIGNATURE, tmp_path).predict(
            some_columns()
        )  # the library starts its own
        before = backend.threads()
        backend.load(backend.files(), SIGNATURE, tmp_path).predict(some_columns(20_000))
        assert backend.threads() <= before
