"""A folder, local or in object storage: read files, list them, and put each one whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import fsspec
from fsspec import AbstractFileSystem

from storage.errors import StorageError

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Folder:
    """A folder at a URL (`/path`, `file://`, `s3://bucket/prefix`). Small and picklable, so it travels to workers.

    Parameters
    ----------
    url : str
        Local path or URL without trailing slash.
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
        return cls(text.rstrip("/"), dict(storage_options or {}))

    @property
    def filesystem(self) -> AbstractFileSystem:
        """The fsspec filesystem behind the URL (one instance per process)."""
        return fsspec.core.url_to_fs(self.url, **self.storage_options)[0]

    @property
    def is_local(self) -> bool:
        """Whether files can be renamed here, which object storage cannot do."""
        return "://" not in self.url or self.url.startswith(("file://", "local://"))

    def path(self, *parts: str) -> str:
        """Path of a file below this folder, as the filesystem wants it."""
        root = fsspec.core.url_to_fs(self.url, **self.storage_options)[1].rstrip("/")
        return "/".join((root, *parts))

    def file_url(self, *parts: str) -> str:
        """URL of a file below this folder, for messages and ledgers."""
        return "/".join((self.url, *parts))

    def exists(self, *parts: str) -> bool:
        """Whether the file (or, without parts, anything at the URL) exists."""
        self.filesystem.invalidate_cache()
        return bool(self.filesystem.exists(self.path(*parts)))

    def read(self, *parts: str) -> bytes:
        """Bytes of one file; FileNotFoundError if there is none."""
        data = self.filesystem.cat_file(self.path(*parts))
        return bytes(data)

    def read_many(self, names: Sequence[str]) -> list[bytes]:
        """Bytes of several files, in the order asked; concurrent requests in object storage."""
        if not names:
            return []
        paths = [self.path(name) for name in names]
        found = self.filesystem.cat(paths)
        if isinstance(found, bytes):  # some filesystems unwrap a list of one
            return [found]
        by_path = {self.filesystem._strip_protocol(path): data for path, data in found.items()}
        return [bytes(by_path[self.filesystem._strip_protocol(path)]) for path in paths]

    def names(self, *parts: str, suffix: str = "") -> list[str]:
        """Sorted names of the entries directly below, hidden ones (unfinished writes) left out."""
        filesystem = self.filesystem
        filesystem.invalidate_cache()
        try:
            entries = filesystem.ls(self.path(*parts), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = {str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries}
        return sorted(name for name in names if name.endswith(suffix) and not name.startswith("."))

    def put(self, data: bytes, *parts: str) -> None:
        """Write one file whole: temporary name and rename locally, a single PUT in object storage (atomic there)."""
        filesystem, target = self.filesystem, self.path(*parts)
        if not self.is_local:
            filesystem.pipe_file(target, data)
            return
        parent, name = os.path.split(target)
        os.makedirs(parent, exist_ok=True)
        temporary = os.path.join(parent, f".{name}.{uuid.uuid4().hex}.tmp")
        try:
            with open(temporary, "wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())  # the rename must not reach the disk before the bytes
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    def read_with_token(self, *parts: str) -> tuple[bytes, str]:
        """Bytes of one file and the token of this content, for `replace`; FileNotFoundError if there is none."""
        if self.is_local:
            data = self.read(*parts)
            return data, _digest(data)
        filesystem = self._s3()
        bucket, key, _ = filesystem.split_path(self.path(*parts))

        async def get() -> tuple[bytes, str]:
            reply = await filesystem._call_s3("get_object", Bucket=bucket, Key=key)
            async with reply["Body"] as body:
                return bytes(await body.read()), str(reply["ETag"])

        return cast("tuple[bytes, str]", fsspec.asyn.sync(filesystem.loop, get))

    def put_new(self, data: bytes, *parts: str) -> str | None:
        """Write one file unless it exists: of several writers exactly one succeeds.

        Parameters
        ----------
        data : bytes
            Content that no other writer would write (holding a holder's id, say): when a reply is lost, the file is
            read back and compared to learn whether this write went through.
        *parts : str
            Path below this folder.

        Returns
        -------
        str or None
            Token of the content for `replace`; None if the file exists already.
        """
        if not self.is_local:
            return self._put_if(data, {"IfNoneMatch": "*"}, *parts)
        with _locked(self.path(*parts)):
            if os.path.exists(self.path(*parts)):
                return None
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
            return self._put_if(data, {"IfMatch": token}, *parts)
        with _locked(self.path(*parts)):
            try:
                current = self.read(*parts)
            except FileNotFoundError:
                return None
            if _digest(current) != token:
                return None
            self.put(data, *parts)
        return _digest(data)

    def _put_if(self, data: bytes, condition: Mapping[str, str], *parts: str) -> str | None:
        """PUT under a condition; the ETag, or None if the condition does not hold."""
        filesystem = self._s3()
        bucket, key, _ = filesystem.split_path(self.path(*parts))
        try:
            reply = filesystem.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
            return str(reply["ETag"])
        except FileNotFoundError:
            return None
        except OSError as error:
            response = getattr(error.__cause__, "response", None) or {}
            if response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 412:
                raise
        # An earlier attempt may have succeeded although its reply was lost.
        with contextlib.suppress(FileNotFoundError):
            found, token = self.read_with_token(*parts)
            if found == data:
                return token
        return None

    def _s3(self) -> Any:
        filesystem = self.filesystem
        if "s3" not in filesystem.protocol:
            raise StorageError(f"{self.url}: conditional writes need a local folder or s3://, this is neither")
        return filesystem

    def delete(self, *parts: str) -> None:
        """Remove one file if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(self.path(*parts))

    def delete_many(self, names: Sequence[str]) -> None:
        """Remove several files; those that are gone already do not matter. A thousand a request in object storage."""
        filesystem = self.filesystem
        paths = [self.path(name) for name in names]
        if hasattr(filesystem, "_bulk_delete"):
            for start in range(0, len(paths), 1000):
                fsspec.asyn.sync(filesystem.loop, filesystem._bulk_delete, paths[start : start + 1000])
            return
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                filesystem.rm_file(path)

    def put_json(self, document: Mapping[str, Any], *parts: str) -> None:
        """Write a JSON document with sorted keys, so that equal content is equal bytes."""
        text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        self.put((text + "\n").encode(), *parts)

    def describe(self) -> str:
        """What stands here, in a few words, for error messages."""
        if self.is_local and os.path.isfile(self.path()):
            return "a file"
        names = self.names()
        if not names:
            return "nothing (no such folder, or an empty one)"
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        return f"a folder with {shown}"


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Hold the lock of a local file: a hidden file beside it, which stays (removing it would let two holders in)."""
    parent, name = os.path.split(path)
    os.makedirs(parent, exist_ok=True)
    with open(os.path.join(parent, f".{name}.lock"), "wb") as handle:
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
