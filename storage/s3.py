"""S3 for all modules here: s3fs with retries for a limited time, one request per read, conditional writes."""

from __future__ import annotations

import asyncio
import functools
import io
from collections.abc import Mapping
from typing import Any

import botocore.exceptions as boto
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error

from surveybridge.storage.errors import StorageError
from surveybridge.storage.retry import error_code, http_status, retrying

CONNECTIONS = 64
"""Requests under way at a time, a process: botocore's 10 leave a fast network idle when many small files are read."""

ANSWER_SECONDS = 30.0
"""Until a request is answered, for which botocore's read timeout does not stand where the server never asks for the
body of a PUT (`Expect: 100-continue`)."""

UPLOAD_RATE = 1e6
"""Bytes a second at which a request's body goes at the least, for the same."""

NO_CREDENTIALS = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound)


class RetryingS3FileSystem(S3FileSystem):
    """`s3fs.S3FileSystem` for workers that run for days.

    Every request, the body of a reply included, is repeated as `storage.retry` says; the retries of s3fs and botocore
    (a second or two, and multiplied where they nest) are off. Listings are never cached: other processes write too.

    Parameters
    ----------
    *args, **kwargs
        As `S3FileSystem`.
    environment : str
        Anything that tells instances apart, for fsspec's cache of them.
    """

    retries = 1

    def __init__(
        self,
        *args: Any,
        config_kwargs: Mapping[str, Any] | None = None,
        environment: str = "",
        **kwargs: Any,
    ) -> None:
        ours = {"max_pool_connections": CONNECTIONS, "retries": {"total_max_attempts": 1, "mode": "standard"}}
        kwargs = {"use_listings_cache": False, **kwargs}
        super().__init__(*args, config_kwargs={**ours, **(config_kwargs or {})}, **kwargs)
        self.batch_size = CONNECTIONS

    async def _call_s3(self, method: str, *akwarglist: Mapping[str, Any], **kwargs: Any) -> Any:
        """One S3 operation; where it fails in a way that passes, again."""
        what = _name_operation(method, kwargs)
        try:
            return await retrying(functools.partial(self._attempt, method, *akwarglist, **kwargs), what)
        except boto.ClientError as error:
            raise _translate(error, what) from error

    call_s3 = sync_wrapper(_call_s3)

    async def _attempt(self, method: str, *akwarglist: Mapping[str, Any], **kwargs: Any) -> Any:
        """One request, with the errors of botocore; the body of a reply is read here, since it may break off."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS + len(kwargs.get("Body", b"")) / UPLOAD_RATE):
                await self.set_session()
                operation = getattr(await self.get_s3(kwargs.get("Bucket")), method)
                reply = await operation(**self._get_s3_method_kwargs(operation, *akwarglist, **kwargs))
        except NO_CREDENTIALS as error:
            raise StorageError(
                f"{_name_operation(method, kwargs)}: {error}; set AWS_PROFILE or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or FSSPEC_S3='{\"anon\": true}' for public data"
            ) from error
        if method == "get_object":
            async with reply["Body"] as body:
                reply["Body"] = _Body(await body.read())
        return reply

    async def _cat_file(
        self, path: str, version_id: str | None = None, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        """One GET: s3fs asks for the size first."""
        bucket, key, version = self.split_path(path)
        if not key:
            raise IsADirectoryError(path)
        options = {"VersionId": version_id or version} if version_id or version else {}
        if start is not None or end is not None:
            options["Range"] = await self._process_limits(path, start, end)
        reply = await self._call_s3("get_object", Bucket=bucket, Key=key, **options)
        return bytes(await reply["Body"].read())

    async def _children(self, path: str) -> list[str]:
        """Paths directly below; unlike `ls` it does not list the folder above where there are none."""
        return [str(entry["name"]) for entry in await self._lsdir(self._strip_protocol(path), refresh=True)]

    children = sync_wrapper(_children)

    async def _get_with_etag(self, path: str) -> tuple[bytes, str]:
        """Content of a file and its ETag."""
        bucket, key, _ = self.split_path(path)
        reply = await self._call_s3("get_object", Bucket=bucket, Key=key)
        return await reply["Body"].read(), str(reply["ETag"])

    get_with_etag = sync_wrapper(_get_with_etag)

    async def _put_if(self, path: str, data: bytes, **condition: str) -> str | None:
        """PUT under IfNoneMatch or IfMatch; return the new ETag, or None if other content is there."""
        bucket, key, _ = self.split_path(path)

        async def attempt() -> str | None:
            try:
                reply = await self._attempt("put_object", Bucket=bucket, Key=key, Body=data, **condition)
                return str(reply["ETag"])
            except boto.ClientError as error:
                if http_status(error) == 404 and error_code(error) != "NoSuchBucket":
                    return None
                if http_status(error) != 412:
                    raise
            # An earlier attempt may have been carried out although its reply was lost, and not only attempts of ours:
            # aiohttp itself repeats a PUT whose connection breaks. So only the content says whose the file is.
            try:
                found, etag = await self._get_with_etag(path)
            except FileNotFoundError:
                return None
            return etag if found == data else None

        what = _name_operation("put_object", {"Bucket": bucket, "Key": key})
        try:
            return await retrying(attempt, what)
        except boto.ClientError as error:
            if http_status(error) == 501 or error_code(error) == "NotImplemented":
                raise StorageError(
                    f"{what}: this server has no conditional writes (If-None-Match, If-Match), without which two "
                    "runs cannot be kept apart; use a local folder or another server for the run folder"
                ) from error
            raise _translate(error, what) from error

    put_if = sync_wrapper(_put_if)

    async def _delete_keys(self, paths: list[str]) -> None:
        """Delete files, a thousand a request; those that are not there do not matter."""
        for start in range(0, len(paths), 1000):
            split = [self.split_path(path) for path in paths[start : start + 1000]]
            bucket = split[0][0]

            async def attempt(bucket: str = bucket, keys: tuple[str, ...] = tuple(key for _, key, _ in split)) -> None:
                objects = [{"Key": key} for key in keys]
                reply = await self._attempt("delete_objects", Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
                for failed in reply.get("Errors", []):  # a 200 may hold refusals key by key
                    raise boto.ClientError({"Error": failed, "ResponseMetadata": {}}, "DeleteObjects")

            what = _name_operation("delete_objects", {"Bucket": bucket, "Key": f"{split[0][1]} and others"})
            try:
                await retrying(attempt, what)
            except boto.ClientError as error:
                raise _translate(error, what) from error

    delete_keys = sync_wrapper(_delete_keys)


class _Body:
    """The body of a reply that has been read, in place of the stream."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    async def read(self, size: int = -1) -> bytes:
        return self._data.read(size)

    def close(self) -> None:
        pass

    async def __aenter__(self) -> _Body:
        return self

    async def __aexit__(self, *exception: object) -> None:
        pass


def _name_operation(method: str, kwargs: Mapping[str, Any]) -> str:
    """Return the operation and its target, for messages: put_object s3://bucket/key."""
    return f"{method} s3://{kwargs.get('Bucket', '')}/{kwargs.get('Key', kwargs.get('Prefix', ''))}"


def _translate(error: boto.ClientError, what: str) -> Exception:
    """Return the Python error that s3fs makes of it; a refusal says which object was refused."""
    translated: Exception = translate_boto_error(error)
    if isinstance(translated, PermissionError):
        return PermissionError(f"{what}: {translated} ({error_code(error)}, HTTP {http_status(error)})")
    return translated
