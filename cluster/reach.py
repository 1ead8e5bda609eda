"""Find out whether a Ray cluster can be reached, or Ray be started, from here; in a process that may hang or die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from surveybridge.cluster.address import check_port
from surveybridge.cluster.errors import ClusterError


def reach(address: str, seconds: float = 60.0) -> dict[str, Any]:
    """Connect to Ray and describe the cluster.

    Parameters
    ----------
    address
        ``HOST:6379``, ``ray://HOST:10001``, ``auto``, or ``local`` to start Ray here and end it again.
    seconds
        Time within which Ray must answer.

    Returns
    -------
    dict
        `ray` (its version), `nodes` (number alive), `resources` (CPU, GPU, memory and others, of all nodes together).

    Raises
    ------
    ClusterError
        If Ray does not answer; the message has the remedy.
    """
    check_port(address)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "surveybridge.cluster.reach", address],
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(
            f"Ray at {address} accepts connections but has not answered in {seconds:.0f} s; run `ray status` there"
        ) from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        where = "cannot be started here" if address == "local" else f"at {address} refuses"
        raise ClusterError(
            f"Ray {where}: {said}; both sides need the same versions of Ray and Python, RAY_AUTH_MODE and token"
        )
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _look(address: str) -> dict[str, Any]:
    import ray

    if address == "local":
        from surveybridge.cluster.connect import start_ray

        os.environ.pop("RAY_ADDRESS", None)
        start_ray(1)
    else:
        ray.init(address, configure_logging=False)
    found = {
        "ray": ray.__version__,
        "nodes": sum(node["Alive"] for node in ray.nodes()),
        "resources": ray.cluster_resources(),
    }
    ray.shutdown()
    return found


if __name__ == "__main__":
    print(json.dumps(_look(sys.argv[1])))
