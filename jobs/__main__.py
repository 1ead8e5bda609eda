"""The command `surveybridge JOB [--config FILE] [--name VALUE ...] [name=value ...]`, also `python -m jobs JOB`."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from jobs import __version__
from jobs.config import JobConfig, RequestError, parse_config, parser_of, read_storage_options, suggestion
from jobs.drain import DRAINED
from jobs.progress import setup_logging

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
DONE, FAILED, REFUSED, SOME_TILES_FAILED, INTERRUPTED = 0, 1, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job and return the command's exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        The job's name and its settings; the process's own arguments by default.

    Returns
    -------
    int
        0 done; 2 the request is wrong (one line on stderr); 3 finished, but some tiles failed; 130 interrupted; 143
        drained by SIGTERM. Any other error leaves as its traceback, which Python turns into exit 1.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    job = arguments[0] if arguments else "--help"
    prog = f"surveybridge {job}" if job in available_jobs() else "surveybridge"
    try:
        code = _dispatch(job, arguments[1:], prog)
        sys.stdout.flush()
        return code
    except ValueError as error:
        wrong_request = _as_request_error(error)
        if wrong_request is None:
            raise
        print(f"{prog}: error: {' '.join(str(wrong_request).split())}", file=sys.stderr)
        return REFUSED
    except BrokenPipeError:
        # The reader has what it wanted (`surveybridge query | head`); the flush at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return INTERRUPTED


def available_jobs() -> dict[str, str]:
    """Map each job's name to the first line of its docstring, read without importing the job."""
    return {name: about for name in JOBS if (about := _first_line(name)) is not None}


def help_of(job: str) -> str:
    """What `surveybridge JOB --help` prints."""
    module = importlib.import_module(f"jobs.{job}")
    return parser_of(module.Config, f"surveybridge {job}", module.__doc__ or "", module.EXAMPLES).format_help()


def parse_job(job: str, arguments: Sequence[str], prog: str) -> tuple[ModuleType, JobConfig]:
    """Import a job's module and read its configuration; RequestError if there is no such job or a setting is wrong."""
    jobs = available_jobs()
    if job not in jobs:
        nearest = suggestion(job, jobs)
        raise RequestError(
            f"unknown job '{job}'; " + (f"did you mean {nearest}?" if nearest else f"known: {', '.join(jobs)}")
        )
    module = importlib.import_module(f"jobs.{job}")
    return module, parse_config(
        module.Config, arguments, prog=prog, about=module.__doc__ or "", examples=module.EXAMPLES
    )


def _dispatch(job: str, arguments: list[str], prog: str) -> int:
    if job in ("-h", "--help"):
        print(_overview())
        return DONE
    if job == "--version":
        print(f"surveybridge {__version__}")
        return DONE
    module, config = parse_job(job, arguments, prog)
    setup_logging()
    if config.storage_options is not None:
        from storage.objectstore import configure

        configure(read_storage_options(config.storage_options))
    return int(module.run(config))


def _overview() -> str:
    lines = [f"surveybridge {__version__}: probabilistic translation between sky surveys", ""]
    lines += ["usage: surveybridge JOB [--config FILE] [--name VALUE ...] [name=value ...]", "", "jobs:"]
    lines += [f"  {name:<10} {about}" for name, about in available_jobs().items()]
    lines += ["", "`surveybridge JOB --help` shows a job's settings and examples."]
    lines += ["exit codes: 0 done, 1 the run failed, 2 the request is wrong, 3 finished but some tiles failed,"]
    lines += [f"            {DRAINED} stopped in good order by SIGTERM; run again, it does what is left"]
    return "\n".join(lines)


def _first_line(job: str) -> str | None:
    source = Path(__file__).with_name(f"{job}.py")
    if not source.is_file():
        return None
    return (ast.get_docstring(ast.parse(source.read_bytes())) or "").partition("\n")[0]


def _as_request_error(error: ValueError) -> ValueError | None:
    """Return the error if it says that the request is wrong; Ray wraps a worker's, as its `cause`."""
    if isinstance(error, RequestError):
        return error
    # Late, because these packages may load numpy or torch, which a mistyped flag need not wait for.
    from bridge_core.errors import BridgeError
    from cluster.errors import ClusterError
    from storage.errors import StorageError

    cause = getattr(error, "cause", None)
    for candidate in (error, cause):
        if isinstance(candidate, BridgeError | ClusterError | StorageError | RequestError):
            return cause if isinstance(cause, ValueError) else error
    return None


if __name__ == "__main__":
    sys.exit(main())
