"""Runs a page of the documentation: its shell and Python blocks in order, each against the output that it shows.

A block of ```text right after a command is what the command prints to stdout; `...` in it stands for anything, such as
a time or a number that another processor rounds otherwise.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

from tests import warm

BLOCK = re.compile(r"^```(bash|python|text)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_page(page: Path, folder: Path, more: str = "", timeout: float = 900) -> dict[str, float]:
    """Run every block of `page` in `folder`; seconds by block, or an AssertionError that shows what differs.

    A translation gets `more` flags.
    """
    environment = os.environ | {
        "PATH": warm.path(),
        "RAY_TMPDIR": str(folder),
        "COLUMNS": "200",
    }
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):  # as a user's shell has them: Ray's default authentication
        environment.pop(name, None)
    seconds: dict[str, float] = {}
    printed = ""
    for kind, text in BLOCK.findall(page.read_text()):
        if kind == "text":
            assert shows(text, printed), f"{page.name} shows\n{text}\nbut printed was\n{printed}"
            continue
        command = ["bash", "-euo", "pipefail", "-c", text] if kind == "bash" else [warm.python(), "-c", text]
        command[-1] = command[-1].replace("surveybridge translate", f"surveybridge translate {more}")
        start = time.monotonic()
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        seconds[text] = time.monotonic() - start
        printed = done.stdout
        assert done.returncode == 0, f"{page.name}:\n{text}\nprinted\n{done.stdout}{done.stderr}"
    return seconds


def shows(expected: str, printed: str) -> bool:
    """Whether `printed` is `expected`, in which `...` stands for anything and runs of spaces count as one."""
    pattern = re.escape(" ".join(expected.split())).replace(re.escape("..."), ".*?")
    return re.fullmatch(pattern, " ".join(printed.split()), re.DOTALL) is not None
