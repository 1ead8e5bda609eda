"""The one error of this library: the request or the input is wrong, and the message says what to do."""

from __future__ import annotations


class BridgeError(ValueError):
    """A bridge, network, checkpoint or tile that does not fit; one line with both values and the remedy."""
