"""Client of Ray's job server: submit a command under an id of your choice, follow its log, return its exit code."""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import requests
from ray._private.ray_constants import (
    DASHBOARD_CLIENT_MAX_SIZE,
    RAY_RUNTIME_ENV_IGNORE_GITIGNORE,
    get_runtime_env_default_excludes,
)

# These are private, but exact: Ray uploads the files that this walk visits. Ray is pinned to one minor version.
from ray._private.runtime_env.packaging import _dir_travel, _get_excludes
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from surveybridge.cluster.errors import ClusterError

PACKAGE_LIMIT = DASHBOARD_CLIENT_MAX_SIZE
"""Largest size of a working directory that the job server accepts, bytes: 100 MiB."""

STOPPED = 143
"""Exit code of a job that `ray job stop` ended; Ray does not keep that of the process."""

LOST_AFTER = 60.0
"""Seconds without an answer from the job server after which we give up following a job."""

AGENT_SECONDS = 60.0
"""Seconds to wait for a head that has just started: it accepts jobs only after the agent of a node has reported."""

_ZIP_ENTRY = 256
"""Bytes that a file adds to an archive besides its content and twice its name, rounded up."""


class LostContact(ConnectionError):
    """The job server does not answer any more; the job may well be running still."""


@dataclass(frozen=True)
class Submission:
    """The job server's record of a job."""

    id: str
    state: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    entrypoint: str
    message: str
    started: datetime.datetime | None
    exit_code: int | None
    """Exit code as a shell would report it, 128 + signal for a killed process; None while the job has not ended."""
    ran: bool = True
    """False for a job that failed before its command began; `message` says why."""

    def __str__(self) -> str:
        code = "" if self.exit_code is None else f" (exit code {self.exit_code})"
        since = f", submitted {self.started:%Y-%m-%d %H:%M} UTC" if self.started else ""
        return f"{self.state}{code}{since}"


def travelling_files(working_dir: Path) -> dict[str, int]:
    """Return the size in bytes of every file that Ray would upload, by its path relative to `working_dir`.

    Ray leaves out .git, .venv, venv, __pycache__, and the files that .gitignore and .rayignore name (at every level).
    """
    root = working_dir.absolute()
    files: dict[str, int] = {}

    def visit(path: Path) -> None:
        if path.is_file():
            files[str(path.relative_to(root))] = path.stat().st_size

    _dir_travel(
        root,
        [_get_excludes(root, get_runtime_env_default_excludes())],
        visit,
        include_gitignore=os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1",
        logger=logging.Logger("quiet", logging.ERROR),
    )
    return files


def check_package(working_dir: Path, needed: Sequence[str] = ()) -> int:
    """Refuse a working directory that cannot be uploaded or that would leave `needed` files behind.

    Parameters
    ----------
    working_dir : Path
        The folder to upload.
    needed : sequence of str
        Files, relative to it, that the job cannot do without. Those that do not exist are ignored.

    Returns
    -------
    int
        Size of the archive in bytes, at most 256 per file too large; Ray does not compress it.
    """
    if not working_dir.is_dir():
        raise ClusterError(f"working directory {working_dir} is not a folder; give the one that holds the code")
    files = travelling_files(working_dir)
    left = [name for name in needed if name not in files and (working_dir / name).is_file()]
    if left:
        raise ClusterError(
            f"{left[0]} would not be uploaded with {working_dir}, because .gitignore or .rayignore names it"
            f"{f' (and {len(left) - 1} more)' if len(left) > 1 else ''}; remove it from that file, "
            f"or set {RAY_RUNTIME_ENV_IGNORE_GITIGNORE}=1 if it is in .gitignore"
        )
    size = sum(files.values()) + sum(_ZIP_ENTRY + 2 * len(name.encode()) for name in files)
    if size > PACKAGE_LIMIT:
        largest = sorted(files, key=lambda name: -files[name])[:3]
        raise ClusterError(
            f"working directory {working_dir} packs to {size / 2**20:.1f} MiB in {len(files)} files but the job server "
            f"takes {PACKAGE_LIMIT / 2**20:.0f} MiB; name in .rayignore what the job does not need (largest: "
            + ", ".join(f"{name} {files[name] / 2**20:.1f} MiB" for name in largest)
            + ")"
        )
    return size


