"""What the cluster refuses."""

from __future__ import annotations


class ClusterError(ValueError):
    """The cluster cannot do what is asked of it; the message says what, both numbers and the remedy."""
