"""Check this machine before a run: versions, processor, GPU, memory, disk, Ray, storage and checkpoints.

Every line is either ok, a note (something is absent or slow, but nothing breaks) or FAILED, with a remedy. The exit
code is 0 if nothing failed, and 1 if something did.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from surveybridge.jobs.config import JobConfig

if TYPE_CHECKING:
    from surveybridge.jobs.diagnosing.machine import Finding

EXAMPLES = """
  surveybridge doctor
  surveybridge doctor --read s3://survey/tiles.zarr --write s3://survey/runs --ray 10.0.0.5:6379
  surveybridge doctor --ray http://head:8265 --checkpoint runs/vis/vis-v1 --format json
"""

RETRY_SECONDS = "5"
"""Time for which a failing request to storage is repeated here; a run is more patient."""


class Config(JobConfig):
    """Settings of `surveybridge doctor`."""

    read: tuple[str, ...] = Field((), description="URL ...: folders that must be readable, paths or s3:// addresses")
    write: tuple[str, ...] = Field(
        (), description="URL ...: folders that must be writable (a few bytes are written there and removed)"
    )
    ray: str | None = Field(
        None,
        description="HOST:6379 of a cluster, http://HEAD:8265 of its job server, local to start Ray here, or none to "
        "skip it (default: RAY_ADDRESS, else local)",
    )
    checkpoint: tuple[str, ...] = Field((), description="paths, or names of shipped checkpoints (default: all shipped)")
    min_free_gib: float = Field(10.0, ge=0, description="GiB that must be free on every disk that a run writes to")
    format: Literal["text", "json"] = Field("text", description="lines for a person, or one JSON list")


def run(config: Config) -> int:
    """Print each finding at once; return 1 if something failed, else 0."""
    findings = []
    for finding in examine(config):
        findings.append(finding)
        if config.format == "text":
            print(line(finding), flush=True)
    failed = sum(finding.status == "failed" for finding in findings)
    if config.format == "json":
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        print(f"{failed} of {len(findings)} checks failed" if failed else f"all {len(findings)} checks passed")
    return 1 if failed else 0


def examine(config: Config) -> Iterator[Finding]:
    """Run all checks in turn, and yield their findings."""
    import tempfile

    from surveybridge.jobs.diagnosing import machine, services

    yield from machine.check_python()
    yield from machine.check_packages()
    yield from machine.check_processor()
    yield from machine.check_norm()
    yield from machine.check_memory()
    local = [url for url in config.write if "://" not in url]
    scratch = [tempfile.gettempdir(), os.environ.get("RAY_TMPDIR", "/tmp")]
    yield from machine.check_disk([os.getcwd(), *scratch, *local], config.min_free_gib)
    yield from machine.check_gpu()
    yield from _checkpoints(config)
    with _impatient():
        for url in config.read:
            yield from services.check_read(url)
        for url in config.write:
            yield from services.check_write(url)
    address = config.ray or os.environ.get("RAY_ADDRESS") or "local"
    if address != "none":
        yield from services.check_ray(address)


def line(finding: Finding) -> str:
    """Format a finding as one line for a person."""
    mark = {"ok": "ok", "note": "note", "failed": "FAILED"}[finding.status]
    return f"{mark:<7}{finding.check:<11}{finding.message}" + (f"; {finding.remedy}" if finding.remedy else "")


def _checkpoints(config: Config) -> Iterator[Finding]:
    from surveybridge.bridge_core.checkpoint import shipped_checkpoints
    from surveybridge.jobs.diagnosing.services import check_checkpoint

    for path in config.checkpoint or shipped_checkpoints():
        yield from check_checkpoint(path)


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Shorten the retries of storage, unless the environment says how long they are."""
    from surveybridge.storage.retry import BUDGET_VARIABLE

    if BUDGET_VARIABLE in os.environ:
        yield
        return
    os.environ[BUDGET_VARIABLE] = RETRY_SECONDS
    try:
        yield
    finally:
        del os.environ[BUDGET_VARIABLE]
