"""Drain: the first SIGTERM asks, the second ends; that Ray leaves the handler alone is in cluster/test_connect.py."""

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
from surveybridge.jobs.running import drain as module
from surveybridge.jobs.running.drain import DRAINED, drain_on_sigterm
module.SAME_REQUEST = 0.5
with drain_on_sigterm() as drain:
    assert not drain.is_set()
    os.kill(os.getpid(), signal.SIGTERM)
    assert drain.wait(5)
    for _ in range(3):  # as `timeout` and batch systems do: to the process, and to its group
        os.kill(os.getpid(), signal.SIGTERM)
    if "twice" in sys.argv:
        time.sleep(0.6)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
sys.exit(DRAINED if "twice" not in sys.argv else 0)
"""


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SCRIPT, *options], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("options", [(), ("twice",)])
def test_sigterm_sets_the_event_and_a_second_one_ends_the_process(options):
    done = run(*options)
    assert done.returncode == 143, done.stderr
    assert done.stderr == "SIGTERM: finishing the work under way; a second SIGTERM stops at once\n"


def test_inside_a_drain_there_is_no_second_one():
    with drain_on_sigterm() as outer, drain_on_sigterm() as inner:
        assert inner is outer


def test_sigterm_ends_a_job_that_cannot_drain_through_its_finally_blocks():
    script = """
import os, signal, sys
from surveybridge import __main__ as command
def run(*arguments):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        print("cleaned up", flush=True)
command._dispatch = run
command.main(["ingest"])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (143, "cleaned up\n")
    assert done.stderr == "surveybridge ingest: stopped by SIGTERM; run the same command again\n"


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