class JobServer:
    """The job server of a cluster's head, at ``http://HEAD:8265``."""

    def __init__(self, address: str) -> None:
        if not address.startswith(("http://", "https://")):
            raise ClusterError(
                f"{address} is not the address of a job server; give that of the head's dashboard, http://HEAD:8265"
            )
        self.address = address.rstrip("/")
        # this logger reports every closed connection
        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
        with self._refusing(), _only_this(self.address):
            self._client = JobSubmissionClient(self.address)

    def find(self, submission_id: str) -> Submission | None:
        """Look up a job; None if the cluster has never seen it (a cluster with a new head has forgotten its jobs)."""
        with self._refusing():
            try:
                info = self._client.get_job_info(submission_id)
            except RuntimeError as error:
                if "404" in str(error):
                    return None
                raise
        started = datetime.datetime.fromtimestamp(info.start_time / 1000, datetime.UTC) if info.start_time else None
        return Submission(
            submission_id,
            str(info.status),
            info.entrypoint,
            info.message or "",
            started,
            _exit_code(info),
            ran=info.status != JobStatus.FAILED or info.driver_exit_code is not None,
        )

    def submit(
        self,
        submission_id: str,
        command: Sequence[str],
        *,
        working_dir: Path | None = None,
        env: Mapping[str, str] | None = None,
        stop_seconds: int = 3,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Start a job; ClusterError if the id is taken. If the head is still starting, wait for it.

        Parameters
        ----------
        submission_id : str
            The job's name on this cluster.
        command : sequence of str
            The command that runs on the head, word by word.
        working_dir : Path, optional
            Folder that is uploaded, and is the working directory of all processes of the job.
        env : mapping
            Environment variables for the driver and its workers, besides those of the nodes. The cluster keeps them
            with the job, in plain text.
        stop_seconds : int
            Seconds between `ray job stop`, which sends SIGTERM, and SIGKILL.
        metadata : mapping
            Notes that the cluster keeps with the job.
        """
        runtime_env: dict[str, Any] = {"env_vars": dict(env or {}) | {"RAY_JOB_STOP_WAIT_TIME_S": str(stop_seconds)}}
        if working_dir is not None:
            runtime_env["working_dir"] = str(working_dir)
        deadline = time.monotonic() + AGENT_SECONDS
        with self._refusing():
            while True:
                try:
                    self._client.submit_job(
                        entrypoint=shlex.join(command),
                        submission_id=submission_id,
                        runtime_env=runtime_env,
                        metadata=dict(metadata or {}),
                    )
                    return
                except RuntimeError as error:
                    if "already exists" in str(error):
                        raise ClusterError(
                            f"job {submission_id} is already at {self.address}; give another id"
                        ) from None
                    if "No available agent" not in str(error):
                        raise
                    if time.monotonic() > deadline:
                        raise ClusterError(
                            f"{self.address}: no node of the cluster has taken job {submission_id} for "
                            f"{AGENT_SECONDS:.0f} s (no available agent); check that its nodes are up, and that the "
                            "port of their agents is free (52365, or --dashboard-agent-listen-port of ray start)"
                        ) from None
                time.sleep(1)

    def follow(self, submission_id: str, write: Callable[[str], object]) -> Submission:
        """Pass on a job's log, from its beginning, until the job has ended; LostContact if the server goes away.

        After a broken connection, the log continues where it broke off.
        """
        passed = 0
        heard = time.monotonic()

        async def tail() -> None:
            nonlocal passed, heard
            skip = passed
            async for text in self._client.tail_job_logs(submission_id):
                heard = time.monotonic()
                fresh, skip = text[skip:], max(0, skip - len(text))
                if fresh:
                    write(fresh)
                    passed += len(fresh)

        while True:
            try:
                asyncio.run(tail())
                job = self.find(submission_id)
                heard = time.monotonic()
                if job is None:
                    raise LostContact(f"{self.address} does not know {submission_id} any more: its head was replaced")
                if job.exit_code is not None:
                    return job
            except LostContact:
                raise
            except (ClusterError, RuntimeError, OSError, aiohttp.ClientError) as error:
                if time.monotonic() - heard > LOST_AFTER:
                    raise LostContact(f"{self.address} has not answered for {LOST_AFTER:.0f} s: {error}") from None
            time.sleep(1)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn errors of the connection into a ClusterError of one line."""
        try:
            yield
        except AuthenticationError:
            raise ClusterError(
                f"{self.address} refused the token (RAY_AUTH_MODE is {os.environ.get('RAY_AUTH_MODE') or 'not set'} "
                "here); set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's"
            ) from None
        except (ConnectionError, requests.exceptions.RequestException) as error:
            raise ClusterError(
                f"no job server answers at {self.address} ({type(error).__name__}); give the address of the head's "
                "dashboard (port 8265), or forward it: kubectl port-forward svc/HEAD 8265"
            ) from None


def _exit_code(info: Any) -> int | None:
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.STOPPED:
        return STOPPED
    if info.status == JobStatus.FAILED:
        # No code: the command never ran, because its environment failed, or its node was lost.
        code = 1 if info.driver_exit_code is None else int(info.driver_exit_code)
        return code if code >= 0 else 128 - code
    return None


@contextmanager
def _only_this(address: str) -> Iterator[None]:
    """Let nothing override the address, since Ray prefers RAY_API_SERVER_ADDRESS and RAY_ADDRESS to its argument."""
    name = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(name)
    os.environ[name] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
