"""A Python that has imported everything already: `python()` is an executable that takes the arguments of python.

A process that imports torch, Ray and astropy takes seconds of a core to start, and tests start hundreds. This
executable asks a server, which has imported them, for a fork of itself, and stands in for the fork: it passes signals
on, ends as the fork ended, and when it is killed, so is the fork. In the fork it is `sys.executable`: Ray's daemons and
workers that a fork starts are forks too. The house itself is imported anew. Where a fork would not be what was asked
for (other options of python, another namespace, other values of what is read on import), the executable becomes a real
Python.

Not for tests of memory, which forks share, of process groups, of which each fork has its own, or of the start itself.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import io
import marshal
import os
import re
import runpy
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

IMPORTS = (
    *("numpy", "torch", "torch.distributed", "torch.profiler", "scipy.interpolate", "scipy.ndimage", "scipy.signal"),
    *("scipy.stats", "pandas", "duckdb", "safetensors.numpy", "matplotlib.figure", "matplotlib.backends.backend_agg"),
    *("pyarrow.parquet", "pyarrow.fs", "pyarrow.compute", "pyarrow.dataset", "pydantic", "yaml", "zarr", "s3fs"),
    *("aiobotocore.session", "astropy.io.fits", "astropy.wcs", "astropy.table", "astropy.coordinates", "ray.data"),
    *("ray.train.torch", "ray.dashboard.agent", "ray.dashboard.dashboard", "ray._private.log_monitor"),
    *("ray._private.runtime_env.agent.main", "ray.autoscaler._private.monitor"),
)
READ_ON_IMPORT = re.compile(
    rb"(RAY_(?!EXPERIMENTAL_NOSET_)[A-Z]|PYTHON|OMP_|MKL_|OPENBLAS_|NUMBA_|TRITON_|TORCH_|ARROW_|LC_|LANG|MPL)"
)
"""Names of variables that must have the same value in a fork; Ray's own in small letters are read anew, and those that
keep devices visible, which the drivers of submitted jobs get, where devices are assigned."""
READ_LATER = {
    *(b"RAY_ADDRESS", b"RAY_AUTH_MODE", b"RAY_AUTH_TOKEN", b"RAY_JOB_ID", b"RAY_LD_PRELOAD_ON_WORKERS", b"RAY_NODE_ID"),
    *(b"RAY_RAYLET_PID", b"RAY_TMPDIR", b"PYTHONPATH"),
    *(b"PYTHONDONTWRITEBYTECODE", b"RAY_DEDUP_LOGS_SKIP_REGEX", b"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC"),
    *(b"PYTHONBREAKPOINT", b"PYTHONUNBUFFERED", b"RAY_JOB_CONFIG_JSON_ENV_VAR", b"RAY_JOB_STOP_WAIT_TIME_S"),
}
AGENTS = {"RAY_enable_pipe_based_agent_to_parent_health_check": "1"}
"""As every raylet sets it for its agents, which read it on import: else a raylet would have to be their parent."""
SCRIPTS = ("surveybridge", "ray")
SHARED = "SURVEYBRIDGE_WARM_PYTHON"
"""Variable with the executable of a server that a caller of ours has started."""
NAMESPACES = ("mnt", "net", "pid", "user", "uts")
HIGH = 500
"""File handles of a fork are below."""

CLIENT = """#!{python} -ISE
import _signal, _socket, marshal, posix, sys

words = {before!r} + sys.argv[1:]
first = (words[1:] if words[:1] == ["-u"] else words)[:1]
server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)


