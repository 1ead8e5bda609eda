"""Checks of the services that a run uses: Ray, storage, and the checkpoint that it loads."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Iterator

from surveybridge.jobs.diagnosing.machine import Finding, existing_folder, one_line


def check_ray(address: str, seconds: float = 60.0) -> Iterator[Finding]:
    """Check that Ray answers at an address; `local` starts and ends it here, http:// asks the job server of a head."""
    from surveybridge.cluster.errors import ClusterError

    try:
        if address.startswith(("http://", "https://")):
            from surveybridge.cluster.submission import JobServer

            JobServer(address).find("surveybridge-doctor")
            yield Finding("ray", "ok", f"the job server at {address} answers")
            return
        from surveybridge.cluster.reach import reach

        found = reach(address, seconds)
    except (ClusterError, ConnectionError) as error:
        message, _, remedy = one_line(error).partition("; ")
        yield Finding("ray", "failed", message, remedy or "check that the head is up and reachable from here")
        return
    resources = found["resources"]
    amounts = f"{resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU"
    where = "starts here" if address == "local" else f"answers at {address}"
    yield Finding("ray", "ok", f"{found['ray']} {where}: nodes {found['nodes']}, {amounts}")


def check_read(url: str) -> Iterator[Finding]:
    """Check that there is something at a URL, and that it may be listed."""
    from surveybridge.storage.objectstore import Folder

    folder = Folder.at(url)
    start = time.monotonic()
    try:
        folder.filesystem.ls(folder.path(), detail=False)
        took = time.monotonic() - start
        yield Finding("read", "ok", f"{url} is {folder.describe()}; listed in {1000 * took:.0f} ms")
    except Exception as error:
        yield _refused("read", url, error)


def check_write(url: str) -> Iterator[Finding]:
    """Check that a file can be put below a URL and removed, and that a second one cannot replace it, as leases need."""
    from surveybridge.storage.objectstore import Folder

    folder = Folder.at(url)
    name = f".surveybridge-doctor-{uuid.uuid4().hex}"
    try:
        if folder.is_local:
            with tempfile.TemporaryFile(dir=existing_folder(folder.path())) as file:
                file.write(b"doctor")
            yield Finding("write", "ok", f"{url} takes files")
            return
        folder.put_new(b"first", name)
        try:
            guarded = folder.put_new(b"second", name) is None and folder.read(name) == b"first"
        finally:
            folder.delete(name)
    except Exception as error:
        yield _refused("write", url, error)
        return
    if guarded:
        yield Finding("write", "ok", f"{url} takes files, and conditional writes keep two drivers apart")
    else:
        message = f"{url}: the server ignores If-None-Match, so two drivers could write to one run"
        yield Finding("write", "failed", message, "use another server, or a local folder, for run folders")


def _refused(check: str, url: str, error: Exception) -> Finding:
    """Turn a failure of storage into a finding, with the remedy for its kind."""
    from surveybridge.storage.errors import StorageError, StorageUnavailable

    said = one_line(error)
    if isinstance(error, StorageError | StorageUnavailable):
        message, _, remedy = said.partition("; ")
        return Finding(check, "failed", message if url in message else f"{url}: {message}", remedy)
    if isinstance(error, PermissionError):
        remedy = (
            "give credentials that may do this: AWS_PROFILE, AWS_ACCESS_KEY_ID and _SECRET_ACCESS_KEY, or FSSPEC_S3"
        )
    elif isinstance(error, FileNotFoundError):
        remedy = "check the spelling, and that the bucket (or folder) exists"
    else:
        remedy = "check the URL and the endpoint (AWS_ENDPOINT_URL, or endpoint_url in --storage-options)"
    return Finding(check, "failed", f"{url}: {said}", remedy)


def check_checkpoint(path: str) -> Iterator[Finding]:
    """Check that a checkpoint loads, has finite weights and, if it ships with the package, is unchanged."""
    import torch

    from surveybridge.bridge_core.checkpoint import check_shipped, load_checkpoint, shipped_checkpoints
    from surveybridge.bridge_core.errors import BridgeError

    try:
        shipped = path in shipped_checkpoints()
        if shipped:
            check_shipped(path)
        model = load_checkpoint(path)
    except (BridgeError, OSError) as error:
        message, _, remedy = one_line(error).partition("; ")
        yield Finding("checkpoint", "failed", message, remedy or "give another --checkpoint")
        return
    wrong = [name for name, weight in model.network.named_parameters() if not bool(torch.isfinite(weight).all())]
    if wrong:
        message = f"{path}: {len(wrong)} tensors have NaN or infinite weights, the first is {wrong[0]}"
        yield Finding("checkpoint", "failed", message, "train again, or give another --checkpoint")
        return
    whole = "as shipped" if shipped else "readable"
    yield Finding("checkpoint", "ok", f"{path}: {whole}, {model.card.grid} grid, SHA-256 {model.sha256[:12]}")
