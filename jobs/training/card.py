"""The card of a checkpoint to be trained, and the plot of its loss."""

from __future__ import annotations

import functools
import math
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surveybridge.bridge_core.generation import Generation
    from surveybridge.bridge_core.model import Card, Model
    from surveybridge.bridge_core.problem import Problem
    from surveybridge.storage.pairs import Pairs


END_SHARE = 0.1
"""Share of the states at the bridge's end in trainings of networks that are told conditions."""

SHARP_FWHM = 0.16
"""arcsec: of Euclid's VIS, and of the sharp skies that a bridge of seeing leads to."""

SHAPE = (
    *("base", "stem", "norm", "objective", "bridge", "problem", "to"),
    *("end_noise", "clean_input", "broadcast", "generate", "properties"),
)
"""Settings that a checkpoint brings along with its weights."""


def start_of(checkpoint: str | None, asked: Mapping[str, Any]) -> Model | None:
    """Return the checkpoint to begin with, refused if it does not fit what else is asked; None if none is named.

    Parameters
    ----------
    checkpoint
        Path or shipped name.
    asked
        The settings that were given, without those that were left at their defaults.
    """
    from surveybridge.jobs.config import RequestError
    from surveybridge.jobs.translating.request import read_model

    if checkpoint is None:
        return None
    also = [name for name in SHAPE if asked.get(name) not in (None, ())]
    if also:
        flags = ", ".join(f"--{name.replace('_', '-')} {asked[name]}" for name in also)
        raise RequestError(f"--checkpoint {checkpoint} brings its own problem and network, but {flags}; leave one out")
    model = read_model(checkpoint)
    if not model.card.physical:
        raise RequestError(f"checkpoint {model.card.name} has no stretch, so it cannot take pairs; begin with another")
    grid = asked.get("grid", "mosaic")
    if model.card.grid != grid:
        raise RequestError(
            f"checkpoint {model.card.name} is for the {model.card.grid} grid, but --grid is {grid}; give "
            f"--grid {model.card.grid} or another checkpoint"
        )
    return model


def end_share_of(asked: float | None, objective: str, start: Model | None, *, told: bool) -> float:
    """Return the share of the training states at the bridge's end; refused where the objective cannot do without x0.

    Parameters
    ----------
    asked
        The share that was asked for, None where none was.
    objective
        Of a new checkpoint; one that goes on from another keeps that of `start`.
    start
        The checkpoint to begin with, or None.
    told
        Whether the network is told conditions.
    """
    from surveybridge.jobs.config import RequestError

    objective = objective if start is None else start.card.objective.name
    if asked is None:
        before = 0.0 if start is None else start.card.objective.end_share
        return before or (END_SHARE if told and objective == "edm" else 0.0)
    if asked and objective != "edm":
        raise RequestError(f"--end-share {asked:g} needs the objective edm, but it is {objective}; give 0")
    return asked


def next_card(config: dict[str, Any], start: Model, pairs: Pairs, recipe: dict[str, Any]) -> Card:
    """Return the card of a checkpoint that goes on from another: problem, stretches, bridge and objective are kept.

    The lens score is not: it is calibrated for the weights. Parameters as `make_card`.
    """
    return replace(
        start.card,
        name=config["name"],
        network=replace(start.card.network, conditions=config["conditions"]),
        objective=replace(start.card.objective, end_share=config["end_share"] or 0.0),
        provenance={
            "command": shlex.join(["surveybridge", "train", *sys.argv[2:]]),
            "pairs": pairs.name,
            "recipe": recipe,
            "from": {"name": start.card.name, "sha256": start.sha256, "pairs": start.card.provenance.get("pairs")},
        },
        discriminant=None,
        conditions=None,
    )


