"""A real browser for tests of pages, and a run whose candidates they grade."""

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
