"""Run a job on a Ray cluster: upload the code, submit once, follow the log, return the job's own exit code.

What follows `--` is checked here, before anything is sent. The id of the submission is PIPELINE-DATE-ATTEMPT. The
cluster refuses the same id a second time, so a scheduler that fires twice does the work once.

`ray job submit` of the same command returns 1 where this job returns 2, 3 or 143.
"""

from __future__ import annotations

import datetime
import logging
import os
import shlex
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from surveybridge.jobs.config import JobConfig, RequestError
from surveybridge.version import __version__

log = logging.getLogger(__name__)

EXAMPLES = """\
surveybridge submit --address http://head:8265 -- translate --store s3://sky/tiles --run s3://sky/runs/dr1 --workers 8
surveybridge submit --pipeline nightly --date 2026-11-22 --working-dir . -- translate --store s3://b/t --run s3://b/r
surveybridge submit --pipeline nightly --date 2026-11-22 --attach -- translate --store s3://b/t --run s3://b/r
surveybridge submit --env AWS_PROFILE,AWS_ENDPOINT_URL --no-wait -- train --pairs /shared/p.zarr --out /shared/bridge"""

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"

PASSED = ("RAY_AUTH_MODE",)
"""Environment variables that are sent to the job unasked: the mode of authentication, never the token."""

RESULTS = ("store", "run", "runs", "out")
"""Settings of the jobs that name their results, which outlive the job and so cannot lie in its scratch folder."""

PACKAGED = ("surveybridge/bridge_core/checkpoints/*.safetensors", "surveybridge/bridge_core/checkpoints/*.json")
"""Package data that a working directory with this code must contain."""


class Config(JobConfig):
    """Settings of `surveybridge submit`."""

    after_dashes: ClassVar[str | None] = "command"

    command: tuple[str, ...] = Field(
        min_length=1, description="the job to run and its settings, as they would follow `surveybridge`"
    )
    address: str | None = Field(
        None, description=f"dashboard of the cluster's head, http://HEAD:8265 (default: {ADDRESS_VARIABLE})"
    )
    pipeline: str | None = Field(
        None, pattern=r"^[a-z0-9][a-z0-9-]{0,39}$", description="first part of the id (default: the job's name)"
    )
    date: datetime.date | None = Field(
        None, description="logical date of the run, YYYY-MM-DD, second part of the id (default: today, UTC)"
    )
    attempt: int = Field(1, ge=1, description="third part of the id; raise it to run the job again")
    working_dir: Path | None = Field(
        None,
        description="folder with this code to upload, at most 100 MiB (default: run what the nodes have installed)",
    )
    env: tuple[str, ...] = Field(
        (),
        description="NAME or NAME=VALUE ...: environment variables for the job; the cluster stores them in plain text",
    )
    stop_seconds: int = Field(
        120, ge=0, description="seconds that ray job stop gives the job to finish the tiles it has begun"
    )
    attach: bool = Field(False, description="if a job of this id exists already, follow it instead of refusing")
    wait: bool = Field(
        True, description="follow the log and return the job's exit code; otherwise print the id and return at once"
    )

    @model_validator(mode="after")
    def _command_is_a_job(self) -> Config:
        inner_config(self.command)
        return self


def run(config: Config) -> int:
    """Submit and follow; return the job's own exit code, 143 if it was stopped, or 1 if the cluster lost it."""
    from surveybridge.cluster.submission import JobServer, LostContact, check_package

    inner = inner_config(config.command)
    files = check_paths(config.command, inner, config.working_dir)
    env = environment(config.env, os.environ)
    address = config.address or os.environ.get(ADDRESS_VARIABLE)
    if not address:
        raise RequestError(f"no cluster is named; give --address http://HEAD:8265 or set {ADDRESS_VARIABLE}")
    if config.working_dir is not None:
        size = check_package(config.working_dir, [*weights_of(config.working_dir), *files])
        log.info("%s packs to %.1f MiB", config.working_dir, size / 2**20)
    submission_id = submission_id_of(config)
    entrypoint = ["python", "-m", "surveybridge", *config.command]

    server = JobServer(address)
    there = server.find(submission_id)
    if there is None:
        server.submit(
            submission_id,
            entrypoint,
            working_dir=config.working_dir,
            env=env,
            stop_seconds=config.stop_seconds,
            metadata={"pipeline": submission_id.rsplit("-", 4)[0], "surveybridge": __version__},
        )
        log.info("submitted %s to %s", submission_id, server.address)
    elif not config.attach:
        raise RequestError(
            f"job {submission_id} is already at {server.address}: {there}; --attach follows it, "
            f"and --attempt {config.attempt + 1} runs it again"
        )
    elif there.entrypoint != shlex.join(entrypoint):
        raise RequestError(
            f"job {submission_id} at {server.address} runs '{there.entrypoint}', not '{shlex.join(entrypoint)}'; "
            f"give another --pipeline, --date or --attempt"
        )
    if not config.wait:
        print(submission_id)
        return 0
    try:
        ended = server.follow(submission_id, write_through)
    except KeyboardInterrupt:
        log.warning(
            "%s is still running; --attach follows it again, and this stops it: ray job stop --address %s %s",
            submission_id,
            server.address,
            submission_id,
        )
        raise
    except LostContact as error:
        log.error("%s: %s; --attach follows it again", submission_id, error)
        return 1
    log.info("%s: %s", submission_id, ended)
    if ended.state == "FAILED" and not ended.ran:
        log.error("%s: %s", submission_id, ended.message)
    return ended.exit_code if ended.exit_code is not None else 1


