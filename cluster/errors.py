"""The error that this library raises."""

from __future__ import annotations


class ClusterError(ValueError):
    """The cluster cannot do what was asked of it; the message says what, both numbers and the remedy."""
