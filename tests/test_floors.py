"""Imports go down, never up, never to a neighbour, and never in a circle."""

from __future__ import annotations

import ast
from pathlib import Path

import biometro

ROOT = Path(biometro.__file__).parent
FLOORS = {
    "errors": 0, "files": 0, "untrusted": 0, "device": 0, "processes": 0, "alphabet": 1, "options": 1, "data": 2,
    "model": 3, "objectives": 4, "inference": 4, "training": 5, "evaluation": 5, "jobs": 7, "cli": 8, "__main__": 9,
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """Dotted names inside the package that a file imports at its top."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("biometro.")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "biometro":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                exists = (ROOT.parent / (full.replace(".", "/") + ".py")).exists()
                found.add(full if exists else node.module)
    return found - {"biometro"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)


FILES = sorted(p for p in ROOT.rglob("*.py") if p.name != "__init__.py")


def test_every_room_has_a_floor() -> None:
    assert {module_name(p).split(".")[1] for p in FILES} == set(FLOORS)


def test_imports_never_climb_and_neighbours_do_not_meet() -> None:
    wrong = []
    for path in FILES:
        room = module_name(path).split(".")[1]
        for target in imports(path):
            other = target.split(".")[1]
            if other != room and FLOORS[other] >= FLOORS[room] and not FLOORS[room] == FLOORS[other] == 0:
                wrong.append(f"{module_name(path)} imports {target}")
    assert wrong == []


def test_files_form_no_circle() -> None:
    graph = {module_name(p): imports(p) for p in FILES}
    done: set[str] = set()

    def walk(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"a circle: {' -> '.join((*above, name))}"
        if name not in done:
            for target in graph.get(name, ()):
                walk(target, (*above, name))
            done.add(name)

    for name in graph:
        walk(name, ())


def test_rooms_and_functions_stay_small() -> None:
    """Limits that make one stop and think, not goals."""
    large = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 450:
            large.append(f"{module_name(path)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno:
                body = node.end_lineno - node.body[0].lineno
                if body > 90:
                    large.append(f"{module_name(path)}.{node.name}: {body} lines")
    assert large == []
