"""The list of jobs: their names, their help, and the reading of their settings from a command line."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from surveybridge.jobs.config import JobConfig, RequestError, parse_config, parser_of, suggestion

JOBS = (
    "demo",
    "simulate",
    "simulate-pairs",
    "simulate-clouds",
    "inspect",
    "ingest",
    "degrade",
    "pairs",
    "train",
    "generate",
    "calibrate",
    "evaluate",
    "plan",
    "translate",
    "sweep",
    "submit",
    "status",
    "publish",
    "query",
    "report",
    "export",
    "doctor",
    "vet",
)


def available_jobs() -> dict[str, str]:
    """Map each job's name to the first line of its docstring, read without importing or parsing the job."""
    return {name: _first_line(Path(__file__).with_name(f"{module_of(name)}.py")) for name in JOBS}


def help_of(job: str) -> str:
    """Return the text that `surveybridge JOB --help` prints."""
    module = importlib.import_module(f"surveybridge.jobs.{module_of(job)}")
    return parser_of(module.Config, f"surveybridge {job}", module.__doc__ or "", module.EXAMPLES).format_help()


def parse_job(job: str, arguments: Sequence[str], prog: str) -> tuple[ModuleType, JobConfig]:
    """Import a job's module and read its settings; RequestError if there is no such job or a setting is wrong."""
    if job not in JOBS:
        nearest = suggestion(job, JOBS)
        raise RequestError(
            f"unknown job '{job}'; " + (f"did you mean {nearest}?" if nearest else f"known: {', '.join(JOBS)}")
        )
    module = importlib.import_module(f"surveybridge.jobs.{module_of(job)}")
    return module, parse_config(
        module.Config, arguments, prog=prog, about=module.__doc__ or "", examples=module.EXAMPLES
    )


def module_of(job: str) -> str:
    """Name of the module of a job, in `jobs`."""
    return job.replace("-", "_")


def _first_line(source: Path) -> str:
    with source.open(encoding="utf-8") as lines:
        return next(lines).strip().strip('"')
