"""The house's own rules: small files and functions, few modules at the top, and imports that only go down."""

import ast
import graphlib
from pathlib import Path

import pytest

import hf_sharp

ROOT = Path(hf_sharp.__path__[0])
FILES = sorted(ROOT.rglob("*.py"))
# From the bottom up. A room imports from rooms that come before it in this list, and from itself.
LAYERS = [
    *("registry", "data", "losses", "sharpness", "model", "geometry", "option_checks", "training_args"),
    *("reports", "trainer", "few_shot", "recipe", "commands", "cli"),
]
# Modules that only export the public names of a room.
PUBLIC = {"metrics", "datasets", "posthoc", "curvature", "__init__"}


def module_of(file):
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(file):
    """The modules of hf_sharp that a file imports, at the top or within functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_sharp"):
            names = {f"{node.module}.{name.name}" for name in node.names}
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("hf_sharp")}
    return found


MODULES = {module_of(file): file for file in FILES}


def test_no_file_is_over_350_lines():
    assert {module_of(file): n for file in FILES if (n := len(file.read_text().splitlines())) > 350} == {}


def body_lines(node):
    first = node.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = first.end_lineno - first.lineno + 1 if is_docstring else 0
    return node.end_lineno - node.body[0].lineno + 1 - docstring


def test_no_function_body_is_over_50_lines():
    long = {
        f"{module_of(file)}.{node.name}": body_lines(node)
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and body_lines(node) > 50
    }
    assert long == {}


def test_at_most_eight_modules_stand_at_the_top():
    assert len(list(ROOT.glob("*.py"))) <= 8


def room_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@pytest.mark.parametrize("module", sorted(MODULES), ids=str)
def test_imports_go_down(module):
    room = room_of(module)
    if room in PUBLIC:
        return
    upwards = {
        other
        for other in imports_of(MODULES[module])
        if room_of(other) not in PUBLIC and LAYERS.index(room_of(other)) > LAYERS.index(room)
    }
    assert upwards == set()
    public = {other for other in imports_of(MODULES[module]) if room_of(other) in PUBLIC - {"__init__"}}
    assert public == set(), "inside the house, import from where a name is defined"


def test_no_imports_form_a_circle():
    graph = {}
    for module, file in MODULES.items():
        if file.name != "__init__.py":  # which gathers what its room defines
            graph[module] = {
                other for other in imports_of(file) - {module} if MODULES.get(other, file).name != "__init__.py"
            }
    list(graphlib.TopologicalSorter(graph).static_order())
