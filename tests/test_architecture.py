"""The house stays as it was planned: floors by import-linter, and by reading the syntax what it cannot say.

Each rule is a function from a parsed file to the places that break it, and each is shown a piece of bad code
first, so that a rule which has gone blind is noticed. Style is not judged here; ruff does that.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "modelkeep"
FILES = sorted(SOURCE.rglob("*.py"))

LINES_MAX = 700
EMPTY_NAMES = frozenset({"utils", "util", "helpers", "helper", "common", "manager", "base", "impl", "misc"})
# What neither `import modelkeep` nor the start of the command line may pay for.
SERVER_LIBRARIES = {"alembic", "jinja2", "obstore", "psycopg", "sqlalchemy", "starlette", "uvicorn", "uvloop"}
SLOW_LIBRARIES = {"httpx", "joblib", "numpy", "onnxruntime", "pandas", "scipy", "sklearn", "skops"}
# Status codes are decided where an error becomes an answer, and nowhere else on the web floor.
STATUS_FILES = frozenset({"web/problems.py", "web/mlflow_api.py"})

Rule = Callable[[ast.Module], Iterator[str]]


def _at(node: ast.AST, what: str) -> str:
    return f"line {getattr(node, 'lineno', 0)}: {what}"


def reads_the_environment(tree: ast.Module) -> Iterator[str]:
    """Find `os.environ`, `os.getenv` and their relatives, however they are imported. To set one variable, for
    libraries that will look at it, is no reading."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    said = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr=attr) if attr in names and id(node) not in said:
                yield _at(node, f"os.{attr}")
            case ast.ImportFrom(module="os", names=aliases):
                yield from (_at(node, f"os.{alias.name}") for alias in aliases if alias.name in names)


def asks_clock_or_chance(tree: ast.Module) -> Iterator[str]:
    """Find calls that give another answer tomorrow: the time of day, and identifiers made by chance."""
    moments = {"now", "utcnow", "today"}
    chances = {"uuid1", "uuid4", "uuid6", "uuid7"}
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=value, attr=attr)) if attr in moments:
                if ast.unparse(value) in {
                    "datetime",
                    "date",
                    "datetime.datetime",
                    "datetime.date",
                    "dt.datetime",
                }:
                    yield _at(node, f"{ast.unparse(value)}.{attr}()")
            case ast.Call(func=ast.Attribute(value=ast.Name(id="uuid"), attr=attr)) if attr in chances:
                yield _at(node, f"uuid.{attr}()")
            case ast.ImportFrom(module="uuid", names=aliases):
                yield from (_at(node, alias.name) for alias in aliases if alias.name in chances)


def opens_or_prints(tree: ast.Module) -> Iterator[str]:
    """Find calls of the builtins that reach outside."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="open" | "print" | "input" | "exec" | "eval" as name)):
                yield _at(node, f"{name}()")


def takes_from_the_face(tree: ast.Module) -> Iterator[str]:
    """Find names other than `__version__` taken from the package's public face by its own inside."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module="modelkeep", names=aliases):
                for alias in aliases:
                    inside = (SOURCE / alias.name).is_dir() or (SOURCE / f"{alias.name}.py").exists()
                    if alias.name != "__version__" and not inside:
                        yield _at(node, f"from modelkeep import {alias.name}")


