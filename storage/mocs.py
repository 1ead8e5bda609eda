"""Read a MOC (IVOA Multi-Order Coverage map 1.0 to 2.0): FITS with NUNIQ or RANGE, JSON, ASCII, or cells as text."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from surveybridge.storage.errors import StorageError
from surveybridge.storage.objectstore import file_at
from surveybridge.storage.regions import Coverage
from surveybridge.storage.sky import HEALPIX_ORDER

ICRS = ("C", "ICRS")
"""Values of COORDSYS for ICRS, the only frame that the standard allows."""

RANGE_ORDERS = {8: HEALPIX_ORDER, 4: 13, 2: 5}
"""Order of the cells of a column RANGE, by the bytes of its numbers."""

MOST_SHOWN = 200
"""Characters of cells that a message quotes."""

_CELLS = re.compile(r"\s*(?:(\d+)\s*/|(\d+)(?:-(\d+))?(?=[\s,]|$))[\s,]*")
_FRAME = re.compile(r"\b(?:COORDSYS|COOSYS|FRAME)\b\W*(\w+)", re.IGNORECASE)
_DIMENSION = re.compile(r"\bMOCDIM\b\W*([\w.]+)", re.IGNORECASE)


def read_moc(where: str | os.PathLike[str]) -> Coverage:
    """Read a MOC from a file (FITS, JSON or text, by its content), or from text such as `6/30-33 8/999`.

    Parameters
    ----------
    where : str or path
        File, local or s3://, which may be compressed with gzip; or the cells themselves.

    Raises
    ------
    StorageError
        If it is neither, covers nothing, is not in ICRS, or is a MOC of time or frequency.
    """
    text = os.fspath(where)
    is_file = Path(text).is_file() or "://" in text
    # cells may be long; the name of a file is shown whole
    name = f"MOC {text if is_file or len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + '...'!r}"
    data = _bytes(text) if is_file else text.encode()
    if data.startswith(b"SIMPLE  ="):
        ranges = _of_fits(data, name)
    else:
        try:
            written = data.decode("utf-8-sig").strip()
            ranges = _of_json(written, name) if written[:1] in ("{", "[") else _of_ascii(written, name)
        except (UnicodeDecodeError, json.JSONDecodeError, _NotCells):
            raise StorageError(
                f"{name} is neither a file in FITS, JSON or text nor cells; give one, or cells such as '6/30-33 8/999'"
            ) from None
    if not len(ranges):
        raise StorageError(f"{name} covers nothing; give one with cells, such as '6/30-33 8/999'")
    return Coverage(_joined(ranges, name))


class _NotCells(ValueError):
    """The text is not that of a MOC."""


def _bytes(where: str) -> bytes:
    folder, name = file_at(where)
    try:
        data = folder.read(name)
        return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except FileNotFoundError:
        raise StorageError(f"MOC {where} does not exist; give a file, or cells such as '6/30-33 8/999'") from None
    except (OSError, EOFError) as error:
        raise StorageError(
            f"MOC {where} cannot be read: {' '.join(str(error).split())[:120]}; check the file, or that you may read it"
        ) from error


def _of_fits(data: bytes, name: str) -> NDArray[np.int64]:
    """Ranges in the first table of a FITS file, unsorted."""
    try:
        with fits.open(io.BytesIO(data)) as hdus:
            table = next((hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU)), None)
            if table is None:
                raise StorageError(f"{name} has no table; give a FITS file whose table has ORDERING = NUNIQ or RANGE")
            header, columns = table.header, table.columns.names
            values = np.asarray(table.data.field(0)) if table.data is not None else np.zeros(0, np.int64)
    except (OSError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"{name} cannot be read as FITS: {' '.join(str(error).split())[:120]}; write the MOC again"
        ) from error
    _check_space(str(header.get("MOCDIM", "SPACE")), name)
    _check_frame(str(header.get("COORDSYS", ICRS[0])), name)
    ordering = str(header.get("ORDERING", "")).strip().upper()
    if (
        len(columns) != 1
        or values.ndim != 1
        or values.dtype.kind not in "iu"
        or values.dtype.itemsize == 1
        or ordering not in ("NUNIQ", "RANGE")
    ):
        raise StorageError(
            f"{name} has ORDERING = {ordering or 'nothing'} and columns {', '.join(columns)}; a MOC has NUNIQ or RANGE "
            "and one column of whole numbers"
        )
    numbers = values.astype(np.int64)
    if ordering == "RANGE":
        if len(numbers) % 2:
            raise StorageError(f"{name} has {len(numbers)} ends of ranges, an odd number; write the MOC again")
        order = np.full(len(numbers) // 2, RANGE_ORDERS[values.dtype.itemsize])
        return _at_order_29(order, numbers[::2], numbers[1::2] - 1, name)
    if len(numbers) and numbers.min() < 4:
        raise StorageError(f"{name} has the NUNIQ cell {numbers.min()}; the smallest is 4; write the MOC again")
    # NUNIQ = cell + 4^(order + 1): its highest bit tells the order.
    order = np.frexp(numbers.astype(np.float64))[1] - 1
    order -= (np.int64(1) << order) > numbers  # large numbers may have been rounded up
    order = order // 2 - 1
    return _at_order_29(order, numbers - (np.int64(4) << (2 * order)), numbers - (np.int64(4) << (2 * order)), name)


def _of_json(text: str, name: str) -> NDArray[np.int64]:
    """Ranges of a JSON document, {"order": [cells]}, unsorted."""
    document = json.loads(text)
    if isinstance(document, list) or any(str(key).lower() in ("t", "f") for key in document):
        _check_space("TIME.SPACE" if isinstance(document, list) else "TIME", name)
    document = next((value for key, value in document.items() if key == "s" and isinstance(value, dict)), document)
    for key in list(document):
        if not str(key).isdecimal():
            for check, pattern in ((_check_frame, _FRAME), (_check_space, _DIMENSION)):
                found = pattern.fullmatch(f"{key} {document[key]}")
                if found:
                    check(found[1], name)
            del document[key]
    cells = [(int(order), cell, cell) for order, listed in document.items() for cell in _whole(listed)]
    return _of_cells(cells, name)


def _whole(listed: Any) -> Iterable[int]:
    if not isinstance(listed, list) or any(type(cell) is not int for cell in listed):
        raise _NotCells
    return listed


def _of_ascii(text: str, name: str) -> NDArray[np.int64]:
    """Ranges of text such as `6/30-33,35 8/999`, with lines of comments that begin with #, unsorted."""
    lines = text.splitlines()
    for comment in (line for line in lines if line.startswith("#")):
        for check, pattern in ((_check_frame, _FRAME), (_check_space, _DIMENSION)):
            found = pattern.search(comment)
            if found:
                check(found[1], name)
    text = " ".join(line for line in lines if not line.startswith("#")).strip()
    letter = re.match(r"([tfs])\s*\d+\s*/", text)
    if letter is not None:
        several = re.search(r"\ss\s*\d+\s*/", text) is not None
        _check_space({"t": "TIME", "f": "FREQUENCY", "s": "SPACE"}[letter[1]] + ".SPACE" * several, name)
        text = text[1:]
    cells: list[tuple[int, int, int]] = []
    order, place = None, 0
    while place < len(text):
        match = _CELLS.match(text, place)
        if match is None or (match[1] is None and order is None):
            raise _NotCells
        if match[1] is not None:
            order = int(match[1])
        else:
            assert order is not None
            cells.append((order, int(match[2]), int(match[3] or match[2])))
        place = match.end()
    if order is None:
        raise _NotCells
    return _of_cells(cells, name)


