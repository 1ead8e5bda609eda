"""The error that this library raises, and a kind of error that everything may raise: a disk without space."""

from __future__ import annotations

import errno


class ClusterError(ValueError):
    """The cluster cannot do what was asked of it; the message says what, both numbers and the remedy."""


FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the kernel says of a file system without space, and of a user without any left."""

REMEDY = "; make room there"
"""Against that; errors of our own storage end with it already."""

_FULL_TEXTS = ("No space left on device", "Disk quota exceeded")


def is_full(error: BaseException | None) -> bool:
    """Return whether a disk or a quota was full, says this error or one that led to it.

    Libraries that raise errors of their own quote the kernel's text; Ray names its refusal to spill objects.
    """
    while error is not None:
        if getattr(error, "errno", None) in FULL or type(error).__name__ == "OutOfDiskError":
            return True
        if any(text in str(error) for text in _FULL_TEXTS):
            return True
        error = getattr(error, "cause", None) or error.__cause__
    return False
