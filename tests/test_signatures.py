"""No function asks for more than eight things; what belongs together travels together, in a dataclass."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from docs.imports import ALLOWED, HOUSE, ROOT

MOST = 8
# Kernels take every pointer and stride by itself.
FOLDERS = [*sorted(ALLOWED.keys() - {"kernels"}), "benchmarks", "docs", "examples", "tests"]
FILES = sorted(path for folder in FOLDERS for path in [*(ROOT / folder).rglob("*.py"), *(ROOT / HOUSE).glob("*.py")])
EXCEPTIONS = {"bridge_core/sampler.py: sample"}


def test_no_signature_has_more_than_eight_parameters():
    found = {
        f"{path.relative_to(ROOT)}: {name}" for path in set(FILES) for name, _ in long_signatures(path.read_text())
    }
    assert found == EXCEPTIONS


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("def f(a, b, c, d, e, f, g, h): ...", []),
        ("def f(a, b, c, d, e, f, g, h, i): ...", [("f", 9)]),
        ("def f(a, b, /, c, d, *rest, e, f, g, h, i=1, **more): ...", [("f", 9)]),
        ("class C:\n    def m(self, a, b, c, d, e, f, g, h): ...", []),
        ("class C:\n    @classmethod\n    async def m(cls, a, b, c, d, e, f, g, h, i): ...", [("m", 9)]),
        ("@dataclass\nclass C:\n" + "".join(f"    {name}: int\n" for name in "abcdefghi"), []),
    ],
)  # fmt: skip
def test_parameters_are_counted_without_self(text, found):
    assert list(long_signatures(text)) == found


def long_signatures(text: str) -> Iterator[tuple[str, int]]:
    """Yield name and number of parameters of the functions that have too many."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = len(given) - bool(given and given[0].arg in ("self", "cls"))
            if count > MOST:
                yield node.name, count
