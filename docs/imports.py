"""The import graph of the house, which `docs/house.py` draws and `tests/test_imports.py` judges.

All imports count: those inside functions and under `TYPE_CHECKING` too, and `importlib.import_module("...")`.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOUSE = "surveybridge"

ALLOWED: dict[str, set[str]] = {
    "jobs": {"cluster", "storage", "bridge_core"},
    "bridge_core": {"kernels"},
    "cluster": set(),
    "storage": set(),
    "kernels": set(),
}
"""Which of the libraries each may import, besides itself."""

GROUND = {"jobs.config", "jobs.registry", f"{HOUSE}.version"}
"""Modules that every job stands on; in jobs/ they are no doors."""

Graph = Mapping[str, set[str]]
"""What each module imports; names are without the leading ``surveybridge.``."""


def files_of(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the house: its name, as in ``storage.tiles``, and its file."""
    files = [path for library in ALLOWED for path in (root / library).rglob("*.py")]
    return {name_of(path.relative_to(root)): path for path in sorted([*files, *(root / HOUSE).glob("*.py")])}


def name_of(path: Path) -> str:
    """Name of the module in a file of the repository; a package's ends in ``__init__``."""
    return ".".join(path.with_suffix("").parts)


def imported_names(tree: ast.AST, path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of all that a file imports; ``from a import b`` is ``a.b``.

    Parameters
    ----------
    tree
        The file, parsed.
    path
        Where it lies, relative to the repository: relative imports start there.
    """
    package = list(path.parent.parts) if path.parts[0] not in ALLOWED else [HOUSE, *path.parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = [*base, *([node.module] if node.module else [])]
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def graph_of(files: Mapping[str, Path], root: Path = ROOT) -> dict[str, set[str]]:
    """The graph of some modules: an import counts for the module that it names or takes something from."""
    known = {f"{HOUSE}.{name.removeprefix(f'{HOUSE}.')}".removesuffix(".__init__"): name for name in files}
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = (imported for _, imported in imported_names(tree, path.relative_to(root)))
        graph[name] = {module for one in named if (module := _module_of(one, known)) is not None} - {name}
    return graph


def _module_of(imported: str, known: Mapping[str, str]) -> str | None:
    """The module of the house that an import reaches, the longest name that is one."""
    parts = imported.split(".")
    return next((known[name] for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in known), None)


def circles(graph: Graph) -> list[list[str]]:
    """Groups of more than one module that reach each other, by Tarjan's strongly connected components."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(graph.get(module, ())):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            place = stack.index(module)
            found.append(sorted(stack[place:]))
            del stack[place:]

    for module in sorted(graph):
        if module not in index:
            visit(module)
    return [group for group in found if len(group) > 1]


def room_of(module: str) -> str:
    """Where a module stands: in a room such as ``jobs.translating``, at the doors, on the ground, or in a library."""
    if module in GROUND:
        return module
    parts = module.split(".")
    if parts[0] != "jobs" or parts[1] == "__init__":
        return parts[0]
    return "doors" if len(parts) == 2 else f"jobs.{parts[1]}"


def rooms_of(graph: Graph) -> dict[str, set[str]]:
    """The graph of rooms and libraries: what the modules of each import from another."""
    rooms: dict[str, set[str]] = defaultdict(set)
    for module, imported in graph.items():
        rooms[room_of(module)] |= {room_of(other) for other in imported} - {room_of(module)}
    return dict(rooms)
