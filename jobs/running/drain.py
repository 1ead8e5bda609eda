"""Stop a job in good order: the first SIGTERM asks it to finish what it has begun, and the second one ends it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

DRAINED = 143
"""Exit code of a job that SIGTERM stopped before everything was done: 128 + 15, as in shells."""


@contextmanager
def drain_on_sigterm() -> Iterator[threading.Event]:
    """Set the event at the first SIGTERM, exit with `DRAINED` at the second, and die at once at the third.

    `ray.init` replaces any handler by its own; `cluster.connect.start_ray` restores this one. Outside the main thread,
    where Python allows no handlers, the event is never set.
    """
    drain = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield drain
        return

    def on_sigterm(signum: int, frame: FrameType | None) -> None:
        if drain.is_set():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            sys.exit(DRAINED)
        drain.set()
        # Not logged: the signal may have interrupted a write to the same stream.
        os.write(2, b"SIGTERM: finishing the work under way; a second SIGTERM stops at once\n")

    before = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield drain
    finally:
        signal.signal(signal.SIGTERM, before)
