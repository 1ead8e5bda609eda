"""What may be asked of the training of a generator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from surveybridge.jobs.config import RequestError

OF_TRANSLATION: Mapping[str, Any] = {
    **{"to": None, "conditions": None, "crop": None, "rescale": 0.0, "end_share": None},
    **{"clean_input": True, "broadcast": True},
}
"""Settings that a generator has no use for, and what they are where nobody asks for them."""


def check_generator(config: Mapping[str, Any]) -> None:
    """Refuse settings of `surveybridge train` that contradict `generate`, or need it."""
    if not config["generate"]:
        if config["properties"]:
            raise RequestError(
                f"--properties {' '.join(config['properties'])} are of generators; name the endpoints to generate "
                "(--generate), or leave them out"
            )
        return
    if config["bridge"] != "diffusion":
        raise RequestError(
            f"--generate makes images from noise, but --bridge {config['bridge']} begins with an observed one; give "
            "--bridge diffusion"
        )
    asked = [name for name, usual in OF_TRANSLATION.items() if config[name] not in (usual, False, 0)]
    asked += [f"no-{name}" for name in ("clean_input", "broadcast") if not config[name]]
    if asked:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in asked)
        raise RequestError(f"{flags}: of translation, but --generate observes no image; leave one of them out")
