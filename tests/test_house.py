"""The map of the house in CONTRIBUTING.md, held against the imports of the package."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "pml_extensions"
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / PACKAGE).rglob("*.py"))
}


def rooms():
    """Return the rooms of the map, the innermost first, with those that each may import."""
    rows = re.findall(r"^\| `([\w.]+)` \|[^|]+\|([^|]*)\|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    found = {name: set(re.findall(r"`([\w.]+)`", may)) for name, may in rows}
    return dict(sorted(found.items(), key=lambda item: -item[0].count(".")))


def imports(module):
    """Return the modules of the package that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith(PACKAGE))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ([name for name in inner if name in FILES] or [node.module])


ROOMS = rooms()
ARROWS = {module: set(imports(module)) for module in FILES}


def room_of(module):
    inner = module.removeprefix(f"{PACKAGE}.")
    return next((room for room in ROOMS if f"{inner}.".startswith(f"{room}.")), None)


def test_every_module_has_a_room():
    assert [module for module in FILES if room_of(module) is None] == [PACKAGE]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_the_map_allows(room):
    taken = {room_of(other) for module in FILES if room_of(module) == room for other in ARROWS[module]}
    assert taken - {room} == ROOMS[room]


def test_another_package_is_entered_through_its_face():
    for module, others in ARROWS.items():
        house = module.split(".")[1:2]
        for other in others:
            if other.split(".")[1:2] != house and module != PACKAGE:
                assert other.count(".") == 1, f"{module} imports {other}"


def test_no_circle_of_imports():
    left = {module: others - {module} for module, others in ARROWS.items()}
    while free := {module for module, others in left.items() if not others & left.keys()}:
        left = {module: others for module, others in left.items() if module not in free}
    assert not left, f"these import each other: {sorted(left)}"


def test_what_only_one_version_of_the_host_documents_is_in_one_module():
    documented = {
        f"pytorch_metric_learning.{name}" for name in ("distances", "losses", "miners", "reducers", "regularizers")
    }
    for module, path in FILES.items():
        nodes = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = {getattr(node, "module", None) or alias.name for node in nodes for alias in node.names}
        taken = {name for name in names if name.startswith("pytorch_metric_learning.")}
        assert module == f"{PACKAGE}._host" or taken <= documented, f"{module} imports {taken - documented}"


def test_no_file_is_too_long():
    lengths = {module: len(path.read_text().splitlines()) for module, path in FILES.items()}
    assert {module: lines for module, lines in lengths.items() if lines > 400} == {}
