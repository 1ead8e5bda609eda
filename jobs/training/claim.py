"""Whose a training folder is: one folder holds one model, whatever its budget."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from surveybridge.jobs.config import RequestError

if TYPE_CHECKING:
    from surveybridge.storage.objectstore import Folder

FILE = "training.json"
"""Settings of the training whose folder it is, but those that may change between resumes."""


def stated(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `FILE` says of a training: tuples in the form that JSON gives them, and not where it is."""
    document: dict[str, Any] = json.loads(json.dumps(dict(identity)))
    return {key: value for key, value in document.items() if key not in ("out", "storage_options")}


def check_folder(out: Folder, identity: Mapping[str, Any], name: str) -> None:
    """Refuse the folder of another model.

    Parameters
    ----------
    out
        Folder of the training.
    identity
        Settings that make it this training and no other, JSON-like.
    name
        Of its checkpoint.

    Raises
    ------
    RequestError
        If another model is there, or one that was trained otherwise; nothing is written here.
    """
    wanted = stated(identity)
    if FILE in (names := out.names()):
        found = json.loads(out.read(FILE))
        differing = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        if differing:
            there, here = (
                ", ".join(f"{key} {values.get(key)!r}" for key in differing[:4]) for values in (found, wanted)
            )
            raise RequestError(
                f"--out {out.url} holds model {found.get('name')} with {there}, but this training is of {name} with "
                f"{here}; give another --out, or the same settings"
            )
        return
    # of earlier versions, which left the checkpoint alone
    others = [stem for file in names if (stem := file.removesuffix(".safetensors")) != file and stem != name]
    if others:
        raise RequestError(
            f"--out {out.url} holds model {', '.join(others)}, but this training is of {name}; give another --out, or "
            f"--name {others[0]}"
        )