def _of_cells(cells: list[tuple[int, int, int]], name: str) -> NDArray[np.int64]:
    for order, first, last in cells:
        if order > HEALPIX_ORDER:
            raise StorageError(f"{name} has the order {order}, above {HEALPIX_ORDER}; a MOC of the sky has none such")
        if not 0 <= first <= last < 12 * 4**order:
            raise StorageError(
                f"{name} has {order}/{first}-{last}; cells of order {order} ascend within 0..{12 * 4**order - 1}"
            )
    found = np.array(cells, np.int64).reshape(-1, 3)
    return _at_order_29(found[:, 0], found[:, 1], found[:, 2], name)


def _at_order_29(
    order: NDArray[Any], first: NDArray[np.int64], last: NDArray[np.int64], name: str
) -> NDArray[np.int64]:
    if len(order) and order.max() > HEALPIX_ORDER:
        raise StorageError(f"{name} has the order {order.max()}, above {HEALPIX_ORDER}; a MOC of the sky has none such")
    shift = 2 * (HEALPIX_ORDER - order.astype(np.int64))
    return np.stack([first << shift, ((last + 1) << shift) - 1], axis=1)


def _joined(ranges: NDArray[np.int64], name: str) -> NDArray[np.int64]:
    """Ranges, first and last cell of order 29, ascending and apart from each other."""
    if ranges.min() < 0 or ranges.max() >= 12 * 4**HEALPIX_ORDER or (ranges[:, 0] > ranges[:, 1]).any():
        raise StorageError(f"{name} has cells outside the sky, or ranges that end before they begin; write it again")
    ranges = ranges[np.argsort(ranges[:, 0], kind="stable")]
    until = np.maximum.accumulate(ranges[:, 1])
    starts = np.concatenate([[True], ranges[1:, 0] > until[:-1] + 1])
    ends = np.concatenate([np.flatnonzero(starts)[1:] - 1, [len(ranges) - 1]])
    return np.stack([ranges[starts, 0], until[ends]], axis=1)


def _check_frame(frame: str, name: str) -> None:
    if frame.strip().upper() not in ICRS:
        raise StorageError(f"{name} is in the frame {frame.strip()}, not ICRS (COORDSYS = C); convert it first")


def _check_space(dimension: str, name: str) -> None:
    if dimension.strip().upper() != "SPACE":
        raise StorageError(
            f"{name} is a MOC of {dimension.strip().upper()}, not of SPACE alone; give its part on the sky"
        )
