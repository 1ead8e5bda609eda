"""Connect to Ray, or start it on this machine."""

from __future__ import annotations

import os
import signal
import threading

# Without a dashboard, the helper of Ray Train that removes the placement group of a dead controller complains every
# second that it cannot query the controller's state. A cluster that was started here ends with its driver, placement
# groups included, so nothing is lost. Ray reads the variable when it is imported.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "Failed to query Ray Train Controller actor state")

import ray


def start_ray(slots: int) -> bool:
    """Connect to the cluster that RAY_ADDRESS names, or start one here with `slots` CPUs and one for the driver.

    Returns
    -------
    bool
        True if Ray was started or connected here, so that the caller must call `stop_ray`.
    """
    if ray.is_initialized():
        return False
    before = signal.getsignal(signal.SIGTERM)
    if os.environ.get("RAY_ADDRESS"):
        ray.init()
    else:
        # "local": a head that happens to run on this machine is joined only when RAY_ADDRESS names it
        ray.init(
            "local", num_cpus=max(os.cpu_count() or 1, slots + 1), include_dashboard=False, configure_logging=False
        )
    if callable(before) and threading.current_thread() is threading.main_thread():
        # A job that drains has its own handler, which ray.init replaces by one that ends the driver.
        signal.signal(signal.SIGTERM, before)
    return True


def stop_ray() -> None:
    """Disconnect from Ray; a cluster that was started here ends."""
    ray.shutdown()
