"""The same store and run folder in object storage: an S3 protocol server (moto) on the loopback interface.

`faulty` is a proxy in front of it: requests are counted, and fail as those of real servers do.
"""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
import zarr

from surveybridge.__main__ import main
from surveybridge.storage import retry, s3
from surveybridge.storage.errors import StorageError, StorageUnavailable
from surveybridge.storage.objectstore import Folder, zarr_store
from surveybridge.storage.query import query
from surveybridge.storage.runs import RunFolder, pending
from surveybridge.storage.tiles import TileStore
from tests.conftest import ROOT
from tests.storage.test_runs import RUN, make_candidates, write_tile
from tests.storage.test_tiles import assert_same_image, make_tile

pytestmark = pytest.mark.long


def make_store(url, options):
    """A store of one tile."""
    store = TileStore.create(url, storage_options=options)
    store.write_manifest([store.write_tile(make_tile())])
    return store


def test_a_tile_store_round_trips(bucket, options):
    store, tile = make_store(f"{bucket}/survey/tiles", options), make_tile()
    found = pickle.loads(pickle.dumps(TileStore.open(f"{bucket}/survey/tiles/", options))).read_tile("t0_1")
    assert_same_image(found.images["lsst"], tile.images["lsst"])
    assert_same_image(found.images["euclid"], tile.images["euclid"])
    assert store.read_tile("t0_1", halo=3).shape == (246, 226)
    assert store.manifest()["tile_id"].to_pylist() == ["t0_1"]
    assert TileStore.create(store.url, storage_options=options).manifest().equals(store.manifest())
    Folder.at(store.url, options).delete("manifest.parquet")
    with pytest.raises(StorageError, match=r"did not finish|no manifest"):
        TileStore.open(store.url, options).manifest()


