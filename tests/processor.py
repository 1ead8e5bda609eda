"""Processor time of tests and of all that they start, counted by control groups of the kernel (Linux, as root)."""

from __future__ import annotations

import atexit
import contextlib
import os
from pathlib import Path

import pytest

ROOTS = (Path("/sys/fs/cgroup/cpuacct"), Path("/sys/fs/cgroup"))
"""Where groups are made: the first version of control groups, and the second."""


class Group:
    """A control group for a process, below the one in which this process is; whatever it starts is in it too."""

    def __init__(self, name: str, pid: int) -> None:
        root = next((root for root in ROOTS if (root / "cgroup.procs").exists()), None)
        if root is None:
            raise OSError(f"no control groups in {' or '.join(map(str, ROOTS))}: processor time cannot be counted here")
        self.folder = root / _own(root) / f"{name}-{pid}"
        self.folder.mkdir()
        (self.folder / "cgroup.procs").write_text(str(pid))

    def seconds(self) -> float:
        """Processor seconds of all processes that are, or were, in the group."""
        nanoseconds = self.folder / "cpuacct.usage"
        if nanoseconds.exists():
            return int(nanoseconds.read_text()) / 1e9
        return int((self.folder / "cpu.stat").read_text().split()[1]) / 1e6  # its first line: usage_usec NUMBER

    def close(self) -> None:
        """Remove the group; what is left in it, as servers that are about to end, goes where the group was made."""
        with contextlib.suppress(OSError):
            for pid in (self.folder / "cgroup.procs").read_text().split():
                (self.folder.parent / "cgroup.procs").write_text(pid)
            self.folder.rmdir()


def _own(root: Path) -> str:
    """Return the folder below `root` of the group in which this process is."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, folder = line.split(":", 2)
        if root.name in controllers.split(",") or (root == ROOTS[1] and not controllers):
            return folder.lstrip("/")
    return ""


class PerTest:
    """Writes a line a test: its processor seconds with setup and teardown, and its name.

    A fixture that tests share counts for the first of them.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.group = Group("tests", os.getpid())
        atexit.register(self.group.close)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item):
        """Run a test, and write what it took."""
        before = self.group.seconds()
        result = yield
        with open(self.file, "a") as lines:  # a short line at the end of a file: workers may share it
            lines.write(f"{self.group.seconds() - before:.2f}\t{item.nodeid}\n")
        return result
