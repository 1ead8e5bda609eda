"""Forks that stand for processes of Python behave as these do, and start in a twentieth of the time."""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import warm
from tests.conftest import ROOT

# To import what forks share takes 4 s of a core, once in a lane.
pytestmark = pytest.mark.slow

HERE = "import os, sys; print('warm' in sys.executable, sys.argv, os.getcwd(), os.environ.get('WORD'), sys.path[0])"
ENDS = {
    "nothing": "pass",
    "a number": "import sys; sys.exit(3)",
    "words": "import sys; sys.exit('what went wrong')",
    "an error": "print('half a line', end=''); 1 / 0",
    "a signal": "import os; os.kill(os.getpid(), 15)",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "interrupted": "raise KeyboardInterrupt",
    "at once": "import os; os._exit(7)",
    "a thread and a last word": """
import atexit, sys, threading, time
atexit.register(print, "last")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
print("main", end=" ")
""",
}


@pytest.fixture(scope="module", autouse=True)
def own_server() -> Iterator[None]:
    """A server of this file's own, which starts with the environment of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(warm.SHARED, raising=False)
        patch.setattr(warm, "python", functools.cache(warm.python.__wrapped__))
        yield


def run(executable: str, *words: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([executable, *words], capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize("program", ENDS.values(), ids=ENDS)
def test_a_fork_ends_and_says_what_a_process_does(program):
    fork, real = (run(executable, "-c", program) for executable in (warm.python(), sys.executable))
    assert (fork.returncode, fork.stdout) == (real.returncode, real.stdout)
    assert fork.stderr.splitlines()[-1:] == real.stderr.splitlines()[-1:]


@pytest.mark.parametrize("words", [("-c", HERE, "--a", "b"), ("here.py", "c"), ("-m", "here", "d")])
def test_it_is_given_arguments_folder_environment_and_path(tmp_path, words):
    (tmp_path / "here.py").write_text(HERE)
    options = {"cwd": tmp_path, "env": os.environ | {"WORD": "of mine", "PYTHONPATH": f"{tmp_path}/more"}}
    fork, real = (run(executable, *words, **options) for executable in (warm.python(), sys.executable))
    assert fork.stdout == real.stdout.replace("False", "True", 1) and fork.stdout.startswith("True"), fork.stderr


def test_it_reads_stdin_and_writes_where_it_is_told_to(tmp_path):
    copy = "import sys; sys.stdout.write(sys.stdin.read().upper()); sys.stderr.write('to stderr')"
    with open(tmp_path / "out", "w") as out:
        subprocess.run([warm.python(), "-c", copy], input="words\n", stdout=out, stderr=out, text=True, check=True)
    assert (tmp_path / "out").read_text() in ("WORDS\nto stderr", "to stderrWORDS\n")


def test_a_signal_reaches_it_and_whoever_stands_for_it_ends_as_it_does():
    waiting = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); print('on', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([warm.python(), "-c", waiting], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "on\n"
        process.terminate()
        assert process.wait(30) == 143


@pytest.mark.parametrize("which", ["the fork", "what stands for it"])
def test_none_of_the_two_outlives_the_other(which):
    waiting = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with subprocess.Popen([warm.python(), "-c", waiting], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        fork = int(process.stdout.readline())
        assert warm.fork_of(process.pid) == fork != process.pid and warm.fork_of(os.getpid()) == os.getpid()
        os.kill(fork if which == "the fork" else process.pid, signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while Path(f"/proc/{fork}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("said", [b"", b"abc", (9).to_bytes(8, "little") + b"half", (3).to_bytes(8, "little") + b"xyz"])
def test_who_is_killed_while_it_asks_leaves_the_server_at_work(said):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(Path(warm.python()).with_name("socket")))
        client.sendall(said)
    assert warm.is_on()


def test_many_that_are_killed_together_with_their_forks_leave_the_server_at_work():
    waiting = [warm.python(), "-c", "print(flush=True); import time; time.sleep(60)"]
    processes = [subprocess.Popen(waiting, stdout=subprocess.PIPE) for _ in range(40)]
    forks = []
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        forks.append(warm.fork_of(process.pid))
    for process, fork in zip(processes, forks, strict=True):
        os.kill(fork, signal.SIGKILL)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert warm.is_on()


@pytest.mark.parametrize(
    "words, variables",
    [
        *((["-W", "error"], {}), (["-X", "dev"], {})),
        *(([], {"OMP_NUM_THREADS": "3"}), ([], {"RAY_DEDUP_LOGS": "0"}), ([], {"RAY_CLIENT_MODE": "1"})),
    ],
)
def test_other_options_and_settings_that_imports_read_get_a_real_process(words, variables):
    done = run(warm.python(), *words, "-c", "import sys; print(sys.executable)", env=os.environ | variables)
    assert done.stdout == f"{sys.executable}\n", done.stderr


@pytest.mark.parametrize("variables", [{}, {"RAY_CLIENT_MODE": "0"}])
def test_with_and_without_what_ray_sets_as_it_is_imported_it_is_a_fork(variables):
    rest = {name: value for name, value in os.environ.items() if name != "RAY_CLIENT_MODE"}
    done = run(warm.python(), "-c", "import sys; print(sys.executable)", env=rest | variables)
    assert done.stdout == f"{warm.python()}\n", done.stderr


def test_what_the_drivers_of_submitted_jobs_are_given_is_read_in_the_fork():
    given = {"RAY_EXPERIMENTAL_NOSET_HIP_VISIBLE_DEVICES": "1", "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}
    given |= {"PYTHONUNBUFFERED": "1", "PYTHONBREAKPOINT": "ray.util.rpdb.set_trace"}
    program = "import os, sys; print(sys.executable, sys.stdout.write_through, *sorted(os.environ)); os._exit(0)"
    done = run(warm.python(), "-c", program, env=os.environ | given)
    executable, unbuffered, *names = done.stdout.split()
    assert (executable, unbuffered) == (warm.python(), "True"), done.stderr
    assert given.keys() <= set(names)


def test_forks_draw_different_random_numbers_and_import_the_house_of_their_folder(tmp_path):
    program = """
