"""A folder, local or in object storage: read files, list them, and put each one whole or not at all.

Credentials and endpoints are those of fsspec and botocore: `FSSPEC_S3` (a JSON document), fsspec's configuration
files, `AWS_*`, profiles; or what `configure` is given. They are never part of a message or of a file.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import fcntl
import hashlib
import inspect
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore

from surveybridge.storage.errors import StorageError, StorageFull, is_unwritable

S3_PROTOCOLS = ("s3", "s3a")

NO_PLACE = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
"""What is raised where no folder can be."""

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Folder:
    """A folder at a URL (`/path`, `file://`, `s3://bucket/prefix`). Small and picklable, so it travels to workers.

    Parameters
    ----------
    url : str
        Local path or URL without trailing slash, but for "/" itself.
    storage_options : mapping
        Arguments of the fsspec filesystem (endpoint, keys). Never written anywhere, nor shown in `repr`.
    """

    url: str
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def at(cls, url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Folder:
        """Folder at `url`; a trailing slash is dropped and a local path made absolute."""
        text = os.fspath(url)
        if "://" not in text:
            text = os.path.abspath(os.path.expanduser(text))
        return cls(text.rstrip("/") or "/", dict(storage_options or {}))

    @property
    def filesystem(self) -> AbstractFileSystem:
        """The fsspec filesystem behind the URL (one instance per process)."""
        return self._opened()[0]

    @property
    def is_local(self) -> bool:
        """Return whether files can be renamed here, which object storage cannot do."""
        return "://" not in self.url or self.url.startswith(("file://", "local://"))

    def path(self, *parts: str) -> str:
        """Path of a file below this folder, as the filesystem wants it."""
        return "/".join((self._opened()[1], *parts)) or "/"

    def _opened(self) -> tuple[AbstractFileSystem, str]:
        """The filesystem and the folder's path in it."""
        filesystem, root = open_filesystem(self.url, self.storage_options)
        return filesystem, root.rstrip("/")

    def file_url(self, *parts: str) -> str:
        """URL of a file below this folder, for messages and ledgers."""
        return "/".join((self.url.rstrip("/"), *parts))

    def exists(self, *parts: str) -> bool:
        """Return whether the file (or, without parts, anything at the URL) exists."""
        self.filesystem.invalidate_cache()
        return bool(self.filesystem.exists(self.path(*parts)))

    def read(self, *parts: str) -> bytes:
        """Bytes of one file; FileNotFoundError if there is none."""
        filesystem, root = self._opened()
        return bytes(filesystem.cat_file("/".join((root, *parts))))

    def read_many(self, names: Sequence[str]) -> list[bytes]:
        """Bytes of several files, in the order asked; concurrent requests in object storage."""
        return [_bytes_or_raise(found) for found in self._read_all(names)]

    def read_existing(self, names: Sequence[str]) -> dict[str, bytes]:
        """Bytes by name of those files that exist, like `read_many`."""
        found = zip(names, self._read_all(names), strict=True)
        return {name: _bytes_or_raise(data) for name, data in found if not isinstance(data, FileNotFoundError)}

    def _read_all(self, names: Sequence[str]) -> list[Any]:
        """Bytes or the exception of each file."""
        if not names:
            return []
        filesystem, root = self._opened()
        paths = [f"{root}/{name}" for name in names]
        return list(filesystem.cat_ranges(paths, [None] * len(paths), [None] * len(paths), on_error="return"))

    def names(self, *parts: str, suffix: str = "") -> list[str]:
        """Sorted names of the entries directly below, hidden ones (unfinished writes) left out."""
        filesystem, path = self.filesystem, self.path(*parts)
        filesystem.invalidate_cache()
        try:
            entries = filesystem.children(path) if _is_s3(filesystem) else filesystem.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        # A console may have made an object for the folder itself.
        below = (str(entry).rstrip("/") for entry in entries)
        names = {entry.rsplit("/", 1)[-1] for entry in below if entry != path.rstrip("/")}
        return sorted(name for name in names if name.endswith(suffix) and not name.startswith("."))

    def put(self, data: bytes, *parts: str) -> None:
        """Write one file whole: temporary name and rename locally, a single PUT in object storage (atomic there)."""
        filesystem, target = self.filesystem, self.path(*parts)
        if self.is_local:
            _write_and_rename(target, data, flush=True)
        else:
            filesystem.pipe_file(target, data)

    def put_many(self, files: Mapping[str, bytes]) -> None:
        """Write several files, in no order, each whole or not at all; concurrent requests in object storage.

        Locally they are not flushed to the disk, for data with checksums of its own.
        """
        filesystem, root = self._opened()
        if self.is_local:
            for name, data in files.items():
                _write_and_rename(f"{root}/{name}", data, flush=False)
        else:
            filesystem.pipe({f"{root}/{name}": data for name, data in files.items()})

    def read_with_token(self, *parts: str) -> tuple[bytes, str]:
        """Bytes of one file and the token of this content, for `replace`; FileNotFoundError if there is none."""
        if self.is_local:
            data = self.read(*parts)
            return data, _digest(data)
        data, token = self._conditional().get_with_etag(self.path(*parts))
        return bytes(data), str(token)

    def put_new(self, data: bytes, *parts: str) -> str | None:
        """Write one file unless it exists: of several writers exactly one succeeds.

        Parameters
        ----------
        data : bytes
            Content that no other writer would write (with a holder's id in it, say): a file that holds it already
            counts as written by this call, since a reply may be lost and the request repeated.
        *parts : str
            Path below this folder.

        Returns
        -------
        str or None
            Token of the content for `replace`; None if there is a file with other content.
        """
        if not self.is_local:
            return cast("str | None", self._conditional().put_if(self.path(*parts), data, IfNoneMatch="*"))
        with _locked(self.path(*parts)):
            with contextlib.suppress(FileNotFoundError):
                return _digest(data) if self.read(*parts) == data else None
            self.put(data, *parts)
        return _digest(data)

    def replace(self, data: bytes, token: str, *parts: str) -> str | None:
        """Write one file if its content is still that of `token`.

        Parameters
        ----------
        data : bytes
            As in `put_new`.
        token : str
            From `put_new`, `replace` or `read_with_token`.
        *parts : str
            Path below this folder.

        Returns
        -------
        str or None
            Token of the new content; None if the file was changed or deleted meanwhile (it is left alone).
        """
        if not self.is_local:
            return cast("str | None", self._conditional().put_if(self.path(*parts), data, IfMatch=token))
        with _locked(self.path(*parts)):
            try:
                current = self.read(*parts)
            except FileNotFoundError:
                return None
            if _digest(current) not in (token, _digest(data)):
                return None
            self.put(data, *parts)
        return _digest(data)

    def _conditional(self) -> Any:
        """The filesystem, if it can write under a condition."""
        filesystem = self.filesystem
        if not _is_s3(filesystem):
            raise StorageError(f"{self.url}: conditional writes need a local folder or s3://, and this is neither")
        return filesystem

    def delete(self, *parts: str) -> None:
        """Remove one file if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(self.path(*parts))

    def delete_many(self, names: Sequence[str]) -> None:
        """Remove several files; those that are gone already do not matter. A thousand a request in S3."""
        filesystem = self.filesystem
        if _is_s3(filesystem):
            filesystem.delete_keys([self.path(name) for name in names])
            return
        for name in names:
            self.delete(name)

    def delete_below(self, *parts: str) -> None:
        """Remove all files below, at any depth, hidden ones too."""
        filesystem, path = self.filesystem, self.path(*parts)
        filesystem.invalidate_cache()
        found = [str(file) for file in filesystem.find(path)]
        if _is_s3(filesystem):
            filesystem.delete_keys(found)
        elif found:
            filesystem.rm(path, recursive=True)

    def put_json(self, document: Mapping[str, Any], *parts: str) -> None:
        """Write a JSON document."""
        self.put(json_bytes(document), *parts)

    def describe(self) -> str:
        """Describe in a few words what is in this folder, for error messages."""
        if self.is_local and os.path.isfile(self.path()):
            return "a file"
        names = self.names()
        if not names:
            return "nothing (no such folder, or an empty one)"
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        return f"a folder with {shown}"


def file_at(url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> tuple[Folder, str]:
    """The folder of a file at `url`, and the file's name; StorageError if the URL names no more than a bucket."""
    folder, _, name = Folder.at(url, storage_options).url.rpartition("/")
    if folder.endswith(":/"):
        raise StorageError(f"{url} does not name a file; give one, as in {folder}/{name}/FILE")
    return Folder.at(folder or "/", storage_options), name


