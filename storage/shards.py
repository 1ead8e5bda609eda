"""One array in one shard of Zarr v3: how it is written, and read without zarr-python.

zarr-python writes, and reads too, but hands every chunk through its event loop and threads: 2.5 ms an array, of which
a tile has six. Reading is some lines of the sharding specification: an index of (offset, length) at the end, and
chunks, each Blosc's, with CRC32C checksums on both (zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec

SHARD_KEY = "c/0/0/0"
"""Where the only shard of an array [C, H, W] lies below the array."""

_CHECKSUM = 4
"""Bytes of a CRC32C."""


def write_shard(group: zarr.Group, name: str, data: NDArray[Any], fill_value: Any, side: int) -> None:
    """Write [C, H, W] as the array `name`: one shard of chunks of one band and `side` x `side` pixels."""
    bands, height, width = data.shape
    chunk = (1, min(side, height), min(side, width))
    shard = (bands, math.ceil(height / chunk[1]) * chunk[1], math.ceil(width / chunk[2]) * chunk[2])
    array = group.create_array(
        name,
        shape=data.shape,
        dtype=data.dtype,
        chunks=chunk,
        shards=shard,
        compressors=[BloscCodec(cname="zstd", clevel=5, shuffle=BloscShuffle.bitshuffle), Crc32cCodec()],
        fill_value=fill_value,
        dimension_names=("band", "y", "x"),
        config={"write_empty_chunks": True},  # a missing shard is damage, not emptiness
    )
    array[...] = data


def read_shard(metadata: Mapping[str, Any], data: bytes) -> NDArray[Any]:
    """The array of a shard.

    Parameters
    ----------
    metadata : mapping
        The array's zarr.json.
    data : bytes
        The file at `SHARD_KEY`.

    Raises
    ------
    ValueError
        If the layout is not that of `write_shard`, or anything fails its checksum.
    """
    shape, chunk = _layout(metadata)
    counts = [math.ceil(size / part) for size, part in zip(shape, chunk, strict=True)]
    length = math.prod(counts) * 16
    packed = np.frombuffer(data, np.uint8)
    index = _checked(packed[-length - _CHECKSUM :], "its index").view("<u8").reshape(*counts, 2)
    dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
    out = np.empty([count * part for count, part in zip(counts, chunk, strict=True)], dtype.newbyteorder("="))
    for place in np.ndindex(*counts):
        offset, size = (int(n) for n in index[place])
        body = _checked(packed[offset : offset + size], f"chunk {place}")
        pixels = np.frombuffer(blosc.decompress(body), dtype).reshape(chunk)
        out[tuple(slice(n * part, (n + 1) * part) for n, part in zip(place, chunk, strict=True))] = pixels
    return np.ascontiguousarray(out[tuple(slice(size) for size in shape)])


def _layout(metadata: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape of the array and of a chunk; ValueError if `read_shard` cannot read it."""
    try:
        (codec,) = metadata["codecs"]
        sharding = codec["configuration"]
        shape, shard = metadata["shape"], metadata["chunk_grid"]["configuration"]["chunk_shape"]
        chunk = sharding["chunk_shape"]
        names = [[part["name"] for part in sharding[key]] for key in ("codecs", "index_codecs")]
        as_written = (
            codec["name"] == "sharding_indexed"
            and sharding.get("index_location", "end") == "end"
            and names == [["bytes", "blosc", "crc32c"], ["bytes", "crc32c"]]
            and sharding["codecs"][0].get("configuration", {}).get("endian", "little") == "little"
            and len(shape) == len(shard) == len(chunk) == 3
            and all(size <= part for size, part in zip(shape, shard, strict=True))
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"its zarr.json is not that of a sharded array: {error!r}") from error
    if not as_written:
        raise ValueError("it is not laid out as one shard of blosc and crc32c")
    # Chunks of the shard beyond the array are written as well, where the shard is larger.
    return tuple(map(int, shape)), tuple(map(int, chunk))


def _checked(data: NDArray[np.uint8], what: str) -> NDArray[np.uint8]:
    """`data` without its checksum; ValueError if the checksum is not that of the data."""
    body = data[:-_CHECKSUM]
    if len(data) < _CHECKSUM or google_crc32c.value(body) != int.from_bytes(data[-_CHECKSUM:].tobytes(), "little"):
        raise ValueError(f"{what} fails its checksum")
    return body
