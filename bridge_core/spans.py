"""Names for parts of the work, which a profile can see. If no profile listens, a span costs one look-up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

Listener = Callable[[str], AbstractContextManager[Any]]

_listener: ContextVar[Listener | None] = ContextVar("span_listener", default=None)
_nothing = contextlib.nullcontext()


def span(name: str) -> AbstractContextManager[Any]:
    """Name the work inside `name`, as in ``with span("network"): ...``; spans may be nested."""
    listener = _listener.get()
    return _nothing if listener is None else listener(name)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Listen to the spans of this thread: each of them enters and leaves what ``listener(name)`` returns."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
