"""The house: imports between libraries run one way, rooms open no door, and nothing is imported in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from docs import house
from docs.imports import ALLOWED, GROUND, HOUSE, ROOT, circles, files_of, graph_of, imported_names, name_of, rooms_of

# Which packages of others each library must do without.
FORBIDDEN: dict[str, set[str]] = {
    "jobs": set(),
    "bridge_core": {"ray", "astropy", "pyarrow", "zarr", "fsspec", "s3fs"},
    "cluster": {"astropy", "galsim", "lenstronomy"},
    "storage": {"torch", "ray", "triton"},
    "kernels": {"ray", "astropy", "pyarrow", "zarr"},
}
AROUND = ("tests", "benchmarks", "examples", "docs")
FILES = sorted(
    path.relative_to(ROOT)
    for folder in (*ALLOWED, *AROUND)
    for path in [*(ROOT / folder).rglob("*.py"), *(ROOT / HOUSE).glob("*.py")]
)


@pytest.fixture(scope="module")
def graph() -> Mapping[str, set[str]]:
    """The import graph of the house."""
    return graph_of(files_of())


@pytest.mark.parametrize("path", sorted(set(FILES)), ids=str)
def test_a_file_imports_only_what_its_place_may(path):
    assert list(violations((ROOT / path).read_text(encoding="utf-8"), path)) == []


def test_every_library_and_room_is_looked_at(graph):
    assert {path.parts[0] for path in FILES} == {*ALLOWED, *AROUND, HOUSE}
    assert {room for room in rooms_of(graph) if room.startswith("jobs.")} - GROUND >= {
        f"jobs.{folder.name}" for folder in (ROOT / "jobs").iterdir() if (folder / "__init__.py").exists()
    }


@pytest.mark.parametrize(
    ("where", "line", "imported"),
    [
        ("storage/tiles.py", "import torch", "torch"),
        ("storage/tiles.py", "import numpy, ray.data as rd", "ray"),
        ("storage/tiles.py", "from surveybridge.bridge_core.stretch import Stretch", "surveybridge.bridge_core"),
        ("storage/tiles.py", "from surveybridge import cluster", "surveybridge.cluster"),
        ("storage/tiles.py", "from surveybridge.version import __version__", "surveybridge.version"),
        ("bridge_core/bridge.py", "from astropy.wcs import WCS", "astropy"),
        ("bridge_core/bridge.py", "from surveybridge.storage import tiles", "surveybridge.storage"),
        ("kernels/sky_noise/naive.py", "from surveybridge.bridge_core import bridge", "surveybridge.bridge_core"),
        ("cluster/stream.py", "from surveybridge.jobs.config import RequestError", "surveybridge.jobs"),
        ("cluster/stream.py", "import surveybridge", "surveybridge"),
        ("jobs/translate.py", "from surveybridge.kernels.sky_noise import sky_noise", "surveybridge.kernels"),
        ("jobs/translate.py", "from surveybridge import __version__", "surveybridge"),
        ("jobs/translate.py", "from surveybridge.__main__ import main", "surveybridge.__main__"),
        ("jobs/translate.py", "def run():\n    if True:\n        import tests.conftest", "tests"),
        ("storage/tiles.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", "torch"),
        ("storage/tiles.py", "import importlib\nimportlib.import_module('torch')", "torch"),
        ("storage/tiles.py", "__import__('surveybridge.jobs.demo')", "surveybridge.jobs"),
        ("storage/tiles.py", "from .. import jobs", "surveybridge.jobs"),
        ("kernels/sky_noise/naive.py", "from ...storage import tiles", "surveybridge.storage"),
        # a library by its bare name would be another module beside the installed one
        ("jobs/demo.py", "from storage.tiles import TileStore", "storage"),
        ("storage/tiles.py", "import storage.images", "storage"),
        ("surveybridge/__main__.py", "from jobs import registry", "jobs"),
        ("tests/jobs/test_plan.py", "from jobs import plan", "jobs"),
        ("tests/storage/test_tiles.py", "def test():\n    import bridge_core.bridge", "bridge_core"),
        ("benchmarks/gpu.py", "from kernels import dispatch", "kernels"),
        ("examples/candidates.py", "import cluster", "cluster"),
        ("docs/conf.py", "import importlib\nimportlib.import_module('storage.schema')", "storage"),
        # rooms open no door
        ("jobs/translating/engine.py", "from surveybridge.jobs.translate import Config", "surveybridge.jobs.translate"),
        ("jobs/profiling/profile.py", "from surveybridge.jobs import translate", "surveybridge.jobs.translate"),
        ("jobs/vetting/server.py", "def serve():\n    from .. import vet", "surveybridge.jobs.vet"),
        ("jobs/reporting/page.py", "import_module('surveybridge.jobs.status')", "surveybridge.jobs.status"),
    ],
)
def test_planted_violation_is_caught(where, line, imported):
    found = list(violations(line + "\n", Path(where)))
    assert len(found) == 1
    assert f"imports {imported}" in found[0]


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("jobs/translate.py", "from surveybridge.storage import tiles\nimport surveybridge.cluster.stream"),
        ("jobs/translate.py", "from surveybridge.jobs.translating.engine import translate"),
        ("jobs/demo.py", "from surveybridge.jobs import ingest, query\nfrom surveybridge.version import __version__"),
        ("jobs/translating/engine.py", "from surveybridge.jobs.config import RequestError\nfrom . import stages"),
        ("jobs/profiling/profile.py", "from surveybridge.jobs.translating import engine"),
        ("bridge_core/sampler.py", "from surveybridge.kernels.bridge_step import bridge_step\nfrom . import bridge"),
        (
            "kernels/sky_noise/triton.py",
            "from surveybridge.kernels.sky_noise import naive\nfrom ..bridge_step import y",
        ),
        ("storage/tiles.py", "import torchlike\nfrom .images import SurveyImage\n'import torch'"),
        ("tests/jobs/test_plan.py", "from tests import tiny\nfrom surveybridge.jobs import plan\nimport ray, torch"),
        ("tests/storage/test_tiles.py", "from . import faults\nfrom tests.storage.faults import moto_server"),
        ("surveybridge/__main__.py", "from surveybridge.jobs.registry import JOBS"),
    ],
)
def test_allowed_imports_pass(where, line):
    assert list(violations(line + "\n", Path(where))) == []


def test_rivals_of_the_bridge_stand_apart_from_it(graph):
    inside = {module for module in graph if module.startswith("bridge_core.comparators.")}
    assert len(inside) > 5
    assert {module: graph[module] & inside for module in graph.keys() - inside if graph[module] & inside} == {}


def test_nothing_is_imported_in_a_circle(graph):
    assert circles(graph) == []
    assert circles(rooms_of(graph)) == []


@pytest.mark.parametrize(
    "lines",
    [
        {"storage/one.py": "from surveybridge.storage.two import x", "storage/two.py": "from .one import y"},
        {
            "jobs/a/one.py": "from surveybridge.jobs.a import two",
            "jobs/a/two.py": "def late():\n    import surveybridge.jobs.a.three",
            "jobs/a/three.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .one import Type",
        },
        {"jobs/one.py": "import_module('surveybridge.jobs.two')", "jobs/two.py": "from . import one"},
        {"kernels/k/__init__.py": "from .naive import k", "kernels/k/naive.py": "from surveybridge.kernels import k"},
    ],
)
def test_planted_circle_is_caught(tmp_path, lines):
    (circle,) = circles(planted(tmp_path, lines))
    assert circle == sorted(name_of(Path(path)) for path in lines)


def test_rooms_that_need_each_other_are_a_circle_though_their_modules_are_none(tmp_path):
    graph = planted(
        tmp_path,
        {
            "jobs/a/one.py": "from surveybridge.jobs.b import one",
            "jobs/b/one.py": "",
            "jobs/b/two.py": "from surveybridge.jobs.a import three",
            "jobs/a/three.py": "import surveybridge.storage.tiles",
            "storage/tiles.py": "",
        },
    )
    assert circles(graph) == []
    assert circles(rooms_of(graph)) == [["jobs.a", "jobs.b"]]


def test_the_picture_in_the_documentation_shows_the_house_as_it_is(graph):
    drawn = house.draw(graph)
    assert (ROOT / "docs" / "house.svg").read_text() == drawn, "run `python -m docs.house`"


def violations(text: str, path: Path) -> Iterator[str]:
    """Yield one line for each import in a file with this text that a file at `path`, relative to here, may not make."""
    place = path.parts[0]
    barred = set(ALLOWED)
    if place in ALLOWED:
        barred |= FORBIDDEN[place] | set(AROUND)
    for line, name in imported_names(ast.parse(text), path):
        parts = name.split(".")
        if parts[0] in barred:
            yield f"{path}:{line} imports {name}, which {place} does without; our own go by {HOUSE}.<library>"
        elif parts[0] == HOUSE and place in ALLOWED:
            library = parts[1] if len(parts) > 1 else ""
            version = place == "jobs" and name.startswith(f"{HOUSE}.version")
            if library not in ALLOWED[place] | {place} and not version:
                yield f"{path}:{line} imports {name}, which {place} may not"
            elif place == "jobs" and len(path.parts) > 2 and is_door(parts[1:]):
                yield f"{path}:{line} imports {name}, a door, from a room; move what both need into a room"


def is_door(parts: list[str]) -> bool:
    """Whether a name below the house is one of a job: ``jobs.translate`` or what is taken from it."""
    module = ".".join(parts[:2])
    return parts[0] == "jobs" and module not in GROUND and (ROOT / "jobs" / f"{parts[1]}.py").is_file()


def planted(folder: Path, lines: Mapping[str, str]) -> dict[str, set[str]]:
    """The graph of a house of some files."""
    for name, text in lines.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")
    return graph_of(files_of(folder), folder)
