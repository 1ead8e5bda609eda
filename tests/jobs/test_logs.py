"""Logs for machines: one JSON object a line, with the run and the tile it is about, from every thread and process."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from surveybridge.jobs.config import RequestError
from surveybridge.jobs.running import progress
from surveybridge.jobs.running.progress import log_context, setup_logging

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import logging, os, sys
from surveybridge.jobs.running.progress import log_context, progress, setup_logging
setup_logging()
setup_logging()
log = logging.getLogger("surveybridge.jobs.translate")
log.info("start")
with log_context(run="s3://b/r"):
    with log_context(tile="t0001", stage="read"):
        log.warning("two\\nlines")
    if os.fork() == 0:  # a worker keeps what its context was
        log.info("in a child")
        os._exit(0)
    os.wait()
    list(progress([1, 2], "translate"))
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
"""


def stderr_of(script: str, form: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env={"SURVEYBRIDGE_LOG": form}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def test_json_lines_name_the_run_and_the_tile():
    start, warning, child, *progressed, failed = map(json.loads, stderr_of(SCRIPT, "json"))
    assert list(start) == ["time", "level", "logger", "message", "run", "tile"]
    assert (start["level"], start["logger"], start["run"], start["tile"]) == (
        "INFO",
        "surveybridge.jobs.translate",
        None,
        None,
    )
    assert start["time"].endswith("+00:00")
    assert (warning["message"], warning["run"], warning["tile"]) == ("two\nlines", "s3://b/r", "t0001")
    assert warning["stage"] == "read"
    assert (child["run"], child["tile"]) == ("s3://b/r", None)
    assert [line["message"] for line in progressed] == ["translate: 2/2 tiles in 0:00"]
    assert "ZeroDivisionError" in failed["traceback"] and failed["run"] is None


def test_plain_lines_name_them_too():
    lines = stderr_of(SCRIPT, "plain")
    assert lines[0].endswith("INFO surveybridge.jobs.translate: start")
    assert lines[2].endswith("lines [run=s3://b/r tile=t0001 stage=read]")
    assert "translate: 2/2 tiles in 0:00" in lines


def test_context_is_the_threads_own():
    seen = []
    with log_context(tile="t0001"):
        thread = threading.Thread(target=lambda: seen.append(dict(progress._context.get())))
        thread.start()
        thread.join()
    assert seen == [{}]
    assert dict(progress._context.get()) == {}


def test_an_unknown_form_is_refused(monkeypatch):
    monkeypatch.setenv("SURVEYBRIDGE_LOG", "xml")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with pytest.raises(RequestError, match=r"SURVEYBRIDGE_LOG=xml .* must be plain or json"):
        setup_logging()
