"""Processes that share the tests of a run: forks of the one that has collected them, which takes 5 s of a core.

Each takes one file after the other, with all of its tests, and hands its reports to the first process, which counts and
prints them as if it had run the tests.
"""

from __future__ import annotations

import atexit
import itertools
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

import pytest

LEFT_OUT = pytest.StashKey[bool]()
"""Of a session: whether tests were not run because the process died that would have run them."""


class Sharing:
    """A plugin that lets `count` processes run the tests.

    Parameters
    ----------
    count : int
        Processes; the first one, which collects, is none of them.
    begin : callable
        What each of them does with its configuration before its first test.
    """

    def __init__(self, count: int, begin: Callable[[pytest.Config], None]) -> None:
        self.count, self.begin = count, begin

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Let forks run what was collected; an error of the collection, or a mere collection, is pytest's own."""
        if session.testsfailed or session.config.option.collectonly:
            return None
        files = [list(items) for _, items in itertools.groupby(session.items, key=lambda item: item.path)]
        queue, entrance = os.pipe()
        os.write(entrance, b"".join(number.to_bytes(2, "big") for number in range(len(files))))
        os.close(entrance)
        forks = [Fork(session, files, queue, self.begin) for _ in range(min(self.count, len(files)))]
        os.close(queue)
        try:
            _pass_on(session, forks)
        finally:
            for fork in forks:
                fork.end()
        return True


class Fork:
    """A process that runs tests, as the first process sees it."""

    def __init__(
        self,
        session: pytest.Session,
        files: Sequence[Sequence[pytest.Item]],
        queue: int,
        begin: Callable[[pytest.Config], None],
    ) -> None:
        self.reports, there = Pipe(duplex=False)
        self.test: tuple[str, Any] = ("", None)
        """Name and place of the test that it began last."""
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            self.reports.close()
            _run(session, _taken(files, queue), there, begin)
        there.close()

    def end(self) -> int:
        """End it if it has not ended, and return its exit status, negative for a signal."""
        if self.status is None:
            if not self.reports.closed:
                self.reports.close()  # its next report is its last word
                os.kill(self.pid, signal.SIGINT)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status


def _pass_on(session: pytest.Session, forks: Sequence[Fork]) -> None:
    """Give the reports of all forks to this process's plugins until all have ended; one that dies is a failed test."""
    hooks = session.config.hook
    if terminal := session.config.pluginmanager.getplugin("terminalreporter"):
        terminal.showfspath = False  # tests of several files take turns
    running = list(forks)
    while running:
        ready = wait([fork.reports for fork in running])
        for fork in [fork for fork in running if fork.reports in ready]:
            try:
                name, arguments = fork.reports.recv()
            except EOFError:
                running.remove(fork)
                fork.reports.close()
                if status := fork.end():
                    session.stash[LEFT_OUT] = True
                    hooks.pytest_runtest_logreport(report=_death(fork, status))
                continue
            if name == "pytest_runtest_logstart":
                fork.test = (arguments["nodeid"], arguments["location"])
            if name == "pytest_runtest_logreport":
                arguments = {"report": hooks.pytest_report_from_serializable(config=session.config, **arguments)}
            getattr(hooks, name)(**arguments)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)


def _death(fork: Fork, status: int) -> pytest.TestReport:
    name, place = fork.test
    said = f"the process that ran tests ended with {status}, and what else it would have run of this file is not run"
    return pytest.TestReport(name, place or ("", None, ""), {}, "failed", said, "call")


# ---- in the forks


def _taken(files: Sequence[Sequence[pytest.Item]], queue: int) -> Iterator[Sequence[pytest.Item]]:
    """Files that this process takes from the queue, which all of them read."""
    while number := os.read(queue, 2):
        yield files[int.from_bytes(number, "big")]


def _run(
    session: pytest.Session,
    files: Iterator[Sequence[pytest.Item]],
    reports: Connection,
    begin: Callable[[pytest.Config], None],
) -> NoReturn:
    """Run the tests of files, hand over their reports, and end as Python does, but leave the modules to the kernel."""
    status = 1
    try:
        _start_anew(session.config, reports)
        begin(session.config)
        tests = itertools.chain.from_iterable(files)
        test = next(tests, None)
        while test is not None:
            following = next(tests, None)
            session.config.hook.pytest_runtest_protocol(item=test, nextitem=following)
            test = following
        threading._shutdown()  # type: ignore[attr-defined]  # waits for those that are no daemons
        atexit._run_exitfuncs()
        status = 0
    except (BrokenPipeError, KeyboardInterrupt):  # nobody wants to know any more
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _start_anew(config: pytest.Config, reports: Connection) -> None:
    """Give this fork files for captured output that are its own, and send its reports instead of printing them."""
    atexit._clear()
    plugins = config.pluginmanager
    if capture := plugins.getplugin("capturemanager"):
        capture.stop_global_capturing()
        capture.start_global_capturing()
        capture.suspend_global_capture()
    if terminal := plugins.getplugin("terminalreporter"):
        plugins.unregister(terminal)
    plugins.register(Sender(config, reports))


class Sender:
    """A plugin that sends what is reported."""

    def __init__(self, config: pytest.Config, reports: Connection) -> None:
        self.config, self.reports = config, reports

    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        """A test begins."""
        self.reports.send(("pytest_runtest_logstart", {"nodeid": nodeid, "location": location}))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A part of a test has ended."""
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.reports.send(("pytest_runtest_logreport", {"data": data}))

    def pytest_runtest_logfinish(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        """A test has ended."""
        self.reports.send(("pytest_runtest_logfinish", {"nodeid": nodeid, "location": location}))
