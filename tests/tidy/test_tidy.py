"""House rules that a machine can check (STYLE.md): names, sizes, docstrings, imports, words."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
PARAMETERS_MAX = 8
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")


def tracked(*patterns: str) -> list[Path]:
    words = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    names = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    return [ROOT / name for name in names if (ROOT / name).is_file()]


MODULES = [path for path in tracked("*.py") if path.is_relative_to(ROOT / "architect")]


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_a_module_is_one_concept_with_a_name_of_the_domain_and_a_story(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert path.stem not in FORBIDDEN_NAMES
    assert text.count("\n") <= MODULE_LINES_MAX, "two concepts in one module?"
    assert ast.get_docstring(tree), "a module says what its concept is"
    for node in functions(tree):
        assert (node.end_lineno or 0) - node.lineno <= FUNCTION_LINES_MAX, f"{node.name} is too long"
        count = len(node.args.args) + len(node.args.kwonlyargs)
        assert count <= PARAMETERS_MAX, f"{node.name} has {count} parameters: a struct?"


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_public_classes_and_functions_promise_something(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_a_decoder_is_made_where_only_one_thread_can_be(path: Path) -> None:
    """msgspec learns a struct at its first decoder, and shows it half known to a thread that makes another (wire/framing.py)."""
    for function in functions(ast.parse(path.read_text())):
        for node in ast.walk(function):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            assert not (name.startswith("msgspec.") and name.endswith(".decode") and len(node.args) + len(node.keywords) > 1), (
                f"{function.name}: make a decoder at import, `_X_DECODER = msgspec.json.Decoder(X)`"
            )
            assert not name.endswith(".Decoder") or short(path) == "architect/wire/framing.py", (
                f"{function.name}: make it at import"
            )


@pytest.mark.parametrize("path", tracked("architect/*.py", "bench/*.py", "demo/*.py"), ids=short)
def test_a_deadline_that_has_passed_is_told_in_words(path: Path) -> None:
    """`str(TimeoutError())` of asyncio's deadlines is empty: "no answer: " says nothing. Say `str(error) or …`, or how long."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Try):
            for handler in deadline_handlers(node):
                spoken = {
                    id(part)
                    for choice in ast.walk(handler)
                    if isinstance(choice, ast.BoolOp | ast.IfExp)
                    for part in ast.walk(choice)
                }
                for part in ast.walk(handler):
                    assert id(part) in spoken or not shows(part, handler.name), (
                        f"line {handler.lineno}: {ast.unparse(part)} may be empty"
                    )


def deadline_handlers(node: ast.Try) -> list[ast.ExceptHandler]:
    """Those that get a TimeoutError: by its name, or as an OSError of a block with a deadline."""
    text = "".join(ast.unparse(line) for line in node.body)
    has_deadline = "asyncio.timeout(" in text or "wait_for(" in text
    found = []
    for handler in node.handlers:
        kinds = {kind.rpartition(".")[2] for kind in re.findall(r"[\w.]+", ast.unparse(handler.type or ast.Name("BaseException")))}
        if "TimeoutError" in kinds or (has_deadline and kinds & {"OSError", "Exception", "BaseException"}):
            found.append(handler)
        has_deadline = has_deadline and "TimeoutError" not in kinds
    return found


def shows(node: ast.AST, name: str | None) -> bool:
    """Whether it is `{name}` in an f-string, or `str(name)`."""
    if isinstance(node, ast.FormattedValue):
        return ast.unparse(node.value) == name and node.conversion == -1
    return isinstance(node, ast.Call) and ast.unparse(node) == f"str({name})"


def test_nothing_is_unfinished_by_its_own_words() -> None:
    here = Path(__file__)
    found = [
        f"{short(path)}:{number}"
        for path in tracked("*.py", "*.c", "*.h", "*.sh", "*.md")
        if path != here
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert not found


def test_every_dependency_is_pinned_and_has_a_line_that_says_what_it_saves_us() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    names = re.findall(r'^    "([A-Za-z0-9.-]+)(\[[a-z]+\])?(==[^"]+)?",?$', text, re.MULTILINE)
    pinned = [(name, version) for name, _, version in names if not name.startswith("architect")]
    page = (ROOT / "docs/dependencies.md").read_text()
    for name, version in pinned:
        if (ROOT / "pyproject.toml").read_text().count(f'"{name}') and version:
            assert f"`{name}`" in page, f"docs/dependencies.md has no line for {name}"
    dependencies = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert dependencies is not None
    for line in dependencies[1].split(",\n"):
        assert not line.strip() or "==" in line, f"{line.strip()} is not pinned"
