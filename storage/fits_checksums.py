"""CHECKSUM and DATASUM of HDUs: sums over the bytes as they lie in the file (FITS standard 4.0, 4.4.2.7)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from astropy.io.fits import Header

from surveybridge.storage.errors import StorageError

CHUNK = 2880 * 1456
"""Bytes read at a time: whole blocks of FITS, 4 MB."""

_ALL_ONES = 0xFFFFFFFF


def check_sums(hdu: Any, where: str) -> None:
    """Refuse an HDU whose header or data are not what its CHECKSUM and DATASUM say; nothing if it has neither.

    Parameters
    ----------
    hdu : HDU
        Of an open file, compressed images included.
    where : str
        File and extension, for messages.

    Raises
    ------
    StorageError
        With the keyword, the stated sum and the computed one.
    """
    place = (getattr(hdu, "_bintable", None) or hdu).fileinfo()
    if not place or place.get("file") is None:
        return
    file, start = place["file"], place["hdrLoc"]
    header_bytes = _read(file, start, place["datLoc"] - start)
    header = Header.fromstring(header_bytes)
    stated_data, stated_all = header.get("DATASUM"), header.get("CHECKSUM")
    # some pipelines keep sums of their own under these names: integers, or none
    data_stated = isinstance(stated_data, str) and re.fullmatch(r"\s*\d+\s*", stated_data) is not None
    all_stated = (
        isinstance(stated_all, str) and re.fullmatch(r"[0-9A-Za-z:;<=>?@\[\\\]^_`]{16}", stated_all) is not None
    )
    if not (data_stated or all_stated):
        return
    data = 0
    for block in _blocks(file, place["datLoc"], place["datSpan"]):
        data = _add(data, block)
    if data_stated and int(stated_data) != data:
        raise StorageError(
            f"{where}: DATASUM is {stated_data.strip()} but its data sum to {data}; the file is damaged or was edited: "
            "get it again, or take it as it is with --stale-sums"
        )
    if all_stated and _add(data, header_bytes) not in (0, _ALL_ONES):
        raise StorageError(
            f"{where}: CHECKSUM is {stated_all} but header and data sum to {_add(data, header_bytes)}, not to "
            f"{_ALL_ONES}; the file is damaged or was edited: get it again, bring CHECKSUM up to "
            "date, or take it as it is with --stale-sums"
        )


def _add(total: int, block: bytes) -> int:
    """Ones'-complement sum of 32-bit words, most significant byte first, continued from `total`."""
    padded = block + b"\0" * (-len(block) % 4)
    total += int(np.frombuffer(padded, ">u4").sum(dtype=np.uint64))
    while total >> 32:
        total = (total & _ALL_ONES) + (total >> 32)
    return total


def _read(file: Any, start: int, size: int) -> bytes:
    file.seek(start)
    return bytes(file.read(size))


def _blocks(file: Any, start: int, size: int) -> Iterator[bytes]:
    for offset in range(0, size, CHUNK):
        yield _read(file, start + offset, min(CHUNK, size - offset))