def make_card(
    config: dict[str, Any],
    problem: Problem,
    pairs: Pairs,
    recipe: dict[str, Any],
    generation: Generation | None = None,
) -> Card:
    """Return the card of a new checkpoint: bridge and network as requested, stretches and objective fitted to pairs.

    Parameters
    ----------
    config
        Settings of `surveybridge train`.
    problem
        Without fitted endpoints.
    pairs
        Some of the training pairs, on the grid of the network.
    recipe
        How it is optimised, for the provenance.
    generation
        What it makes from noise, if it is a generator.
    """
    import torch

    from surveybridge.bridge_core.bridge import Bridge
    from surveybridge.bridge_core.fitting import fit_endpoint, fit_objective
    from surveybridge.bridge_core.model import Card
    from surveybridge.bridge_core.network import NetworkConfig
    from surveybridge.bridge_core.objective import WIENER, Objective
    from surveybridge.bridge_core.sharpening import prior_power

    # sigma from 0.006 (a twentieth of the noise of VIS in network units) to 10, instead of the published 0.045 to 45
    even_in_sigma = functools.partial(Bridge.brownian, m_min=2e-5, m_max=0.98, spacing="logit")
    constructors: dict[str, Callable[[], Bridge]] = {
        "brownian": even_in_sigma if config["objective"] == "edm" else Bridge.brownian,
        "schrodinger": Bridge.schrodinger,
        "diffusion": Bridge.diffusion,
        "regression": Bridge.regression,
        "seeing": functools.partial(Bridge.seeing, sharp=f"gaussian:{SHARP_FWHM}"),
    }
    bridge = constructors[config["bridge"]]()
    ends = _shown_otherwise(config, problem)
    images = [torch.from_numpy(pairs.ends[end.name]) for end in problem.endpoints]
    if generation and len(generation.ends) == 1:
        problem = replace(problem, wanted=generation.ends[0])
    unseen = [end.name for end in problem.endpoints if generation and end.name not in generation.ends]
    fitted = [
        replace(
            end if end.name in unseen else fit_endpoint(end, values, pairs.noise[end.name]),
            pixel_scale=pairs.pixel_scale[end.name] or end.pixel_scale,
        )
        for end, values in zip(problem.endpoints, images, strict=True)
    ]
    objective = fit_objective(config["objective"], problem.with_endpoints(fitted), images)
    if config["bridge"] == "seeing":
        wanted = problem.directions[0].index
        # what is linear between the ends is so in the same units
        fitted[wanted] = replace(fitted[wanted], stretch=fitted[1 - wanted].stretch)
        sharp = fitted[wanted]
        objective = Objective(WIENER, prior=prior_power(sharp.fitted.forward(images[wanted], sharp.bands)))
    problem = problem.with_endpoints(
        [replace(end, spread=config["broadcast"] or end.name not in ends) for end in fitted]
    )
    still = generation.sky(problem) if generation and objective.name == "edm" else 0.0
    return Card(
        name=config["name"],
        grid=config["grid"],
        problem=problem,
        bridge=bridge,
        network=NetworkConfig(
            base=config["base"],
            stem=config["stem"],
            norm=config["norm"],
            image_channels=generation.planes(problem) if generation else problem.channels,
            conditions=bool(config["conditions"]),
            properties=len(generation.properties) if generation else 0,
        ),
        objective=replace(objective, end_share=config["end_share"] or 0.0, noise=still),
        provenance={
            "command": shlex.join(["surveybridge", "train", *sys.argv[2:]]),
            "pairs": pairs.name,
            "recipe": recipe,
        },
        end_noise=config["end_noise"],
        clean_input=config["clean_input"],
        pixel_pc=pairs.pixel_pc if math.isfinite(pairs.pixel_pc) else None,
        generation=generation,
    )


def _shown_otherwise(config: Mapping[str, Any], problem: Problem) -> list[str]:
    """Return the wanted ends of fewer planes than channels; refuse switches of the bridge that a problem cannot have.

    Astro-DSB's `end_noise` is not in the scores of objects, and `broadcast` is of a target that does not fill the
    channels.
    """
    from surveybridge.jobs.config import RequestError

    if config["end_noise"] and problem.catalog is not None:
        raise RequestError(
            f"--end-noise {config['end_noise']:g}, but problem {problem.name} has the catalog {problem.catalog}, whose "
            "scores know of no such noise; give 0, or a problem that makes maps only"
        )
    ends = [direction.wanted for direction in problem.directions]
    fewer = [end.name for end in ends if end.planes < problem.channels]
    if not config["broadcast"] and not fewer:
        raise RequestError(
            f"--no-broadcast, but {' and '.join(end.name for end in ends)} of problem {problem.name} fills all "
            f"{problem.channels} channels of the network; leave it out"
        )
    return fewer


def asked_problem(problem: str | None, to: str | None, pairs: str) -> Problem:
    """Return the problem to train: from a file, or else from the pair store; one-way if an endpoint is named."""
    from surveybridge.bridge_core.problem import Problem
    from surveybridge.storage.pairs import problem_of_pairs
    from surveybridge.storage.problems import read_problem

    found = Problem.from_table(problem_of_pairs(pairs) if problem is None else read_problem(problem))
    return found if to is None else replace(found, wanted=found.to(to).wanted.name)


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
