"""Folder: conditional writes and bulk deletes mean the same on a local disk and in S3."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest

from surveybridge.storage.errors import StorageError
from surveybridge.storage.objectstore import Folder, configure, configured, file_at


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    if request.param == "local":
        return Folder.at(tmp_path / "run")
    return Folder.at(f"{request.getfixturevalue('bucket')}/run", request.getfixturevalue("options"))


def test_a_new_file_is_written_once(folder):
    token = folder.put_new(b"one", "lease.json")
    assert token
    assert folder.put_new(b"two", "lease.json") is None
    assert folder.read_with_token("lease.json") == (b"one", token)
    assert folder.put_new(b"one", "lease.json") == token  # a request that is repeated
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


def test_files_of_a_folder_come_and_go_together(folder):
    folder.put_many({f"deep/er/{name}": name.encode() for name in "abc"})
    assert folder.names("deep") == ["er"]
    assert folder.read_many(["deep/er/c", "deep/er/a"]) == [b"c", b"a"]
    assert folder.read_existing(["deep/er/b", "deep/er/never"]) == {"deep/er/b": b"b"}
    with pytest.raises(FileNotFoundError):
        folder.read_many(["deep/er/b", "deep/er/never"])
    folder.put(b"x", "deeper")
    folder.delete_below("deep")
    folder.delete_below("never")
    assert folder.names() == ["deeper"]


def test_a_file_is_named_by_its_folder_also_at_the_root():
    assert file_at("/x.csv") == (Folder("/"), "x.csv") and Folder("/").path("x.csv") == Folder("/").file_url("x.csv")
    assert Folder.at("/").path() == "/" and "proc" in Folder.at("/").names()
    assert file_at("s3://sky/x.csv", {"anon": True}) == (Folder("s3://sky", {"anon": True}), "x.csv")
    with pytest.raises(StorageError, match=r"s3://x\.csv does not name a file"):
        file_at("s3://x.csv")


def test_a_protocol_that_is_none_is_refused():
    with pytest.raises(StorageError, match="foo://sky/run: Protocol not known: foo; give a local path or an s3:// URL"):
        Folder.at("foo://sky/run").names()


def test_a_place_that_takes_no_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for place, name in (("/proc/nowhere", "x"), (tmp_path / "file", "x"), (tmp_path.parent, tmp_path.name)):
        with pytest.raises(StorageError, match=f"{name} cannot be written: .*; give another place"):
            Folder.at(place).put(b"data", name)
    with pytest.raises(StorageError, match="cannot be written"):
        Folder.at(tmp_path / "file").put_new(b"data", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_a_console_made_is_empty(bucket, options):
    folder = Folder.at(f"{bucket}/run", options)
    name = bucket.removeprefix("s3://")
    folder.filesystem.call_s3("put_object", Bucket=name, Key="run/", Body=b"")
    assert folder.names() == []
    folder.put(b"x", "run.json")
    assert folder.names() == ["run.json"]


@pytest.mark.parametrize("fault", ["lost_reply", "slow_down", "reset"])
def test_a_conditional_write_whose_reply_is_lost_is_still_ours(bucket, faulty, through_faults, fault):
    folder = Folder.at(bucket, through_faults)
    faulty.script(fault, "PUT", "lease")
    first = folder.put_new(b"one", "lease.json")
    assert first
    faulty.script(fault, "PUT", "lease")
    second = folder.replace(b"two", first, "lease.json")
    assert second
    assert folder.read_with_token("lease.json") == (b"two", second)
    assert faulty.faults() == {fault: 2}


@pytest.mark.parametrize("fault", ["lost_reply", "slow_down", "reset"])
def test_a_conditional_write_that_lost_says_so_after_a_fault_too(bucket, options, faulty, through_faults, fault):
    theirs, ours = Folder.at(bucket, options), Folder.at(bucket, through_faults)
    token = theirs.put_new(b"theirs", "lease.json")
    faulty.script(fault, "PUT", "lease", times=2)
    assert ours.put_new(b"ours", "lease.json") is None
    assert token and theirs.replace(b"theirs again", token, "lease.json")
    faulty.script(fault, "PUT", "lease", times=2)
    assert ours.replace(b"ours", token, "lease.json") is None
    assert theirs.read("lease.json") == b"theirs again"


@pytest.fixture
def no_options(monkeypatch):
    """fsspec's configuration is put back afterwards."""
    monkeypatch.setattr(fsspec.config, "conf", {})


