"""SurveyBridge: probabilistic translation between sky surveys.

``import surveybridge as sb`` is enough in a notebook. It loads nothing: each of the names below brings what it needs
when it is first used, so that `open_run` does without torch and `load_checkpoint` without Parquet.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from surveybridge.version import __version__ as __version__

# Read when torch loads OpenMP. By default its threads keep a core busy while they wait for each other, which is many
# times slower than one thread as soon as another process computes on that core (docs/performance.md, "More cores").
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

__all__ = [
    "PosteriorMap",
    "load_checkpoint",
    "open_run",
    "open_store",
    "read_catalog",
    "read_mosaic",
    "translate",
]

if TYPE_CHECKING:
    from surveybridge.notebook import (
        PosteriorMap,
        load_checkpoint,
        open_run,
        open_store,
        read_catalog,
        read_mosaic,
        translate,
    )
else:

    def __getattr__(name):
        """Load a name of `__all__` when it is first used (PEP 562)."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
        from importlib import import_module

        return globals().setdefault(name, getattr(import_module("surveybridge.notebook"), name))

    def __dir__():
        return sorted({*globals(), *__all__})
