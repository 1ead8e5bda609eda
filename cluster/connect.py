"""Connect to Ray, or start it on this machine: apart from the driver's signals, with a token, in a short folder."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

# Without a dashboard, the helper of Ray Train that removes the placement group of a dead controller complains every
# second that it cannot query the controller's state. A cluster that was started here ends with its driver, placement
# groups included, so nothing is lost. Ray reads the variable when it is imported.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "Failed to query Ray Train Controller actor state")

import ray
import ray._private.services
import ray._private.utils
from ray._private.authentication.authentication_token_setup import _enable_token_auth
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError

from surveybridge.cluster.address import check_port
from surveybridge.cluster.errors import ClusterError
from surveybridge.cluster.scratch import scratch_folder


def start_ray(slots: int) -> bool:
    """Connect to the cluster that RAY_ADDRESS names, or start one here with `slots` CPUs and one for the driver.

    Handlers of SIGTERM stay as they are; Ray's own would end the driver at once. The processes of a cluster that is
    started here outlive a SIGTERM or Ctrl-C to the driver's whole process group, or to every process of the job, and
    end with the driver.

    Returns
    -------
    bool
        True if Ray was started or connected here, so that the caller must call `stop_ray`.

    Raises
    ------
    ClusterError
        If RAY_ADDRESS cannot be reached or refuses, or there is no folder for Ray's sockets and files.
    """
    if ray.is_initialized():
        return False
    if address := os.environ.get("RAY_ADDRESS"):
        check_port(address)
        try:
            with _handlers_kept():
                ray.init()
        except AuthenticationError:
            raise ClusterError(
                f"Ray at {address} refuses this process, whose RAY_AUTH_MODE is "
                f"{os.environ.get('RAY_AUTH_MODE') or 'not set'}; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or "
                "RAY_AUTH_TOKEN_PATH to the cluster's"
            ) from None
        return True
    folder = scratch_folder()
    _use_token()
    with _handlers_kept(), _processes_apart():
        # "local": a head that happens to run on this machine is joined only when RAY_ADDRESS names it
        ray.init(
            "local",
            num_cpus=max(os.cpu_count() or 1, slots + 1),
            include_dashboard=False,
            configure_logging=False,
            _temp_dir=str(folder),
        )
    return True


def stop_ray() -> None:
    """Disconnect from Ray; a cluster that was started here ends."""
    node = ray._private.worker._global_node
    if node is None or not node.is_head():
        ray.shutdown()
        return
    # Its processes do not hear the SIGTERM that Ray would send them first, and wait a second for each.
    vars(node)["kill_all_processes"] = functools.partial(_kill_all_processes, node.kill_all_processes)
    session = node.all_processes["raylet"][0].process.pid
    ray.shutdown()
    for pid in _processes_of(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _kill_all_processes(theirs: Callable[..., None], **options: Any) -> None:
    theirs(**options | {"allow_graceful": False})


def _processes_of(session: int) -> Iterator[int]:
    """Ids of the processes of a session: the raylet's are all workers and agents of the cluster."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with (
                contextlib.suppress(OSError),
                open(f"/proc/{entry.name}/stat", encoding="utf-8", errors="replace") as stat,
            ):
                if int(stat.read().rpartition(")")[2].split()[3]) == session:
                    yield int(entry.name)


def _use_token() -> None:
    """Let nobody else into a cluster that is started here, by a token that no file holds.

    Left alone, Ray writes one into the home folder, which may be read-only, and warns at every start.
    """
    if "RAY_AUTH_MODE" not in os.environ:
        _enable_token_auth()
    if os.environ["RAY_AUTH_MODE"].lower() == "token" and not _has_token():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        AuthenticationTokenLoader.instance().reset_cache()


def _has_token() -> bool:
    # without the argument, Ray raises where there is none
    return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Keep Ray from handling SIGTERM in this process: it would end the driver, and a job may want to drain.

    The handler of its libraries, which prints a stack and goes on to the one before it, is put aside afterwards.
    """
    before = signal.getsignal(signal.SIGTERM)
    theirs = ray._private.utils.set_sigterm_handler
    vars(ray._private.utils)["set_sigterm_handler"] = lambda handler: None
    try:
        yield
    finally:
        vars(ray._private.utils)["set_sigterm_handler"] = theirs
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _processes_apart() -> Iterator[None]:
    """Start Ray's processes in sessions of their own, deaf to SIGTERM: some systems send it to every process."""
    plain: Any = ray._private.services.ConsolePopen

    def apart(*arguments: Any, preexec_fn: Callable[[], None] = lambda: None, **keywords: Any) -> Any:
        def deaf() -> None:
            preexec_fn()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

        return plain(*arguments, start_new_session=True, preexec_fn=deaf, **keywords)

    vars(ray._private.services)["ConsolePopen"] = apart
    try:
        yield
    finally:
        vars(ray._private.services)["ConsolePopen"] = plain