def writes_a_status(tree: ast.Module) -> Iterator[str]:
    """Find error statuses written as numbers in a call."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(keywords=keywords):
                for word in keywords:
                    match word:
                        case ast.keyword(arg="status" | "status_code", value=ast.Constant(value=int(code))):
                            if code >= 400:
                                yield _at(node, f"{word.arg}={code}")


def _read(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _check(rule: Rule, files: list[Path]) -> None:
    broken = [f"{file.relative_to(SOURCE)}, {place}" for file in files for place in rule(_read(file))]
    assert not broken, "\n".join(broken)


def _below(*parts: str) -> list[Path]:
    return [file for file in FILES if file.is_relative_to(SOURCE.joinpath(*parts))]


@pytest.mark.parametrize(
    ("rule", "bad"),
    [
        (reads_the_environment, "import os\nx = os.environ['A']"),
        (reads_the_environment, "from os import getenv"),
        (asks_clock_or_chance, "from datetime import datetime, UTC\nx = datetime.now(UTC)"),
        (asks_clock_or_chance, "import datetime\nx = datetime.date.today()"),
        (asks_clock_or_chance, "import uuid\nx = uuid.uuid4()"),
        (asks_clock_or_chance, "from uuid import uuid4"),
        (opens_or_prints, "open('x')"),
        (takes_from_the_face, "from modelkeep import Client"),
        (writes_a_status, "Response(b'', status_code=404)"),
    ],
)
def test_each_rule_sees_what_it_is_for(rule: Rule, bad: str) -> None:
    """A piece of bad code is found, so that silence of a rule means something."""
    assert list(rule(ast.parse(bad)))


@pytest.mark.parametrize(
    ("rule", "good"),
    [
        (reads_the_environment, "import os\nx = os.fsync(1)"),
        (reads_the_environment, "import os\nos.environ['A'] = ''"),
        (asks_clock_or_chance, "def f(now, clock):\n    return clock.now() - now"),
        (opens_or_prints, "def f(store):\n    return store.open('x')"),
        (takes_from_the_face, "from modelkeep import __version__, core"),
        (writes_a_status, "Response(b'', status_code=201)\nset(status='failed')"),
    ],
)
def test_no_rule_sees_what_is_not_there(rule: Rule, good: str) -> None:
    """Good code that looks alike is left alone."""
    assert not list(rule(ast.parse(good)))


def test_imports_go_down_the_floors_only() -> None:
    """Every contract of import-linter in pyproject.toml is kept."""
    program = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run(
        [program, "--no-logo", "--no-cache"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_file_says_what_it_is_for() -> None:
    """Each module opens with a docstring."""
    silent = [str(file.relative_to(SOURCE)) for file in FILES if not ast.get_docstring(_read(file))]
    assert not silent


def test_no_file_grows_past_reading() -> None:
    """A file that passes the limit is split by the column it grew in."""
    lengths = {str(file.relative_to(SOURCE)): len(file.read_text().splitlines()) for file in FILES}
    assert not {name: length for name, length in lengths.items() if length > LINES_MAX}


def test_every_name_says_something() -> None:
    """No module or package has a name that would fit anything."""
    names = {part for file in FILES for part in (*file.relative_to(SOURCE).parts[:-1], file.stem)}
    assert not names & EMPTY_NAMES


def test_nothing_is_left_to_do() -> None:
    """No file holds a note that its work is unfinished."""
    notes = re.compile(r"\b(TODO|FIXME)\b")
    assert not [str(file.relative_to(SOURCE)) for file in FILES if notes.search(file.read_text())]


def test_the_environment_is_read_by_the_settings_alone() -> None:
    """Whoever wants to know what can be set reads one file."""
    _check(reads_the_environment, [file for file in FILES if file != SOURCE / "settings.py"])


def test_the_core_asks_neither_clock_nor_chance_nor_disk() -> None:
    """The same arguments give the same answer, for ever."""
    _check(asks_clock_or_chance, _below("core"))
    _check(opens_or_prints, _below("core"))


def test_nothing_inside_leans_on_the_public_face() -> None:
    """The package's own modules import each other by their full names, so that the floors can be seen."""
    _check(takes_from_the_face, [file for file in FILES if file != SOURCE / "__init__.py"])


def test_an_error_becomes_a_status_in_one_place() -> None:
    """On the web floor nobody else answers with an error's number."""
    others = [file for file in _below("web") if str(file.relative_to(SOURCE)) not in STATUS_FILES]
    _check(writes_a_status, others)


@pytest.mark.req("U1", "U2")
@pytest.mark.parametrize("module", ["modelkeep", "modelkeep.client", "modelkeep.cli.main"])
def test_a_start_pays_for_no_server(module: str) -> None:
    """Importing the SDK or the command line loads no web framework, database, numpy or model runtime."""
    if not any(SOURCE.parent.joinpath(*module.split(".")).with_suffix(end).exists() for end in (".py", "")):
        pytest.skip(f"{module} is not built yet")
    script = f"import sys, {module}; getattr(sys.modules['modelkeep'], 'Client', None); print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = {name.partition(".")[0] for name in result.stdout.split()}
    assert not loaded & (SERVER_LIBRARIES | SLOW_LIBRARIES)
