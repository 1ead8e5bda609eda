"""S3 for the tests of this folder: one server a session, and a proxy in front of it that fails when told to."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from surveybridge.storage.objectstore import Folder
from tests.storage.faults import FaultyS3, moto_server


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    pytest.importorskip("moto.server", reason="needs the dev extra: moto[server]")
    with moto_server() as url:
        yield url


@pytest.fixture
def options(endpoint):
    return {"key": "test", "secret": "test", "client_kwargs": {"endpoint_url": endpoint}}


@pytest.fixture
def bucket(options):
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    Folder.at(f"s3://{name}", options).filesystem.mkdir(name)
    return f"s3://{name}"


@pytest.fixture
def faulty(endpoint) -> Iterator[FaultyS3]:
    with FaultyS3(endpoint) as proxy:
        yield proxy


@pytest.fixture
def through_faults(faulty):
    """Storage options that go through the proxy."""
    return {"key": "test", "secret": "test", "endpoint_url": faulty.url}