def ask():
    handles = []
    for handle in map(int, posix.listdir("/proc/self/fd")):
        try:
            if handle != server.fileno() and posix.fstat(handle):
                handles.append(handle)
        except OSError:  # the one that listed them
            pass
    mask = [int(number) for number in _signal.pthread_sigmask(_signal.SIG_BLOCK, [])]
    niceness = posix.nice(0)
    deaf = _signal.getsignal(_signal.SIGINT) == _signal.SIG_IGN
    spaces = [posix.readlink("/proc/self/ns/" + name) for name in {namespaces!r}]
    posix.umask(umask := posix.umask(0))
    body = marshal.dumps((words, posix.environ, posix.getcwd(), handles, mask, deaf, niceness, umask, spaces))
    rights = b"".join(handle.to_bytes(4, sys.byteorder) for handle in handles)
    server.connect({socket!r})
    server.sendmsg([len(body).to_bytes(8, "little")], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    server.sendall(body)
    return int.from_bytes(server.recv(8), "little")


try:
    pid = ask() if first and (first[0] in ("-m", "-c") or first[0][:1] != "-") else 0
except OSError:
    pid = 0
if not pid:
    posix.execv({python!r}, [{python!r}, *words])
for number in (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGQUIT, _signal.SIGUSR1, _signal.SIGUSR2):
    _signal.signal(number, lambda number, frame: posix.kill(pid, number))
with open("/proc/self/comm", "w") as name:
    name.write("fork %d" % pid)
reply = server.recv(8)
status = int.from_bytes(reply, "little") if reply else _signal.SIGKILL
if posix.WIFSIGNALED(status):
    number = posix.WTERMSIG(status)
    if number not in (_signal.SIGKILL, _signal.SIGSTOP):
        _signal.signal(number, _signal.SIG_DFL)
    posix.kill(posix.getpid(), number)
posix._exit(posix.WEXITSTATUS(status))
"""


@functools.cache
def python() -> str:
    """The executable; the first call starts the server, which ends with this process. `SCRIPTS` lie beside it.

    A caller that lets several processes of tests share its own has put it into `SHARED`.
    """
    if shared := os.environ.get(SHARED):
        return shared
    folder = Path(tempfile.mkdtemp(prefix="warm", dir="/tmp"))  # paths of Unix sockets hold 107 characters
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    scripts = {name: [str(Path(sysconfig.get_path("scripts"), name))] for name in SCRIPTS}
    for name, before in {"python": [], **scripts}.items():
        text = CLIENT.format(python=sys.executable, socket=f"{folder}/socket", before=before, namespaces=NAMESPACES)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    from surveybridge.cluster import connect  # noqa: F401  # sets RAY_DEDUP_LOGS_SKIP_REGEX, with which to import Ray

    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    # Ray sets RAY_CLIENT_MODE to 0 as it is imported: what has it and what has it not can both be forked
    environment = {name: value for name, value in os.environ.items() if name != "RAY_CLIENT_MODE"} | AGENTS
    server = subprocess.Popen([sys.executable, __file__, folder], env=environment, process_group=0, **pipes)
    assert server.stdin is not None and server.stdout is not None
    atexit.register(server.wait)
    atexit.register(server.stdin.close)
    if server.stdout.readline() != b"ready\n":
        raise RuntimeError("the server of forks has ended instead of saying that it is ready")
    return str(folder / "python")


def is_on() -> bool:
    """Whether it gives forks; if not, all processes are real ones, and tests take minutes longer."""
    said = subprocess.run([python(), "-c", "import sys; print(sys.executable)"], stdout=subprocess.PIPE, check=True)
    return said.stdout.decode().strip() == python()


def path() -> str:
    """PATH with the executable, as `python`, and `SCRIPTS` before all others, which come from this Python's folder."""
    return os.pathsep.join([str(Path(python()).parent), str(Path(sys.executable).parent), os.environ["PATH"]])


@contextlib.contextmanager
def executable() -> Iterator[None]:
    """Make it `sys.executable` of this process: what Ray starts meanwhile are forks, and its workers later."""
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, sys, "executable", sys.executable)
        sys.executable = python()
        yield


def fork_of(pid: int) -> int:
    """Process in whose stead a process stands, as soon as it does; itself where it is a real one.

    A fork may have become what stands for another, as a worker of Ray with variables of its own does. Kill this process
    where what follows must not find it at work any more: a fork whose stand-in is killed ends a moment later.
    """
    name, _, number = Path(f"/proc/{pid}/comm").read_text().strip().rpartition(" ")
    return fork_of(int(number)) if name == "fork" else pid


