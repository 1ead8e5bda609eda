"""The card of a checkpoint to be trained, and the plot of its loss."""

from __future__ import annotations

import functools
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surveybridge.bridge_core.model import Card
    from surveybridge.storage.pairs import Pairs


def make_card(config: dict[str, Any], pairs: Pairs, recipe: dict[str, Any]) -> Card:
    """Card of the checkpoint to be: bridge, network and stretch as asked, softening twice the noise of the pairs."""
    from surveybridge.bridge_core.bridge import Bridge
    from surveybridge.bridge_core.model import Card
    from surveybridge.bridge_core.network import NetworkConfig
    from surveybridge.bridge_core.objective import Objective
    from surveybridge.bridge_core.stretch import Stretch

    # sigma from 0.006 (a twentieth of the noise of VIS in network units) to 10, instead of the published 0.045 to 45
    even_in_sigma = functools.partial(Bridge.brownian, m_min=2e-5, m_max=0.98, spacing="logit")
    bridge = {
        "brownian": even_in_sigma if config["objective"] == "edm" else Bridge.brownian,
        "schrodinger": Bridge.schrodinger,
        "diffusion": Bridge.diffusion,
    }[config["bridge"]]()
    return Card(
        name=config["name"],
        grid=config["grid"],
        bridge=bridge,
        network=NetworkConfig(base=config["base"], stem=config["stem"], norm=config["norm"]),
        objective=Objective(config["objective"], sigma_data=0.3, log_sigma_mean=-1.4, log_sigma_std=1.5),
        stretch=Stretch({band: 2 * sigma for band, sigma in pairs.noise.items()}),
        bands={"lsst": ("g", "r", "i"), "euclid": ("VIS",)},
        pixel_scale=pairs.pixel_scale,
        provenance={
            "command": shlex.join(["surveybridge", "train", *sys.argv[2:]]),
            "pairs": pairs.name,
            "recipe": recipe,
        },
    )


def plot_loss(rows: list[dict[str, str]], path: Path) -> None:
    """Draw training and validation loss over the time that training took."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    minutes = [float(r["seconds"]) / 60 for r in rows]
    axes.plot(minutes, [float(r["loss"]) for r in rows], label="training (raw weights)", lw=1)
    axes.plot(minutes, [float(r["validation_loss"]) for r in rows], label="validation (averaged weights)", lw=1.5)
    axes.set(xlabel="training time [min]", ylabel="loss", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
