"""The version, in a module that stands on nothing, so that every other may import it."""

from __future__ import annotations

__version__ = "0.1.0"
