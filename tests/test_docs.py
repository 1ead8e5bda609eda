"""The documentation: the site builds without a warning or a network, and every relative link leads somewhere."""

from __future__ import annotations

import html
import re
import subprocess
import sys

import pytest

import surveybridge
from surveybridge.jobs.registry import JOBS
from surveybridge.storage.schema import CANDIDATES
from tests.conftest import ROOT

PAGES = [
    path for folder in ("docs", "cluster", "bridge_core", "examples") for path in sorted((ROOT / folder).rglob("*.md"))
] + [ROOT / "README.md", ROOT / "CHANGELOG.md"]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.long
def test_the_site_builds_without_a_warning_and_has_every_command_and_column(tmp_path):
    pytest.importorskip("sphinx", reason="needs the docs extra")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(ROOT / "docs"), str(tmp_path / "site")],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    commands = (tmp_path / "site/reference/commands.html").read_text()
    for job in JOBS:
        assert f"usage: surveybridge {job}" in re.sub(r"<[^>]+>", "", commands), job
    python = html.unescape(re.sub(r"<[^>]+>", "", (tmp_path / "site/reference/python.html").read_text()))
    for name in surveybridge.__all__:
        assert f"{name}(\n" in python and (getattr(surveybridge, name).__doc__ or name).splitlines()[0] in python, name
    schemas = html.unescape((tmp_path / "site/reference/schemas.html").read_text())
    for field in CANDIDATES:
        assert field.name in schemas and field.metadata[b"description"].decode().split(",")[0] in schemas, field.name
    for page in (tmp_path / "site").rglob("*.html"):
        remote = re.findall(r'(?:src|href)="https?://[^"]+\.(?:js|css|woff2?)"', page.read_text())
        assert not remote, f"{page.name} loads {remote}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_to_files_of_the_repository(page):
    for target in LINK.findall(page.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
