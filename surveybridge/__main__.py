"""The command `surveybridge JOB [--config FILE] [--name VALUE ...] [name=value ...]`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from surveybridge.jobs.config import RequestError, read_storage_options
from surveybridge.jobs.registry import JOBS, available_jobs, parse_job
from surveybridge.jobs.running.drain import DRAINED, exit_on_sigterm
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
        0 done; 1 storage is full or out of reach (one line on stderr); 2 the request is wrong (one line on stderr); 3
        finished, but some tiles failed; 130 interrupted; 143 stopped by SIGTERM. Any other error leaves as its
        traceback, which Python turns into exit 1.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    job = arguments[0] if arguments else "--help"
    prog = f"surveybridge {job}" if job in JOBS else "surveybridge"
    try:
        with exit_on_sigterm(prog):
            code = _dispatch(job, arguments[1:], prog)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        # The reader has what it wanted (`surveybridge query | head`); the flush at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        for code, found in ((REFUSED, _as_request_error(error)), (FAILED, _as_trouble_of_storage(error))):
            if found is not None:
                print(f"{prog}: error: {' '.join(str(found).split())}", file=sys.stderr)
                return code
        raise


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
    if config.destinations:
        from surveybridge.storage.places import check_writable

        for url in config.destinations:
            check_writable(url)
    return int(module.run(config))


def _overview() -> str:
    lines = [f"surveybridge {__version__}: probabilistic translation between sky surveys", ""]
    lines += ["usage: surveybridge JOB [--config FILE] [--name VALUE ...] [name=value ...]", "", "jobs:"]
    lines += [f"  {name:<10} {about}" for name, about in available_jobs().items()]
    lines += ["", "`surveybridge JOB --help` shows a job's settings and examples."]
    lines += ["exit codes: 0 done, 1 the run failed, 2 the request is wrong, 3 finished but some tiles failed,"]
    lines += [f"            {DRAINED} stopped in good order by SIGTERM; run again, it does what is left"]
    return "\n".join(lines)


def _as_request_error(error: Exception) -> Exception | None:
    """Return the error if it says that the request is wrong; Ray wraps a worker's, as its `cause`."""
    if isinstance(error, RequestError):
        return error
    # Late, because these packages may load numpy or torch, which a mistyped flag need not wait for.
    from surveybridge.bridge_core.errors import BridgeError
    from surveybridge.cluster.errors import ClusterError
    from surveybridge.storage.errors import StorageError, is_unwritable

    for found in (getattr(error, "cause", None), error):
        if isinstance(found, BridgeError | ClusterError | StorageError | RequestError):
            return found
        if is_unwritable(found):
            return RequestError(f"{found}; give a place where this user may write")
    return None


def _as_trouble_of_storage(error: Exception) -> Exception | None:
    """Return the error if a disk is full or object storage out of reach, where no traceback would help."""
    from surveybridge.cluster.errors import REMEDY, is_full
    from surveybridge.storage.errors import StorageUnavailable

    for found in (getattr(error, "cause", None), error):
        if is_full(found):
            return OSError(f"{str(found).removesuffix(REMEDY)}{REMEDY}, then run the same command again")
        if isinstance(found, StorageUnavailable):
            return found
    return None


if __name__ == "__main__":
    sys.exit(main())
