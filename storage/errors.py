"""The errors of this library."""

from __future__ import annotations


class StorageError(ValueError):
    """An input or a store is not what it should be; the message says what, where, and the remedy.

    The message is one line: what is wrong, where (file, tile), both values, and the remedy. Jobs turn it into exit
    code 2, so it is raised before anything is written.
    """


class DamagedData(StorageError):
    """Stored data fails its checksum, or part of it is gone."""


class StorageUnavailable(OSError):
    """Object storage did not do a request within the time it is given; the request itself may be fine."""
