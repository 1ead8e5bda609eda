"""The lease of a folder, such as a run's: of all drivers at most one writes, and one that died is followed by the next.

`lease.json` says who holds it, until when, and how far it is. Every write is conditional on the content read before
(`Folder.put_new`, `Folder.replace`), so that of two drivers exactly one wins. The holder renews it in a thread; a
holder whose process is gone from this machine is followed at once, one on another machine when its time is over.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from surveybridge.storage.errors import StorageError, StorageFull
from surveybridge.storage.objectstore import Folder, json_bytes

log = logging.getLogger(__name__)

FILE = "lease.json"

RENEWALS = 4
"""A lease is renewed so many times in its time to live: three may fail."""

RETRY_SECONDS = 0.2
"""Shortest pause of who waits for a lease."""


class LeaseHeld(StorageError):
    """Another driver holds the lease."""


class LeaseLost(RuntimeError):
    """Another driver holds the lease, or this one could not renew it in time: write nothing more."""


@dataclass(frozen=True)
class Holder:
    """The holder of a lease; times are Unix seconds, and `note` and `progress` were written by the holder."""

    host: str
    pid: int
    started: float
    expires_at: float
    note: Mapping[str, Any]
    progress: Mapping[str, Any]


class Lease:
    """A held lease. Take it with `acquire`; as a context manager it is given back at the end.

    Examples
    --------
    >>> with Lease.acquire(run.folder, note={"job": "translate"}) as lease:
    ...     for done, tile in enumerate(tiles):
    ...         lease.check()
    ...         lease.publish({"done": done})
    """

    def __init__(self, folder: Folder, document: Mapping[str, Any], token: str, *, ttl: float, until: float) -> None:
        self._folder = folder
        self._document = dict(document)
        self._token = token
        self._ttl = ttl
        self._until = until  # monotonic clock: nobody else takes the lease before
        self._lost: str | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_for_ever, name="lease", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(
        cls,
        folder: Folder,
        *,
        ttl: float = 60.0,
        wait: float = 0.0,
        note: Mapping[str, Any] | None = None,
        remedy: str = "give another --run URL",
    ) -> Lease:
        """Take the lease.

        Parameters
        ----------
        folder : Folder
            The folder of a run, a store or a catalog.
        ttl : float
            Seconds after which a holder that does not renew is taken for dead, > 0.
        wait : float
            Seconds to wait for another holder to finish or expire.
        note : mapping, optional
            JSON-like; stands in the document beside the holder.
        remedy : str
            What to do, in the refusal, besides waiting for the other or stopping it.

        Raises
        ------
        LeaseHeld
            If another driver holds it: who, until when, and what to do.
        """
        if not (math.isfinite(ttl) and ttl > 0):
            raise StorageError(f"lease of {folder.url}: ttl {ttl} s; give a number above 0")
        end = time.monotonic() + wait
        holder = {
            "holder": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "process_started": _process_start(os.getpid()),
            "started": time.time(),
            "note": dict(note or {}),
            "progress": {},
        }
        while True:
            start = time.monotonic()
            document = holder | {"expires_at": time.time() + ttl}
            current = _read(folder)
            if current is None:
                token = folder.put_new(json_bytes(document), FILE)
            elif why := _free(current[0]):
                token = folder.replace(json_bytes(document), current[1], FILE)
                if token is not None and not current[0].get("released"):
                    log.warning("%s: took over the lease of %s: %s", folder.url, _name(current[0]), why)
            else:
                token = None
            if token is not None:
                return cls(folder, document, token, ttl=ttl, until=start + ttl)
            if current is not None and not _free(current[0]) and time.monotonic() >= end:
                raise LeaseHeld(_refusal(folder, current[0], remedy))
            time.sleep(min(RETRY_SECONDS, ttl / RENEWALS))

    def check(self) -> None:
        """Raise LeaseLost if this process may not write any more."""
        if self._lost is None and time.monotonic() >= self._until:
            self._lost = (
                f"lease of {self._folder.url} could not be renewed for {self._ttl:g} s, another may hold it now"
            )
        if self._lost is not None:
            raise LeaseLost(f"{self._lost}; stop writing, and start the job again to resume")

    def publish(self, progress: Mapping[str, Any]) -> None:
        """Put `progress` (JSON-like) into the document at the next renewal."""
        text = json.loads(json.dumps(progress, allow_nan=False))  # here, where a mistake has a traceback
        with self._lock:
            self._document["progress"] = text

    def release(self) -> None:
        """Give back the lease; its last note stays readable. A lease that is lost is left as it is."""
        self._stop.set()
        self._thread.join()
        if self._lost is None:
            with self._lock:
                self._document |= {"expires_at": time.time(), "released": True}
                self._folder.replace(json_bytes(self._document), self._token, FILE)
            self._lost = f"lease of {self._folder.url} was given back"

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lease back, whatever happened; an error of that does not hide one of the body.

        On a full disk it stays: nobody waits for a process that is gone.
        """
        with contextlib.suppress(StorageFull if error is None else OSError):
            self.release()

    def _renew_for_ever(self) -> None:
        while self._lost is None and not self._stop.wait(self._ttl / RENEWALS):
            start = time.monotonic()
            try:
                self._renew(start)
            except Exception as error:  # storage is away: `check` raises once the time is over
                log.warning("%s: the lease could not be renewed: %s", self._folder.url, type(error).__name__)

    def _renew(self, start: float) -> None:
        with self._lock:
            self._document["expires_at"] = time.time() + self._ttl
            data = json_bytes(self._document)
        token = self._folder.replace(data, self._token, FILE)
        if token is None:
            current = _read(self._folder)
            if current is not None and current[0].get("holder") == self._document["holder"]:
                self._token = current[1]  # a renewal went through whose reply was lost; the next one renews it
                return
            other = "nobody" if current is None else _name(current[0])
            self._lost = f"lease of {self._folder.url} was taken by {other}"
            log.error("%s", self._lost)
            return
        self._token, self._until = token, start + self._ttl


