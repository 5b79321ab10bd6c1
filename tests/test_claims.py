"""What the documentation claims is tested: each invariant by a property, each capability by a named test.

Only names are compared here. Whether a test deserves the name it bears is for whoever reads it.
"""

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
INVARIANTS = ROOT / "docs" / "explanation" / "invariants.md"
CAPABILITIES = ROOT / "docs" / "reference" / "capabilities.md"
NUMBERED = re.compile(r"^\| (\d+) \|", re.MULTILINE)
HOSTILE = ROOT / "docs" / "explanation" / "hostile-input.md"
CLASSES = re.compile(r"^\| `([a-z-]+)` \|", re.MULTILINE)
IDENTIFIED = re.compile(r"^\| ([TVGSMIU]\d+) \|", re.MULTILINE)
NAMED = re.compile(r"^Invariant (\d+): ")
CHECKS = ("assert ", "with pytest.raises(")


@functools.cache
def parsed(folder: Path) -> dict[str, ast.Module]:
    """The test files below a folder."""
    return {str(file.relative_to(TESTS)): ast.parse(file.read_text()) for file in folder.rglob("test_*.py")}


def functions(tree: ast.Module) -> list[ast.FunctionDef]:
    """All functions and methods of a file."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def invariants_named(tree: ast.Module) -> set[int]:
    """The invariants that functions of a file name in their docstrings, if they check something."""
    named = set()
    for function in functions(tree):
        claim = NAMED.match(ast.get_docstring(function) or "")
        if claim and any(check in ast.unparse(function) for check in CHECKS):
            named.add(int(claim[1]))
    return named


@functools.cache
def marked_with(tree: ast.Module, mark: str = "req") -> set[str]:
    """The words in the marks of a file."""
    return {
        word.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"pytest.mark.{mark}"
        for word in node.args
        if isinstance(word, ast.Constant)
    }


def test_both_readers_see_what_they_are_for() -> None:
    """A name in a docstring counts where something is checked, and every id of a mark is seen."""
    tree = ast.parse(
        "@pytest.mark.req('V1', 'V2')\n"
        "def test_a():\n    'Invariant 3: it holds.'\n    assert True\n"
        "def test_b():\n    'Invariant 4: it holds.'\n"
        "def test_c():\n    'No Invariant 5: at all.'\n    assert True\n"
    )
    assert invariants_named(tree) == {3}
    assert marked_with(tree) == {"V1", "V2"}


def test_every_invariant_is_a_property_test() -> None:
    """Each row of the page is named by a property test, and no property test names another number."""
    files = parsed(TESTS / "properties")
    named = set().union(*(invariants_named(tree) for tree in files.values()))
    listed = {int(number) for number in NUMBERED.findall(INVARIANTS.read_text())}
    assert listed == set(range(1, 14))
    assert named == listed


def test_a_file_that_names_invariants_tests_properties() -> None:
    """An invariant is checked over what hypothesis makes up, or over all there is of something."""
    for name, tree in parsed(TESTS / "properties").items():
        if invariants_named(tree):
            source = ast.unparse(tree)
            assert "hypothesis" in source, name


def test_every_capability_that_is_claimed_has_a_test() -> None:
    """An id in a table of any page is named by a test's mark."""
    marked = set().union(*(marked_with(tree) for tree in parsed(TESTS).values()))
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    claimed = {found for page in pages for found in IDENTIFIED.findall(page.read_text())}
    assert claimed
    assert not claimed - marked, "no test's mark names these"


def test_every_id_that_a_test_names_is_explained() -> None:
    """Whoever reads `req("V3")` finds what it stands for; a new id gets a row in the page of capabilities."""
    marked = set().union(*(marked_with(tree) for tree in parsed(TESTS).values()))
    unexplained = marked - set(IDENTIFIED.findall(CAPABILITIES.read_text()))
    assert not unexplained, "say in docs/reference/capabilities.md what these stand for"


def test_every_class_of_attack_has_a_test() -> None:
    """A class that the page explains is named by a test's mark, and no test names another one."""
    named = set().union(*(marked_with(tree, "hostile") for tree in parsed(TESTS).values()))
    assert named == set(CLASSES.findall(HOSTILE.read_text()))
