"""Stop a job in good order: the first SIGTERM asks it to finish what it has begun, and the second one ends it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

DRAINED = 143
"""Exit code of a job that SIGTERM stopped before everything was done: 128 + 15, as in shells."""

SAME_REQUEST = 2.0
"""Seconds within which further SIGTERMs repeat the first: `timeout` and batch systems send it to a process and again
to its group."""


class _Drain(threading.Event):
    """The event of this process's drain, and the handler that sets it."""

    since = 0.0

    def on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        """Set the event; at a later signal exit with `DRAINED`, and die at once at the one after that."""
        if self.is_set():
            if time.monotonic() - self.since < SAME_REQUEST:
                return
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            sys.exit(DRAINED)
        self.since = time.monotonic()
        self.set()
        # Not logged: the signal may have interrupted a write to the same stream.
        os.write(2, b"SIGTERM: finishing the work under way; a second SIGTERM stops at once\n")


@contextmanager
def drain_on_sigterm() -> Iterator[threading.Event]:
    """Set the event at the first SIGTERM, exit with `DRAINED` at the second, and die at once at the third.

    Inside another such context, the event is that of the outer one. Outside the main thread, where Python allows no
    handlers, the event is never set.
    """
    outer = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(outer, _Drain):
        yield outer
        return
    drain = _Drain()
    with _handling(drain.on_sigterm):
        yield drain


@contextmanager
def exit_on_sigterm(prog: str) -> Iterator[None]:
    """Leave through all `finally` with exit code `DRAINED` at SIGTERM, instead of dying in the middle."""

    def on_sigterm(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(2, f"{prog}: stopped by SIGTERM; run the same command again\n".encode())
        sys.exit(DRAINED)

    with _handling(on_sigterm):
        yield


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