def test_a_flipped_byte_in_the_bucket_is_found(bucket, options):
    store = make_store(f"{bucket}/tiles", options)
    folder = Folder.at(store.url, options)
    shard = "tiles/t0_1/lsst/flux/c/0/0/0"
    data = bytearray(folder.read(shard))
    data[len(data) // 2] ^= 1
    folder.put(bytes(data), shard)
    with pytest.raises(StorageError, match="lsst/flux cannot be read"):
        store.read_tile("t0_1")


def test_a_run_folder_round_trips_and_answers_queries(bucket, options, endpoint, monkeypatch, capsys):
    url = f"{bucket}/runs/one"
    run = RunFolder.open_or_create(url, RUN, options)
    mean, _, coverage = write_tile(run, "a", 0, 0, n=5)
    write_tile(pickle.loads(pickle.dumps(run)), "b", 0, 130, n=3, seed=1)
    run.commit({"tile_id": "c", "status": "failed", "reason": "corrupt"})
    assert pending(pa.table({"tile_id": ["a", "b", "c", "d"]}), run.ledger()) == ["d"]
    stitched = RunFolder.open(url, options).read_mosaic()
    assert stitched.mean.shape == (1, 100, 260)
    np.testing.assert_array_equal(stitched.mean[:, :, :130], mean)
    np.testing.assert_array_equal(stitched.coverage[:, :130], coverage)
    found = query(url, top=4, storage_options=options)
    assert found["rank"].to_pylist() == [1, 2, 3, 4]
    wanted = np.sort(np.concatenate([run.read_candidates(tile)["score"].to_numpy() for tile in "ab"]))[::-1][:4]
    np.testing.assert_array_equal(found["score"].to_numpy(), wanted)
    # The command finds the server where every S3 client does: in the environment.
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    assert main(["query", "--run", url, "--top", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert b"secret" not in Folder.at(url, options).read("run.json").lower()


def test_a_second_writer_sees_what_the_first_wrote(bucket, options):
    url = f"{bucket}/runs/shared"
    run = RunFolder.open_or_create(url, RUN, options)
    assert run.ledger().num_rows == 0  # the listing is now cached, if anything caches it
    other = RunFolder.open_or_create(url, RUN, options)
    other.write_candidates("a", make_candidates("a", 1))
    other.commit({"tile_id": "a", "status": "failed"})
    assert run.ledger().num_rows == 1
    with pytest.raises(StorageError, match="seed 1 but this run has 2"):
        RunFolder.open_or_create(url, {**RUN, "seed": 2}, options)


def test_something_else_in_a_bucket_is_said_to_be_so(bucket, options):
    Folder.at(bucket, options).put(b"x", "data", "a.fits")
    with pytest.raises(StorageError, match=r"not a tile store: found a folder with a\.fits"):
        TileStore.open(f"{bucket}/data", options)
    with pytest.raises(StorageError, match=r"not a run folder: found nothing"):
        RunFolder.open(f"{bucket}/absent", options)
    with pytest.raises(StorageError, match="neither empty nor a run folder"):
        RunFolder.open_or_create(f"{bucket}/data", RUN, options)


def committed(run, tile_id):
    write_tile(run, tile_id, 0, 0, n=3)


def test_a_tile_is_read_in_seven_requests_at_once(bucket, options, faulty, through_faults):
    make_store(f"{bucket}/tiles", options)
    store = TileStore.open(f"{bucket}/tiles", through_faults)
    store.read_tile("t0_1")  # asks once where the tiles are
    faulty.forget()
    faulty.delay = 1.0
    start = time.monotonic()
    store.read_tile("t0_1", halo=3)
    assert time.monotonic() - start < 5 * faulty.delay  # two rounds of requests, not seven
    assert faulty.counts() == {("GET", "metadata"): 1, ("GET", "shard"): 6}


def test_a_tile_is_written_in_three_requests(bucket, faulty, through_faults):
    run = RunFolder.open_or_create(f"{bucket}/run", RUN, through_faults)
    committed(run, "a")
    faulty.forget()
    committed(run, "b")
    assert faulty.counts() == {("PUT", "mosaics"): 1, ("PUT", "candidates"): 1, ("PUT", "ledger"): 1}


def test_the_ledger_is_one_listing_and_one_request_a_file(bucket, faulty, through_faults):
    run = RunFolder.open_or_create(f"{bucket}/run", RUN, through_faults)
    for tile in "abc":
        committed(run, tile)
    faulty.forget()
    assert run.ledger()["tile_id"].to_pylist() == ["a", "b", "c"]
    assert faulty.counts()["GET", "ledger"] == 3
    assert not any(operation == "HEAD" for operation, _ in faulty.counts())


def test_nothing_changes_where_a_third_of_all_requests_fail(bucket, options, faulty, through_faults):
    tile = make_tile()
    faulty.error_rate = faulty.cut_rate = faulty.lost_reply_rate = 0.12
    store = TileStore.create(f"{bucket}/tiles", storage_options=through_faults)
    store.write_manifest([store.write_tile(tile)])
    found = store.read_tile("t0_1")
    assert_same_image(found.images["lsst"], tile.images["lsst"])
    assert store.manifest().num_rows == 1
    run = RunFolder.open_or_create(f"{bucket}/run", RUN, through_faults)
    for name in "abcd":
        committed(run, name)
    assert query(run.url, top=24, storage_options=through_faults).num_rows == 12
    run.folder.delete_many([f"ledger/{name}.parquet" for name in "ab"])
    assert set(faulty.faults()) == {"slow_down", "cut", "lost_reply"}
    assert RunFolder.open(run.url, options).ok_tiles() == ["c", "d"]
    assert TileStore.open(store.url, options).read_tile("t0_1").shape == tile.shape


@pytest.mark.parametrize("seconds", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_server_that_is_down_for_a_while_is_waited_for(
    bucket, options, faulty, through_faults, seconds, caplog, monkeypatch
):
    monkeypatch.setattr(retry, "_quiet", retry._Quiet(seconds=10.0))  # it may just have spoken in another test
    store = make_store(f"{bucket}/tiles", through_faults)
    run = RunFolder.open_or_create(f"{bucket}/run", RUN, through_faults)
    with faulty.outage(seconds), ThreadPoolExecutor(2) as pool:
        start = time.monotonic()
        reading, writing = pool.submit(store.read_tile, "t0_1"), pool.submit(committed, run, "a")
        assert reading.result().shape == (300, 280)
        writing.result()
        assert seconds <= time.monotonic() - start < seconds + 40  # other lanes have the cores
    assert run.ok_tiles() == ["a"]
    assert "attempt 1; again in" in caplog.text


def test_a_server_that_stays_away_is_named_after_the_budget(bucket, faulty, through_faults, monkeypatch):
    monkeypatch.setenv("SURVEYBRIDGE_RETRY_SECONDS", "1")
    store = TileStore.create(f"{bucket}/tiles", storage_options=through_faults)
    faulty.down = True
    with pytest.raises(StorageUnavailable, match=rf"{bucket}/tiles/manifest.parquet: no success in \d+ attempts"):
        store.read_tile("t")
    with pytest.raises(StorageUnavailable, match=rf"{bucket}/tiles/manifest.parquet: no success"):
        store.manifest()
    with pytest.raises(StorageUnavailable):
        Folder.at(store.url, through_faults).exists("zarr.json")
    with pytest.raises(StorageUnavailable):
        Folder.at(store.url, through_faults).names()


def test_a_server_that_answers_nothing_is_asked_again(bucket, faulty, through_faults, monkeypatch):
    monkeypatch.setattr(s3, "ANSWER_SECONDS", 0.5)
    folder = Folder.at(bucket, through_faults)
    folder.put(b"x" * 100_000, "a")
    faulty.stalled = True
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(folder.put, b"y" * 100_000, "a")
        time.sleep(1.5)
        assert not writing.done()
        faulty.stalled = False
        writing.result()
    assert folder.read("a") == b"y" * 100_000


def test_zarr_itself_reads_through_the_same_retries(bucket, options, faulty, through_faults):
    folder = Folder.at(f"{bucket}/pairs", through_faults)
    group = zarr.create_group(zarr_store(folder, read_only=False))
    wanted = np.arange(4000, dtype=np.float32).reshape(1000, 4)
    group.create_array("lsst", data=wanted, chunks=(50, 4))
    faulty.error_rate = faulty.cut_rate = 0.2
    array = zarr.open_group(zarr_store(folder), mode="r")["lsst"]
    assert isinstance(array, zarr.Array)
    np.testing.assert_array_equal(array[...], wanted)
    assert {"slow_down", "cut"} <= set(faulty.faults())


def test_a_worker_process_finds_the_server_in_its_environment(bucket, options, faulty, monkeypatch):
    make_store(f"{bucket}/tiles", options)
    monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.url)
    faulty.script("slow_down", "GET", "zarr.json")
    faulty.script("cut", "GET", "lsst/flux/c")
    code = "import sys; from storage.tiles import TileStore; print(TileStore.open(sys.argv[1]).read_tile('t0_1').shape)"
    done = subprocess.run(
        [sys.executable, "-c", code, f"{bucket}/tiles"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "(300, 280)\n"
    assert faulty.faults() == {"slow_down": 1, "cut": 1}


def test_a_forked_process_makes_its_own_connections(bucket, options):
    folder = Folder.at(bucket, options)
    folder.put(b"x", "a")
    assert folder.read("a") == b"x"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process with threads: what is tested
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply_async(folder.read, ("a",)).get(timeout=30) == b"x"
