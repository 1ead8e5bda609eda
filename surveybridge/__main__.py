"""The command `surveybridge JOB [--config FILE] [--name VALUE ...] [name=value ...]`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from surveybridge.jobs.config import RequestError, read_storage_options
from surveybridge.jobs.registry import JOBS, available_jobs, parse_job
from surveybridge.version import __version__

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
    prog = f"surveybridge {job}" if job in JOBS else "surveybridge"
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


def _dispatch(job: str, arguments: list[str], prog: str) -> int:
    if job in ("-h", "--help"):
        print(_overview())
        return DONE
    if job == "--version":
        print(f"surveybridge {__version__}")
        return DONE
    module, config = parse_job(job, arguments, prog)  # --help ends here

    from surveybridge.jobs.running.progress import setup_logging

    setup_logging()
    if config.storage_options is not None:
        from surveybridge.storage.objectstore import configure

        configure(read_storage_options(config.storage_options))
    return int(module.run(config))


def _overview() -> str:
    from surveybridge.jobs.running.drain import DRAINED

    lines = [f"surveybridge {__version__}: probabilistic translation between sky surveys", ""]
    lines += ["usage: surveybridge JOB [--config FILE] [--name VALUE ...] [name=value ...]", "", "jobs:"]
    lines += [f"  {name:<10} {about}" for name, about in available_jobs().items()]
    lines += ["", "`surveybridge JOB --help` shows a job's settings and examples."]
    lines += ["exit codes: 0 done, 1 the run failed, 2 the request is wrong, 3 finished but some tiles failed,"]
    lines += [f"            {DRAINED} stopped in good order by SIGTERM; run again, it does what is left"]
    return "\n".join(lines)


def _as_request_error(error: ValueError) -> ValueError | None:
    """Return the error if it says that the request is wrong; Ray wraps a worker's, as its `cause`."""
    if isinstance(error, RequestError):
        return error
    # Late, because these packages may load numpy or torch, which a mistyped flag need not wait for.
    from surveybridge.bridge_core.errors import BridgeError
    from surveybridge.cluster.errors import ClusterError
    from surveybridge.storage.errors import StorageError

    cause = getattr(error, "cause", None)
    for candidate in (error, cause):
        if isinstance(candidate, BridgeError | ClusterError | StorageError | RequestError):
            return cause if isinstance(cause, ValueError) else error
    return None


if __name__ == "__main__":
    sys.exit(main())
