"""The same store and run folder in object storage: a real S3 protocol server (moto) on the loopback interface."""

from __future__ import annotations

import pickle
import uuid

import numpy as np
import pyarrow as pa
import pytest

from jobs.__main__ import main
from storage.errors import StorageError
from storage.objectstore import Folder
from storage.query import query
from storage.runs import RunFolder, pending
from storage.tiles import TileStore
from tests.storage.test_runs import RUN, make_candidates, write_tile
from tests.storage.test_tiles import assert_same_image, make_tile

moto_server = pytest.importorskip("moto.server", reason="needs the dev extra: moto[server]")


@pytest.fixture(scope="module")
def endpoint():
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def options(endpoint):
    return {"key": "test", "secret": "test", "client_kwargs": {"endpoint_url": endpoint}}


@pytest.fixture
def bucket(options):
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    Folder.at(f"s3://{name}", options).filesystem.mkdir(name)
    return f"s3://{name}"


def test_a_tile_store_round_trips(bucket, options):
    store = TileStore.create(f"{bucket}/survey/tiles", grid_id="test-grid", storage_options=options)
    tile = make_tile()
    store.write_manifest([store.write_tile(tile)])
    found = pickle.loads(pickle.dumps(TileStore.open(f"{bucket}/survey/tiles/", options))).read_tile("t0_1")
    assert_same_image(found.lsst, tile.lsst)
    assert_same_image(found.euclid, tile.euclid)
    assert store.read_tile("t0_1", halo=3).shape == (246, 226)
    assert store.manifest()["tile_id"].to_pylist() == ["t0_1"]
    again = TileStore.create(store.url, grid_id="test-grid", storage_options=options)
    with pytest.raises(StorageError, match="did not finish"):
        again.manifest()


def test_a_flipped_byte_in_the_bucket_is_found(bucket, options):
    store = TileStore.create(f"{bucket}/tiles", grid_id="test-grid", storage_options=options)
    store.write_tile(make_tile())
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
