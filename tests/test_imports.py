"""Imports between the five libraries run one way, jobs above and kernels below; each leaves out what is not its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Which of the libraries each may import, besides itself.
ALLOWED = {
    "jobs": {"cluster", "storage", "bridge_core"},
    "bridge_core": {"kernels"},
    "cluster": set(),
    "storage": set(),
    "kernels": set(),
}
# Which packages of others each must do without.
FORBIDDEN = {
    "jobs": set(),
    "bridge_core": {"ray", "astropy", "pyarrow", "zarr", "fsspec", "s3fs"},
    "cluster": {"astropy", "galsim", "lenstronomy"},
    "storage": {"torch", "ray", "triton"},
    "kernels": {"ray", "astropy", "pyarrow", "zarr"},
}
MODULES = sorted(path for library in ALLOWED for path in (ROOT / library).rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_what_its_library_may(path):
    assert list(violations(path, path.relative_to(ROOT).parts)) == []


def test_every_library_has_modules():
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(ALLOWED)


@pytest.mark.parametrize(
    ("where", "line", "imported"),
    [
        ("storage/tiles.py", "import torch", "torch"),
        ("storage/tiles.py", "import numpy, ray.data as rd", "ray"),
        ("storage/tiles.py", "from bridge_core.stretch import Stretch", "bridge_core"),
        ("bridge_core/bridge.py", "from astropy.wcs import WCS", "astropy"),
        ("bridge_core/bridge.py", "from storage import tiles", "storage"),
        ("kernels/sky_noise/naive.py", "from bridge_core import bridge", "bridge_core"),
        ("cluster/stream.py", "from jobs.config import RequestError", "jobs"),
        ("jobs/translate.py", "from kernels.sky_noise import sky_noise", "kernels"),
        ("jobs/translate.py", "def run():\n    if True:\n        import tests.conftest", "tests"),
        ("storage/tiles.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", "torch"),
        ("storage/tiles.py", "import importlib\nimportlib.import_module('torch')", "torch"),
        ("storage/tiles.py", "from .. import jobs", "jobs"),
    ],
)
def test_planted_violation_is_caught(tmp_path, where, line, imported):
    path = tmp_path / "module.py"
    path.write_text(line + "\n")
    found = list(violations(path, tuple(where.split("/"))))
    assert len(found) == 1
    assert f"imports {imported}" in found[0]


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("jobs/translate.py", "from storage import tiles\nimport cluster.stream\nfrom bridge_core import Bridge"),
        ("bridge_core/sampler.py", "from kernels.bridge_step import bridge_step\nfrom . import bridge\nimport torch"),
        ("kernels/sky_noise/triton.py", "from kernels.sky_noise.naive import sky_noise\nfrom ..bridge_step import x"),
        ("storage/tiles.py", "import torchlike\nfrom .images import SurveyImage\n'import torch'"),
    ],
)
def test_allowed_imports_pass(tmp_path, where, line):
    path = tmp_path / "module.py"
    path.write_text(line + "\n")
    assert list(violations(path, tuple(where.split("/")))) == []


def violations(path: Path, parts: tuple[str, ...]) -> Iterator[str]:
    """Yield one line for each import in the file at `path` that a module at `parts`, its place here, may not make."""
    library = parts[0]
    ours = set(ALLOWED) | {"tests", "benchmarks"}
    barred = (ours - ALLOWED[library] - {library}) | FORBIDDEN[library]
    for lineno, name in imported_names(ast.parse(path.read_text(encoding="utf-8")), parts):
        if name.split(".")[0] in barred:
            yield f"{'/'.join(parts)}:{lineno} imports {name}, which {library} may not"


def imported_names(tree: ast.AST, parts: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Yield line and absolute name of every import: in functions, under TYPE_CHECKING, by import_module("...") too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = list(parts[: len(parts) - node.level]) if node.level else []
            base = [*package, *([node.module] if node.module else [])]
            names = [".".join(base)] if base else [alias.name for alias in node.names]
            yield from ((node.lineno, name) for name in names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value
