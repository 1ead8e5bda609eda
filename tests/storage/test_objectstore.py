"""Folder: conditional writes and bulk deletes mean the same on a local disk and in S3."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from storage.errors import StorageError
from storage.objectstore import Folder

moto_server = pytest.importorskip("moto.server", reason="needs the dev extra: moto[server]")


@pytest.fixture(scope="module")
def endpoint():
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path, endpoint):
    if request.param == "local":
        return Folder.at(tmp_path / "run")
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    found = Folder.at(f"s3://{bucket}/run", {"endpoint_url": endpoint})
    found.filesystem.mkdir(bucket)
    return found


def test_a_new_file_is_written_once(folder):
    token = folder.put_new(b"one", "lease.json")
    assert token
    assert folder.put_new(b"two", "lease.json") is None
    assert folder.read_with_token("lease.json") == (b"one", token)
    assert folder.names() == ["lease.json"]


def test_a_file_is_replaced_only_by_who_knows_its_content(folder):
    first = folder.put_new(b"one", "lease.json")
    second = folder.replace(b"two", first, "lease.json")
    assert second and second != first
    assert folder.replace(b"three", first, "lease.json") is None
    assert folder.read("lease.json") == b"two"
    folder.delete("lease.json")
    assert folder.replace(b"three", second, "lease.json") is None
    assert not folder.exists("lease.json")


def test_of_many_writers_one_wins(folder):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: folder.put_new(b"%d" % n, "lease.json"), range(8)))
        assert sum(token is not None for token in made) == 1
        (token,) = (token for token in made if token)
        swapped = list(pool.map(lambda n: folder.replace(b"again %d" % n, token, "lease.json"), range(8)))
    assert sum(token is not None for token in swapped) == 1


def test_many_files_are_deleted_and_absent_ones_do_not_matter(folder):
    for name in "abc":
        folder.put(b"x", "ledger", name)
    folder.delete_many(["ledger/a", "ledger/b", "ledger/never"])
    assert folder.names("ledger") == ["c"]
    folder.delete_many([])


def test_conditional_writes_elsewhere_are_refused():
    with pytest.raises(StorageError, match="conditional writes need a local folder or s3"):
        Folder.at("memory://x").put_new(b"x", "a")