SECRET = "wJalrXUtnFEMIK7MDENG"


@pytest.mark.parametrize("how", ["endpoint_url", "client_kwargs", "profile", "anon", "requester_pays", "environment"])
def test_options_reach_the_server_and_no_log(how, bucket, faulty, tmp_path, monkeypatch, no_options, caplog):
    values = {
        "endpoint_url": {"endpoint_url": faulty.url, "key": "me", "secret": SECRET},
        "client_kwargs": {"client_kwargs": {"endpoint_url": faulty.url}, "key": "me", "secret": SECRET},
        "profile": {"profile": "survey"},
        "anon": {"anon": True, "endpoint_url": faulty.url},
        "requester_pays": {"requester_pays": True, "endpoint_url": faulty.url, "key": "me", "secret": SECRET},
        "environment": {},
    }[how]
    if how == "profile":
        (tmp_path / "config").write_text(
            f"[profile survey]\nendpoint_url = {faulty.url}\naws_access_key_id = me\naws_secret_access_key = {SECRET}\n"
        )
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    if how == "environment":
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    configure({"s3": values})
    folder = Folder.at(bucket)
    faulty.script("slow_down", "PUT")
    with caplog.at_level(logging.DEBUG):
        folder.filesystem.pipe_file(folder.path("a"), b"x", ACL="public-read")
        assert folder.read("a") == b"x"
    assert SECRET not in caplog.text + repr(folder)
    put, get = (next(r for r in faulty.log if r.operation == name and not r.fault) for name in ("PUT", "GET"))
    for request in (put, get):
        assert request.signed_by == (None if how == "anon" else "me")
        assert request.requester_pays == (how == "requester_pays")


def test_options_travel_to_a_worker_and_arguments_go_first(bucket, faulty, endpoint, no_options):
    configure({"s3": {"endpoint_url": faulty.url}})
    travelling = configured()
    fsspec.config.conf.clear()
    configure(travelling)
    Folder.at(bucket).put(b"x", "a")
    assert len(faulty.log) == 1
    Folder.at(bucket, {"endpoint_url": endpoint}).put(b"x", "a")
    assert len(faulty.log) == 1
    travelling["s3"]["endpoint_url"] = "changed"
    assert configured()["s3"]["endpoint_url"] == faulty.url


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"s4": {}}, "'s4', which fsspec does not know"),
        ({"s3": {"endpoint": SECRET}}, "storage options of s3: endpoint not known"),
        ({"s3": SECRET}, "not a mapping"),
    ],
)
def test_unknown_options_are_refused_without_their_values(options, message, no_options):
    with pytest.raises(StorageError, match=message) as found:
        configure(options)
    assert SECRET not in str(found.value)
    assert configured() == {}


def test_without_credentials_the_remedy_is_named(bucket, endpoint, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageError, match=rf"get_object {bucket}/a: Unable to locate credentials; set AWS_PROFILE"):
        Folder.at(bucket, {"endpoint_url": endpoint}).read("a")
    with pytest.raises(StorageError, match=r"\(nobody\) could not be found; set AWS_PROFILE"):
        Folder.at(bucket, {"endpoint_url": endpoint, "profile": "nobody"}).read("a")


def test_conditional_writes_elsewhere_are_refused():
    with pytest.raises(StorageError, match="conditional writes need a local folder or s3"):
        Folder.at("memory://x").put_new(b"x", "a")
