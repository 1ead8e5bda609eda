"""Drain: the first SIGTERM asks, the second ends, and Ray does not take the handler away."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from surveybridge.jobs.running.drain import drain_on_sigterm

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import os, signal, sys, time
from surveybridge.jobs.running.drain import DRAINED, drain_on_sigterm
with drain_on_sigterm() as drain:
    if "ray" in sys.argv:
        import ray
        from surveybridge.cluster.connect import start_ray, stop_ray
        assert start_ray(5)
        assert not start_ray(5)
        assert ray.cluster_resources()["CPU"] >= 6
    assert not drain.is_set()
    os.kill(os.getpid(), signal.SIGTERM)
    assert drain.wait(5)
    if "twice" in sys.argv:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    if "ray" in sys.argv:
        stop_ray()
        assert not ray.is_initialized()
sys.exit(DRAINED if "twice" not in sys.argv else 0)
"""


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SCRIPT, *options], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("options", [(), ("twice",)])
def test_sigterm_sets_the_event_and_a_second_one_ends_the_process(options):
    done = run(*options)
    assert done.returncode == 143, done.stderr
    assert done.stderr == "SIGTERM: finishing the work under way; a second SIGTERM stops at once\n"


@pytest.mark.slow  # a cluster of its own
def test_ray_is_started_once_with_a_slot_for_the_driver_and_does_not_take_the_handler_away():
    done = run("ray")
    assert done.returncode == 143, done.stderr


def test_the_handler_before_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with drain_on_sigterm():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_get_an_event_that_nothing_sets():
    seen = []

    def enter() -> None:
        with drain_on_sigterm() as drain:
            seen.append(drain.is_set())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [False]
