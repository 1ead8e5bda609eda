"""A real browser for tests of pages, a run whose candidates they grade, and runs of a tiny network on a tiny store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from surveybridge.storage.runs import RunFolder

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, headless; of one module, since playwright's event loop is in the way of other tests."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the dev extra: playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium on the path: apt-get install chromium")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def made_to_grade(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with candidates to grade, which nobody changes."""
    from tests.jobs.vetting_runs import make_run

    return make_run(tmp_path_factory.mktemp("made"))


@pytest.fixture
def run_to_grade(made_to_grade: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of its own for each test."""
    from surveybridge.storage.runs import RunFolder

    return RunFolder.open(shutil.copytree(made_to_grade.url, tmp_path / "run"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny network whose card states whole tiles."""
    from tests import tiny

    return tiny.write_checkpoint(tmp_path_factory.mktemp("checkpoint"), patch="tile")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny store of four tiles, which nobody changes."""
    from tests import tiny

    return tiny.write_store(tmp_path_factory.mktemp("store") / "tiles")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, store: str, checkpoint: str) -> str:
    """Run folder of the serial executor, in whole tiles; what tests do to it changes no result."""
    from tests.jobs.test_translate import translate

    run = str(tmp_path_factory.mktemp("run") / "whole")
    assert translate(store, run, checkpoint) == 0
    return run


@pytest.fixture(scope="session")
def in_patches(tmp_path_factory: pytest.TempPathFactory, store: str, checkpoint: str) -> str:
    """The same in patches, 16 a batch."""
    from tests.jobs.test_translate import translate

    run = str(tmp_path_factory.mktemp("run") / "patches")
    assert translate(store, run, checkpoint, "--patch", "64") == 0
    return run
