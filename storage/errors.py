"""The errors of this library, and those of the kernel that say the same."""

from __future__ import annotations

import errno


class StorageError(ValueError):
    """An input or a store is not what it should be; the message says what, where, and the remedy.

    The message is one line: what is wrong, where (file, tile), both values, and the remedy. Jobs turn it into exit
    code 2, so it is raised before anything is written.
    """


class DamagedData(StorageError):
    """Stored data fails its checksum, or part of it is gone."""


class StorageUnavailable(OSError):
    """Storage did not do a request within the time it is given; the request itself may be fine."""


class StorageFull(StorageUnavailable):
    """A file system or a quota has no space left; the same request goes through once there is room."""


_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG)


def is_unwritable(error: BaseException | None) -> bool:
    """Return whether the kernel or a store says that this user may not write there, or that there is no such name."""
    return isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno in _REFUSED)
