"""SurveyBridge: probabilistic translation between sky surveys.

``import surveybridge as sb`` is enough in a notebook. It loads nothing: each of the names below brings what it needs
when it is first used, so that `open_run` does without torch and `load_checkpoint` without Parquet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from surveybridge.version import __version__ as __version__

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
