"""The list of jobs: their names, their help, and the reading of their settings from a command line."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from surveybridge.jobs.config import JobConfig, RequestError, parse_config, parser_of, suggestion

JOBS = (
    "demo",
    "simulate",
    "ingest",
    "train",
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
    """Map each job's name to the first line of its docstring, read without importing the job."""
    return {name: about for name in JOBS if (about := _first_line(name)) is not None}


def help_of(job: str) -> str:
    """Return the text that `surveybridge JOB --help` prints."""
    module = importlib.import_module(f"surveybridge.jobs.{job}")
    return parser_of(module.Config, f"surveybridge {job}", module.__doc__ or "", module.EXAMPLES).format_help()


def parse_job(job: str, arguments: Sequence[str], prog: str) -> tuple[ModuleType, JobConfig]:
    """Import a job's module and read its settings; RequestError if there is no such job or a setting is wrong."""
    jobs = available_jobs()
    if job not in jobs:
        nearest = suggestion(job, jobs)
        raise RequestError(
            f"unknown job '{job}'; " + (f"did you mean {nearest}?" if nearest else f"known: {', '.join(jobs)}")
        )
    module = importlib.import_module(f"surveybridge.jobs.{job}")
    return module, parse_config(
        module.Config, arguments, prog=prog, about=module.__doc__ or "", examples=module.EXAMPLES
    )


def _first_line(job: str) -> str | None:
    source = Path(__file__).with_name(f"{job}.py")
    if not source.is_file():
        return None
    return (ast.get_docstring(ast.parse(source.read_bytes())) or "").partition("\n")[0]
