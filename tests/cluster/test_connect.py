"""Connect: Ray is started where there is none, with a slot for the driver, and ended by who started it."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
from surveybridge.cluster.connect import start_ray, stop_ray
import ray
assert start_ray(5)
assert not start_ray(5)
assert ray.cluster_resources()["CPU"] >= 6
stop_ray()
assert not ray.is_initialized()
"""


@pytest.mark.slow  # a cluster of its own
def test_ray_is_started_once_with_a_slot_for_the_driver_and_stopped():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