@dataclass(frozen=True)
class Request:
    """What a process is given that is started."""

    words: list[str]
    environment: dict[bytes, bytes]
    folder: str
    handles: list[int]
    mask: list[int]
    deaf: bool
    """Whether SIGINT is ignored, as in what a script runs in the background."""
    niceness: int
    umask: int
    namespaces: list[str]
    received: list[int]
    """The same as `handles`, here."""

    @classmethod
    def receive(cls, client: socket.socket) -> Request:
        """Read it; EOFError or ValueError where the client has ended before it has said all."""
        size, received, _, _ = socket.recv_fds(client, 8, 250)
        try:
            body, whole = b"", int.from_bytes(size, "little")
            while len(body) < whole and (part := client.recv(whole - len(body))):
                body += part
            asked: tuple[Any, ...] = (*marshal.loads(body), received)
        except (EOFError, ValueError, TypeError, OSError):
            for handle in received:
                os.close(handle)
            raise
        return cls(*asked)

    def can_be_forked(self, before: Mapping[bytes, bytes]) -> bool:
        """Whether what was imported with an environment of `before` is what would be imported."""
        for name in filter(READ_ON_IMPORT.match, {*self.environment, *before} - READ_LATER):
            if self.environment.get(name) not in (before.get(name), os.environb.get(name)):
                return False
        return self.namespaces == [os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES]


def serve(folder: str, before: Mapping[bytes, bytes]) -> Request:
    """Fork for whoever asks, until stdin is closed. It returns in the forks alone, with what was asked for."""
    selector, listener = selectors.DefaultSelector(), socket.socket(socket.AF_UNIX)
    listener.bind(f"{folder}/socket")
    listener.listen(128)

    def asked() -> Request | None:
        client = listener.accept()[0]
        try:
            request = Request.receive(client)
        except (EOFError, ValueError, TypeError, OSError):
            client.close()
            return None
        try:
            pid = os.fork() if request.can_be_forked(before) else -1
        except OSError:  # no memory, or no more processes: whoever asks tries a real one
            pid = -1
        if pid == 0:
            gc.freeze()  # or sockets of the server, collected late, would close what the fork has opened by then
            return request
        for handle in request.received:
            os.close(handle)
        if pid == -1:
            client.close()
            return None
        end = os.pidfd_open(pid)
        selector.register(client, selectors.EVENT_READ, functools.partial(is_gone, client, pid))
        selector.register(end, selectors.EVENT_READ, functools.partial(has_ended, end, client, pid))
        with contextlib.suppress(OSError):
            client.sendall(pid.to_bytes(8, "little"))
        return None

    def is_gone(client: socket.socket, pid: int) -> None:
        if client.fileno() == -1:  # both have ended since the selector looked, and the fork was seen to first
            return
        selector.unregister(client)
        os.kill(pid, signal.SIGKILL)

    def has_ended(end: int, client: socket.socket, pid: int) -> None:
        selector.unregister(end)
        os.close(end)
        status = os.waitpid(pid, 0)[1]
        with contextlib.suppress(KeyError):
            selector.unregister(client)
        with contextlib.suppress(OSError):
            client.sendall(status.to_bytes(8, "little"))
        client.close()

    selector.register(listener, selectors.EVENT_READ, asked)
    selector.register(sys.stdin, selectors.EVENT_READ, functools.partial(os._exit, 0))
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            if request := key.data():
                return request


def become(request: Request, folder: str, path: list[str], before: Mapping[bytes, bytes]) -> None:
    """Give this fork what was asked for. `path` and `before` are `sys.path` and the environment before the imports."""
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no fork outlives the server
    moved = [os.dup2(handle, HIGH + n) for n, handle in enumerate(request.received)]
    os.closerange(0, HIGH)
    for handle, wanted in zip(moved, request.handles, strict=True):
        os.dup2(handle, wanted)
        os.close(handle)
    os.chdir(request.folder)
    os.umask(request.umask)
    os.nice(max(0, request.niceness - os.nice(0)))
    old = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    imported = {name: value for name, value in os.environb.items() if name not in before}
    os.environb.clear()
    os.environb.update(imported | request.environment)
    new = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = [*new, *path[1 + len(old) :]]
    sys.executable = f"{folder}/python"
    importlib.invalidate_caches()
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    open_standard_streams(unbuffered=request.words[0] == "-u" or bool(os.environ.get("PYTHONUNBUFFERED")))
    sys.modules["numpy"].random.seed()
    read_ray_settings()
    signal.signal(signal.SIGINT, signal.SIG_IGN if request.deaf else signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, request.mask)


