"""Every difference from MLflow's server that the reference names is tested, and no other one is.

Tests name a difference by its word: on a step of a conversation with both servers, in a rule by which two
conversations are compared, or in a mark (`@pytest.mark.differs("relied-on")`).
"""

import re
from pathlib import Path

from tests.journeys.test_mlflow_talk import MEANT, TAKEN_OUT
from tests.test_claims import TESTS, marked_with, parsed
from tests.web.mlflow_registry_table import WORDS
from tests.web.mlflow_tracking_steps import STEPS

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "mlflow.md"


def test_each_difference_is_named_by_the_reference_and_by_a_test() -> None:
    """The words of the tables are those of the tests."""
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|", REFERENCE.read_text(encoding="utf-8"), re.MULTILINE)
    told = set(rows)
    marked = set().union(*(marked_with(tree, "differs") for tree in parsed(TESTS).values()))
    compared = {step.differs for step in STEPS if step.differs} | set(WORDS.values())
    assert len(rows) == len(told), "a word means one difference"
    assert told == marked | compared | TAKEN_OUT.keys() | MEANT.keys()
