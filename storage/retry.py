"""Retries of requests to object storage: which failures are transient, and how long to try again.

A store may be overloaded (503 SlowDown), restarting, or behind a network that drops connections; a run of days meets
all of it. Every request is repeated with exponential backoff and jitter until a budget of time is used up. What says
something about the request itself (no such key, access denied, a condition that does not hold) is never repeated.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import aiohttp
import botocore.exceptions as boto
from botocore.parsers import ResponseParserError

from surveybridge.storage.errors import StorageError, StorageUnavailable

logger = logging.getLogger(__name__)

BUDGET_VARIABLE = "SURVEYBRIDGE_RETRY_SECONDS"
"""Environment variable with the seconds for which a failing request is repeated; 120 where it is not set."""

TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
TRANSIENT_CODES = frozenset(
    {
        "BadDigest",  # the body was damaged on its way
        "ConditionalRequestConflict",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "XAmzContentSHA256Mismatch",
    }
)
TRANSIENT_ERRORS = (
    ConnectionError,
    TimeoutError,
    asyncio.TimeoutError,
    aiohttp.ClientError,
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    ResponseParserError,  # an error page of something in between, which is no XML
)

_random = random.SystemRandom()  # forked workers must not wait in step

T = TypeVar("T")


@dataclass(frozen=True)
class Retry:
    """The schedule of retries: waits of `first` seconds, doubling up to `longest`, for `budget` seconds in all."""

    budget: float = 120.0
    first: float = 0.2
    longest: float = 10.0

    @classmethod
    def from_environment(cls) -> Retry:
        """The budget that the environment asks for; StorageError if it is not a number of seconds."""
        text = os.environ.get(BUDGET_VARIABLE)
        if text is None:
            return cls()
        try:
            budget = float(text)
        except ValueError:
            budget = -1.0
        if not budget >= 0:
            raise StorageError(f"{BUDGET_VARIABLE} is {text!r}; give a number of seconds, 0 or more")
        return cls(budget=budget)

    def wait(self, failures: int) -> float:
        """Return the wait after that many failures: half to all of the doubled wait, so that clients spread out."""
        return min(self.longest, self.first * 2.0 ** min(failures - 1, 30)) * _random.uniform(0.5, 1.0)


async def retrying(attempt: Callable[[], Awaitable[T]], what: str, retry: Retry | None = None) -> T:
    """Await `attempt()` again and again while it fails in a way that passes.

    Parameters
    ----------
    attempt : callable
        Makes one request.
    what : str
        Operation and URL, for messages.
    retry : Retry, optional
        By default what the environment says.

    Raises
    ------
    StorageUnavailable
        If the budget is used up; the last failure is its cause.
    """
    retry = retry or Retry.from_environment()
    start = time.monotonic()
    failures = 0
    while True:
        try:
            return await attempt()
        except Exception as error:
            if not is_transient(error):
                raise
            failures += 1
            spent, wait = time.monotonic() - start, retry.wait(failures)
            if spent + wait > retry.budget:
                raise StorageUnavailable(
                    f"{what}: no success in {failures} attempts within {spent:.0f} s of {retry.budget:.0f} s "
                    f"({describe(error)}); check that the store is up and reachable, then run again"
                ) from error
            _warn(what, error, failures, wait)
        await asyncio.sleep(wait)


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed later."""
    if isinstance(error, boto.ClientError):
        return http_status(error) in TRANSIENT_STATUS or error_code(error) in TRANSIENT_CODES
    if isinstance(error, boto.SSLError | aiohttp.ClientSSLError) and "certificate" in str(error).lower():
        return False
    return isinstance(error, TRANSIENT_ERRORS)


def http_status(error: BaseException) -> int:
    """HTTP status of a refusal by the server, 0 where there was none."""
    response = getattr(error, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def error_code(error: BaseException) -> str:
    """The server's code, such as SlowDown."""
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def describe(error: BaseException) -> str:
    """Kind of a failure, without its text: texts of HTTP errors may hold signed URLs."""
    if isinstance(error, boto.ClientError):
        return f"{error_code(error)}, HTTP {http_status(error)}"
    return type(error).__name__


class _Quiet:
    """Lets one warning in `seconds` through and counts the others: a storm of 503 must not become a storm of lines."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.last = -float("inf")
        self.held_back = 0
        self.lock = threading.Lock()

    def take(self) -> int | None:
        """Return how many messages were held back since the last one that passed; None to hold this one back, too."""
        with self.lock:
            now = time.monotonic()
            if now - self.last < self.seconds:
                self.held_back += 1
                return None
            held_back, self.held_back, self.last = self.held_back, 0, now
            return held_back


_quiet = _Quiet(seconds=10.0)


def _warn(what: str, error: BaseException, failures: int, wait: float) -> None:
    held_back = _quiet.take()
    if held_back is None:
        return
    more = f"; {held_back} other failures since the last such line" if held_back else ""
    logger.warning("%s failed (%s), attempt %d; again in %.1f s%s", what, describe(error), failures, wait, more)