def json_bytes(document: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys, so that equal content is equal bytes."""
    return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def configure(options: Mapping[str, Mapping[str, Any]]) -> None:
    """Set the storage options of this process by protocol, `{"s3": {"profile": "survey"}}`.

    They stand in for those of the environment and of fsspec's configuration files, protocol by protocol; arguments
    of a call go first. A driver gives `configured()` to its workers, which call this.

    Raises
    ------
    StorageError
        If a protocol or an option is not known; values are never shown.
    """
    for protocol, values in options.items():
        if protocol not in fsspec.available_protocols():
            raise StorageError(f"storage options for {protocol!r}, which fsspec does not know; give s3, gs, ...")
        if not isinstance(values, Mapping):
            raise StorageError(f"storage options of {protocol} are not a mapping of names to values")
        if protocol in S3_PROTOCOLS:
            unknown = sorted(set(map(str, values)) - _s3_option_names())
            if unknown:
                raise StorageError(
                    f"storage options of {protocol}: {', '.join(unknown)} not known; give options of "
                    "s3fs.S3FileSystem such as profile, anon, requester_pays, endpoint_url, key, secret, client_kwargs"
                )
    for protocol, values in options.items():
        fsspec.config.conf[protocol] = copy.deepcopy(dict(values))


def configured() -> dict[str, dict[str, Any]]:
    """The storage options of this process by protocol, for `configure` in another one. They hold secrets."""
    return copy.deepcopy({protocol: dict(values) for protocol, values in fsspec.config.conf.items()})


def open_filesystem(
    url: str, storage_options: Mapping[str, Any] | None = None, *, asynchronous: bool = False
) -> tuple[AbstractFileSystem, str]:
    """The filesystem of a URL, for S3 the one that retries, and the path in it.

    Parameters
    ----------
    url : str
        Local path or URL.
    storage_options : mapping, optional
        As `Folder`.
    asynchronous : bool
        For use inside coroutines of another event loop than fsspec's own (Zarr's); S3 only.
    """
    options = dict(storage_options or {})
    if "://" not in url:  # whatever is in its name: fsspec would take a::b for a chain of two filesystems
        return LocalFileSystem(**options), os.path.abspath(url)
    if url.split("://", 1)[0] not in S3_PROTOCOLS:
        try:
            filesystem, path = fsspec.core.url_to_fs(url, **options)
        except (ValueError, ImportError) as error:  # an unknown protocol, or one that is not installed
            raise StorageError(f"{url}: {error}; give a local path or an s3:// URL") from error
        return filesystem, str(path)
    from surveybridge.storage.s3 import RetryingS3FileSystem  # botocore takes half a second to import

    if asynchronous:
        options["asynchronous"] = True
    # botocore reads these when a client is made, and fsspec keeps clients.
    variables = sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))
    filesystem = RetryingS3FileSystem(environment=_digest(repr(variables).encode()), **options)
    return filesystem, str(filesystem._strip_protocol(url))


def zarr_store(folder: Folder, *, read_only: bool = True) -> Store:
    """A folder as a store of zarr-python, with the same retries.

    It belongs to the process that made it: after a fork, make another.
    """
    if folder.is_local:
        return LocalStore(folder.path(), read_only=read_only)
    if folder.url.split("://", 1)[0] not in S3_PROTOCOLS:
        return FsspecStore.from_url(folder.url, storage_options=dict(folder.storage_options), read_only=read_only)
    filesystem, path = open_filesystem(folder.url, folder.storage_options, asynchronous=True)
    return FsspecStore(fs=filesystem, path=path, read_only=read_only)


def _is_s3(filesystem: AbstractFileSystem) -> bool:
    return hasattr(filesystem, "put_if")


def _s3_option_names() -> set[str]:
    import aiobotocore.session
    from s3fs import S3FileSystem

    names: set[str] = {"use_listings_cache", "listings_expiry_time", "max_paths"}
    for made in (S3FileSystem, aiobotocore.session.AioSession):
        names |= set(inspect.signature(made.__init__).parameters)
    return names - {"self", "args", "kwargs", "asynchronous", "loop", "session"}


def _bytes_or_raise(found: Any) -> bytes:
    if isinstance(found, Exception):
        raise found
    return bytes(found)


def _write_and_rename(target: str, data: bytes, *, flush: bool) -> None:
    parent, name = os.path.split(target)
    temporary = os.path.join(parent, f".{name}.{uuid.uuid4().hex}.tmp")
    with _writable(target):
        try:
            with open(temporary, "wb") as handle:
                handle.write(data)
                if flush:
                    handle.flush()
                    os.fsync(handle.fileno())  # the rename must not reach the disk before the bytes
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise


@contextlib.contextmanager
def _writable(target: str) -> Iterator[None]:
    """Make the folder of a file; StorageError if it cannot exist or be written to, StorageFull if there is no space."""
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"{target} cannot be written: {error.strerror}; make room there") from error
        if is_unwritable(error) or isinstance(error, NO_PLACE):
            raise StorageError(f"{target} cannot be written: {error.strerror}; give another place") from error
        raise


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Hold the lock of a local file: a hidden file beside it, which stays (removing it would let two holders in)."""
    parent, name = os.path.split(path)
    with _writable(path):
        handle = open(os.path.join(parent, f".{name}.lock"), "wb")  # noqa: SIM115  # closed below, after its use
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check_name(name: str, what: str) -> str:
    """Return `name` if it may be part of a path, else raise StorageError."""
    if not SAFE_NAME.fullmatch(name):
        raise StorageError(
            f"{what} {name!r} cannot be part of a path; use letters, digits and _ . + - only, first a letter or digit"
        )
    return name