def read_holder(folder: Folder) -> Holder | None:
    """Return who holds the lease of a run folder now, as far as can be told from here; None if nobody does."""
    found = _read(folder)
    if found is None or _free(found[0]):
        return None
    return Holder(**{field.name: found[0][field.name] for field in fields(Holder)})


def _read(folder: Folder) -> tuple[dict[str, Any], str] | None:
    """The document and its token; None if nobody ever held it, an empty document if it is damaged."""
    try:
        data, token = folder.read_with_token(FILE)
    except FileNotFoundError:
        return None
    try:
        document = json.loads(data)
    except ValueError:
        document = None
    return (document if isinstance(document, dict) else {}), token


def _free(document: Mapping[str, Any]) -> str | None:
    """Return the reason why a lease may be taken, or None if it may not."""
    if document.get("released"):
        return "it was given back"
    if not document.get("expires_at", 0.0) > time.time():
        return "it has expired"
    here = document.get("machine") == _machine() and document.get("host") == socket.gethostname()
    if here and _process_start(int(document.get("pid", 0))) != document.get("process_started"):
        return "its process is gone"
    return None


def _machine() -> str:
    """Identify the kernel and process table: containers may share a host name, and pids start anew at each boot."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"no /proc on {uuid.getnode():012x}"


def _process_start(pid: int) -> int | None:
    """Return a local process's start in clock ticks since boot; None for absent processes and zombies."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None if Path("/proc/self/stat").exists() else -1  # without /proc every process counts as alive
    fields = stat.rpartition(")")[2].split()  # the name before may hold spaces
    return None if fields[0] in "ZX" else int(fields[19])


def _name(document: Mapping[str, Any]) -> str:
    return f"process {document.get('pid')} on {document.get('host')}"


def _refusal(folder: Folder, document: Mapping[str, Any], remedy: str) -> str:
    until = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(document["expires_at"]))
    left = document["expires_at"] - time.time()
    return (
        f"{folder.url} is being written by {_name(document)}, whose lease runs until {until} UTC ({left:.0f} s from "
        f"now) and is renewed while it lives; wait for it, stop it, or {remedy}"
    )
