"""Stop in good order: SIGTERM asks a job to finish what it has begun, and a second one ends it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

DRAINED = 143
"""Exit code of a job that SIGTERM made stop before everything was done: 128 + 15, as shells count."""


@contextmanager
def drain_on_sigterm() -> Iterator[threading.Event]:
    """Set the event at the first SIGTERM; leave with `DRAINED` at the second, and at once at the third.

    `ray.init` puts a handler of its own in the place of any other; `cluster.connect.start_ray` puts this one back.
    Outside the main thread, where Python allows no handlers, the event stays as it is.
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
        os.write(2, b"SIGTERM: finishing what has begun; a second SIGTERM stops at once\n")

    before = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield drain
    finally:
        signal.signal(signal.SIGTERM, before)
