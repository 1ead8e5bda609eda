"""A folder, local or in object storage: read files, list them, and put each one whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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

    def delete(self, *parts: str) -> None:
        """Remove one file if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(self.path(*parts))

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


def check_name(name: str, what: str) -> str:
    """Return `name` if it may be part of a path, else raise StorageError."""
    if not SAFE_NAME.fullmatch(name):
        raise StorageError(
            f"{what} {name!r} cannot be part of a path; use letters, digits and _ . + - only, first a letter or digit"
        )
    return name
