"""Open FITS files at a path or URL: everything that is wrong with a file becomes one line, astropy's notes too."""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from astropy.io import fits
from astropy.io.fits.hdu.compressed._compression import CfitsioException
from astropy.io.fits.verify import VerifyError, VerifyWarning
from astropy.utils.exceptions import AstropyUserWarning, AstropyWarning

from surveybridge.storage.errors import StorageError, StorageUnavailable
from surveybridge.storage.objectstore import open_filesystem

log = logging.getLogger(__name__)

UNREADABLE = (
    OSError, ValueError, TypeError, LookupError, EOFError, OverflowError, MemoryError, AttributeError, VerifyError,
    AstropyUserWarning, CfitsioException, zlib.error, struct.error,
)  # fmt: skip
"""What astropy and the decompressors raise on damaged files."""


@contextmanager
def open_fits(path: str, storage_options: Mapping[str, Any] | None = None) -> Iterator[fits.HDUList]:
    """Open a FITS file at a path or URL; StorageError if it is not there or not FITS.

    Notes of astropy are logged in one line each.
    """
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", AstropyWarning)
        # what astropy can repair says nothing about the pixels
        warnings.simplefilter("ignore", VerifyWarning)
        # astropy only warns of a file that ends early, and then reads what is not there
        warnings.filterwarnings("error", message="File may have been truncated", category=AstropyUserWarning)
        try:
            filesystem, inside = open_filesystem(path, storage_options)
            with filesystem.open(inside, "rb") as stream, fits.open(stream, memmap=False) as hdus:
                yield hdus
        except (StorageError, StorageUnavailable):
            raise
        except FileNotFoundError as error:
            raise StorageError(f"{path}: no such file; check the path") from error
        except UNREADABLE as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise StorageError(f"{path}: cannot be read as FITS ({reason}); give a complete FITS file") from error
    for text in dict.fromkeys(" ".join(str(note.message).split()) for note in notes):
        log.warning("%s: %s", path, text)