def open_standard_streams(unbuffered: bool) -> None:
    """Open them as Python does: lines are written when they end in stderr, and in stdout on a terminal."""
    sys.stdin = sys.__stdin__ = os.fdopen(0, closefd=False)  # type: ignore[misc]
    for name, number in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        binary: Any = os.fdopen(number, "wb", buffering=0 if unbuffered else -1, closefd=False)
        stream = io.TextIOWrapper(binary, old.encoding, old.errors, write_through=unbuffered)
        stream.reconfigure(line_buffering=number == 2 or stream.isatty())
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def read_ray_settings() -> None:
    """Let Ray's library read the environment anew, as RAY_JOB_ID: it has read it when it was loaded."""
    instance, construct = ray_settings()
    construct(instance())


@functools.cache
def ray_settings() -> tuple[Callable[[], int], Callable[[int], None]]:
    """Two functions of Ray's library that it does not export: where its settings are, and what makes them.

    Its table of symbols is that of ELF: https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.symtab.html.
    """
    file = os.path.realpath(str(sys.modules["ray._raylet"].__file__))  # as the kernel names it below
    elf = Path(file).read_bytes()
    (start,), (size, number) = struct.unpack_from("<Q", elf, 40), struct.unpack_from("<HH", elf, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, start + n * size) for n in range(number)]
    _, _, _, _, table, length, strings, *_ = next(section for section in sections if section[1] == 2)
    wanted, found = (b"_ZN9RayConfig8instanceEv", b"_ZN9RayConfigC1Ev"), dict[bytes, int]()
    for name, _, _, _, value, _ in struct.iter_unpack("<IBBHQQ", elf[table : table + length]):
        for symbol in wanted:
            if elf.startswith(symbol + b"\0", sections[strings][4] + name):
                found[symbol] = value
    lines = Path("/proc/self/maps").read_text().splitlines()
    base = min(int(line.split("-")[0], 16) for line in lines if line.endswith(file))
    instance, construct = (base + found[symbol] for symbol in wanted)
    return ctypes.CFUNCTYPE(ctypes.c_void_p)(instance), ctypes.CFUNCTYPE(None, ctypes.c_void_p)(construct)


@contextlib.contextmanager
def no_random_ids_of_ray() -> Iterator[None]:
    """Let classes of actors that are imported meanwhile have ids of the kernel's random bytes.

    Ray's own generator is seeded with the first id that it draws. Forks of a process that has drawn one draw the same
    ids as each other: two workers once gave their calls of one actor one id, and the actor died of it.
    """
    actor: Any = importlib.import_module("ray.actor")
    kind = actor.ActorClassID
    actor.ActorClassID = types.SimpleNamespace(from_random=lambda: kind(os.urandom(kind.size())))
    yield
    actor.ActorClassID = kind


def run(words: list[str]) -> None:
    """Run the program in a new `__main__`."""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    kind, rest = words[0], words[1:]
    if kind == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = ["-m", *rest[1:]]
        runpy._run_module_as_main(rest[0])  # type: ignore[attr-defined]
    elif kind == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    else:
        sys.path.insert(0, os.path.dirname(os.path.realpath(kind)))
        sys.argv = [kind, *rest]
        vars(main).update(__file__=kind, __cached__=None)
        exec(compile(Path(kind).read_bytes(), kind, "exec"), vars(main))


def run_to_the_end(words: list[str]) -> NoReturn:
    """Run the program and end as Python does, but leave the modules to the kernel: taking them apart takes 0.3 s."""
    code: Any = 0
    try:
        run(words)
    except SystemExit as exit:
        code = exit.code
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for those that are no daemons
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = 120
    if code is not None and code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit((code or 0) & 255)


def main(folder: str) -> NoReturn:
    """Import, serve, and be what was asked for in each fork."""
    path, before = list(sys.path), dict(os.environb)
    with no_random_ids_of_ray():
        for name in IMPORTS:
            importlib.import_module(name)
    ray_settings()
    gc.collect()
    gc.freeze()  # or the first collection of each fork would copy all of it
    request = serve(folder, before)
    become(request, folder, path, before)
    run_to_the_end(request.words[request.words[0] == "-u" :])


if __name__ == "__main__":
    main(sys.argv[1])
