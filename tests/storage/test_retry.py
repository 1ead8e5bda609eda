"""Retries: what passes is tried again within a budget, what does not is raised at once."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time

import aiohttp
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError, SSLError

from surveybridge.storage import retry
from surveybridge.storage.errors import StorageError, StorageUnavailable
from surveybridge.storage.retry import Retry, is_transient, retrying

SECRET = "wJalrXUtnFEMI"


def refusal(code: str, status: int) -> ClientError:
    response = {
        "Error": {"Code": code, "Message": f"signed with {SECRET}"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(response, "GetObject")


PASSES = [
    refusal("SlowDown", 503),
    refusal("InternalError", 500),
    refusal("503", 503),  # a HEAD has no body to name a code
    refusal("RequestTimeout", 400),
    refusal("ConditionalRequestConflict", 409),
    EndpointConnectionError(endpoint_url="http://h"),
    ReadTimeoutError(endpoint_url="http://h"),
    ConnectionResetError(),
    TimeoutError(),
    aiohttp.ClientPayloadError("cut"),
    SSLError(endpoint_url="https://h", error="EOF occurred in violation of protocol"),
]
STAYS = [
    refusal("NoSuchKey", 404),
    refusal("404", 404),
    refusal("AccessDenied", 403),
    refusal("PreconditionFailed", 412),
    refusal("InvalidArgument", 400),
    FileNotFoundError("x"),
    NoCredentialsError(),
    SSLError(endpoint_url="https://h", error=ssl.SSLCertVerificationError("certificate verify failed")),
    ValueError("x"),
]


@pytest.mark.parametrize("error", PASSES, ids=lambda error: type(error).__name__)
def test_what_passes_is_tried_again(error):
    assert is_transient(error)


@pytest.mark.parametrize("error", STAYS, ids=lambda error: type(error).__name__)
def test_what_the_request_itself_is_refused_for_is_not(error):
    assert not is_transient(error)


def attempts(*errors: Exception):
    """An attempt that fails with these one after another, and then returns how many there were."""
    left = list(errors)

    async def attempt() -> int:
        if left:
            raise left.pop(0)
        return len(errors)

    return attempt


@pytest.fixture
def no_waiting(monkeypatch):
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return waits


def test_waits_double_up_to_the_longest_and_differ_between_clients(no_waiting):
    plan = Retry(budget=1000, first=0.2, longest=10)
    assert asyncio.run(retrying(attempts(*[refusal("SlowDown", 503)] * 12), "get s3://b/k", plan)) == 12
    ceilings = [min(10, 0.2 * 2**n) for n in range(12)]
    assert all(ceiling / 2 <= wait <= ceiling for wait, ceiling in zip(no_waiting, ceilings, strict=True))
    assert len({plan.wait(9) for _ in range(10)}) > 1


def test_what_does_not_pass_is_raised_at_once(no_waiting):
    with pytest.raises(ClientError, match="NoSuchKey"):
        asyncio.run(retrying(attempts(ConnectionResetError(), refusal("NoSuchKey", 404)), "get"))
    assert len(no_waiting) == 1


def test_the_budget_ends_it_with_what_where_and_both_numbers():
    start = time.monotonic()
    with pytest.raises(StorageUnavailable, match=r"s3://b/k: no success in \d+ attempts within \d s of 1 s") as found:
        asyncio.run(retrying(attempts(*[refusal("SlowDown", 503)] * 99), "get s3://b/k", Retry(budget=1.0)))
    assert time.monotonic() - start < 10  # 99 attempts would wait for minutes
    assert "SlowDown, HTTP 503" in str(found.value)
    assert SECRET not in str(found.value)
    assert isinstance(found.value.__cause__, ClientError)


def test_a_storm_of_failures_is_one_line_without_the_servers_text(no_waiting, monkeypatch, caplog):
    monkeypatch.setattr(retry, "_quiet", retry._Quiet(seconds=60))
    with caplog.at_level(logging.DEBUG, "surveybridge.storage.retry"):
        asyncio.run(retrying(attempts(*[refusal("SlowDown", 503)] * 9), "get_object s3://b/k", Retry(budget=500)))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("get_object s3://b/k failed (SlowDown, HTTP 503), attempt 1; again in 0.")
    assert SECRET not in caplog.text
    monkeypatch.setattr(retry._quiet, "last", -1e9)
    with caplog.at_level(logging.DEBUG, "surveybridge.storage.retry"):
        asyncio.run(retrying(attempts(ConnectionResetError()), "put", Retry()))
    assert "; 8 other failures since the last such line" in caplog.text


def test_the_environment_sets_the_budget(monkeypatch):
    monkeypatch.delenv(retry.BUDGET_VARIABLE, raising=False)
    assert Retry.from_environment().budget == 120
    monkeypatch.setenv(retry.BUDGET_VARIABLE, "7.5")
    assert Retry.from_environment().budget == 7.5
    for wrong in ("soon", "-1", "nan"):
        monkeypatch.setenv(retry.BUDGET_VARIABLE, wrong)
        with pytest.raises(StorageError, match=f"SURVEYBRIDGE_RETRY_SECONDS is '{wrong}'"):
            Retry.from_environment()