import threading
import numpy, random, ray, surveybridge

def draw(): print(ray.UniqueID.from_random().hex())

print(numpy.random.random(), random.random(), surveybridge.__file__)
draw()
thread = threading.Thread(target=draw)
thread.start()
thread.join()
"""
    (tmp_path / "surveybridge.py").touch()
    one, other, elsewhere = (run(warm.python(), "-c", program, cwd=folder) for folder in (ROOT, ROOT, tmp_path))
    first, second = set(one.stdout.split()), set(other.stdout.split())
    assert len(first) == 5 and first & second == {str(ROOT / "surveybridge" / "__init__.py")}
    assert elsewhere.stdout.split()[2] == str(tmp_path / "surveybridge.py")


def test_a_fork_that_collects_garbage_closes_no_file_of_its_own(monkeypatch):
    # A server that has forked much is at another point between two collections.
    monkeypatch.setattr(warm, "python", functools.cache(warm.python.__wrapped__))
    program = """
import gc, os
handles = [os.open(os.devnull, os.O_RDONLY) for _ in range(50)]
gc.collect()
for handle in handles:
    os.fstat(handle)
print(handles[0])
"""
    others = [subprocess.Popen([warm.python(), "-c", "import time; time.sleep(60)"]) for _ in range(3)]
    try:
        assert run(warm.python(), "-c", program).stdout == "3\n"
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_the_console_script_is_the_command():
    words = ["ingest", "--no-such-flag", "1"]
    fork, real = (
        run(str(Path(warm.python()).with_name("surveybridge")), *words),
        run(sys.executable, "-m", "surveybridge", *words),
    )
    assert fork.returncode == real.returncode == 2 and fork.stderr == real.stderr