def submission_id_of(config: Config) -> str:
    """Return the submission's id, PIPELINE-YYYY-MM-DD-ATTEMPT."""
    date = config.date or datetime.datetime.now(datetime.UTC).date()
    return f"{config.pipeline or config.command[0]}-{date.isoformat()}-{config.attempt}"


def inner_config(command: Sequence[str]) -> JobConfig:
    """Parse the command as its own job would; RequestError if that job would refuse it."""
    from surveybridge.jobs.registry import parse_job

    job, *arguments = command
    if job == "submit":
        raise RequestError("-- submit: submit cannot submit itself; name the job that is to run")
    try:
        return parse_job(job, arguments, f"surveybridge {job}")[1]
    except RequestError as error:
        raise RequestError(f"-- {job}: {error}") from None


def check_paths(command: Sequence[str], inner: JobConfig, working_dir: Path | None) -> list[str]:
    """Refuse relative paths that mean nothing on the cluster; return the files that must be uploaded.

    The job runs in a scratch copy of the working directory. Inputs may lie in it, but results would be lost with it.
    """
    for name in RESULTS:
        value = getattr(inner, name, None)
        if value is None or "://" in str(value):
            continue
        if not Path(value).is_absolute():
            raise RequestError(
                f"--{name} {value} is relative, and the job's folder on the cluster is thrown away; give an s3:// URL "
                "or an absolute path on a file system that all nodes share"
            )
        log.warning("--%s %s must be on a file system that all nodes share", name, value)
    if inner.storage_options is not None and not inner.storage_options.is_absolute():
        raise RequestError(
            f"--storage-options {inner.storage_options} is relative, and would be uploaded with its secrets; put the "
            "file on the nodes and give its absolute path there"
        )
    travel = []
    for text in [*_texts(inner), *_config_file(command)]:
        if not text or "://" in text or Path(text).is_absolute():
            continue
        for name in (text, f"{text}.json", f"{text}.safetensors"):
            there = working_dir / name if working_dir is not None else None
            if there is not None and there.exists():
                files = there.rglob("*") if there.is_dir() else [there]
                travel += [str(file.relative_to(working_dir or Path())) for file in files]
            elif Path(name).exists():
                raise RequestError(
                    f"{name} is here but will not be on the cluster ("
                    + (f"it is not in --working-dir {working_dir}" if working_dir else "no --working-dir is given")
                    + "); put it into a --working-dir, or give a URL"
                )
    return travel


def weights_of(working_dir: Path) -> list[str]:
    """Return the shipped checkpoints in a working directory, relative to it; none where it does not hold our code."""
    return [str(path.relative_to(working_dir)) for glob in PACKAGED for path in working_dir.glob(glob)]


def environment(asked: Sequence[str], here: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables of the job: those of `PASSED` that are set, and those that were asked for."""
    env = {name: here[name] for name in PASSED if name in here}
    for item in (part for text in asked for part in ([text] if "=" in text else text.split(","))):
        name, given, value = item.partition("=")
        if name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            raise RequestError(
                f"--env {name}: a job's variables are not secret, and the nodes have the token already; leave it out"
            )
        if not given and name not in here:
            raise RequestError(f"--env {name} is not set here; set it, or give --env {name}=VALUE")
        env[name] = value if given else here[name]
    return env


def write_through(text: str) -> None:
    """Print a piece of the job's log at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _texts(inner: JobConfig) -> Iterator[str]:
    """Yield the given settings that may be paths: no defaults, and no choices (a folder may be called ray)."""
    for name in sorted(inner.model_fields_set.difference(RESULTS)):
        if typing.get_origin(type(inner).model_fields[name].annotation) is not Literal:
            value = getattr(inner, name)
            items = value if isinstance(value, tuple) else [value]
            yield from (str(item) for item in items if isinstance(item, str | Path))


def _config_file(command: Sequence[str]) -> Iterator[str]:
    for before, argument in zip(["", *command], command, strict=False):
        if before == "--config":
            yield argument
        elif argument.startswith(("--config=", "config=")):
            yield argument.partition("=")[2]
