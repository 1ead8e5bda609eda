"""Calibrate a checkpoint's lens score: measure the residuals of ordinary objects and of simulated lenses.

Puts simulated arcs around deflector-like galaxies of a pair store and measures how both surveys depart from what the
checkpoint lets expect, for these lenses and for the store's own regular objects. From that follow the weights of the
score and its false-alarm rate, which are written into the card of a copy of the checkpoint. Take pairs that no test
uses; those that training kept for validation are best, and the others do where the network does not know them by heart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from surveybridge.jobs.config import JobConfig, RequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from surveybridge.bridge_core.discriminant import Floats, Measured
    from surveybridge.bridge_core.model import Model
    from surveybridge.bridge_core.problem import Problem
    from surveybridge.storage.pairs import Pairs

EXAMPLES = """\
surveybridge calibrate --pairs pairs/train.zarr --start 3600 --checkpoint runs/mosaic/bridge --out runs/calibrated"""

GROUP = 256
"""Objects measured at a time."""
FEWEST = 50
"""Lenses and regular objects that a calibration needs."""


class Config(JobConfig):
    """Settings of `surveybridge calibrate`."""

    writes = ("out",)

    pairs: str = Field(description="pair store of regular objects with its table beside it, local path or URL")
    out: str = Field(description="folder or URL for the calibrated checkpoint")
    checkpoint: str | None = Field(None, description="checkpoint path or shipped name (default: the shipped one)")
    start: int = Field(0, ge=0, description="first row of the store")
    limit: int | None = Field(None, ge=1, description="number of pairs to use (default: all)")
    sigma: float = Field(2.0, gt=0, description="noise level at which residuals are taken, network units")
    draws: int = Field(2, ge=1, description="number of noise draws that are averaged")
    seed: int = Field(0, ge=0, description="seed of lenses and noise")
    batch: int = Field(16, ge=1, description="stamps in one network call")


def run(config: Config) -> int:
    """Measure, learn, say how well it tells lenses apart, and write the checkpoint."""
    import tempfile
    from dataclasses import replace
    from pathlib import Path

    from surveybridge.bridge_core.checkpoint import save_checkpoint
    from surveybridge.bridge_core.discriminant import fit
    from surveybridge.jobs.translating.request import read_model
    from surveybridge.storage.objectstore import Folder

    model = read_model(config.checkpoint)
    if not model.card.physical:
        raise RequestError(
            f"checkpoint {model.card.name} has no stretch, so fluxes cannot enter it; use one trained here"
        )
    weights = {name: value.clone() for name, value in model.network.state_dict().items()}
    model.to("cpu", "bfloat16")
    measured, lens, group = measure_all(config, model)
    discriminant, held_out = fit(measured, lens, group, sigma=config.sigma)
    print_ranks(model.card.problem, measured, lens, group, held_out, config.sigma)
    card = replace(model.card, discriminant=discriminant)
    out = Folder.at(config.out)
    with tempfile.TemporaryDirectory() as scratch:
        path = save_checkpoint(card, weights, Path(scratch, card.name))
        for file in (path.with_suffix(".json"), path):
            out.put(file.read_bytes(), file.name)
    print(out.file_url(f"{card.name}.safetensors"))
    return 0


def measure_all(config: Config, model: Model) -> tuple[Measured, NDArray[np.bool_], NDArray[np.int64]]:
    """Residuals of regular objects and of lenses made of some; which are lenses; the row each comes from."""
    import numpy as np

    from surveybridge.bridge_core.discriminant import Measured
    from surveybridge.jobs.evaluating.ranking import DEFLECTOR_LIKE
    from surveybridge.storage.pairs import read_ids, read_labels, read_pairs

    try:
        from surveybridge.jobs.simulating.injection import inject
    except ModuleNotFoundError as missing:
        raise RequestError(
            f"calibrate needs the package {missing.name}, which is not installed; pip install 'surveybridge[sim]'"
        ) from None

    stop = None if config.limit is None else config.start + config.limit
    pairs = read_pairs(config.pairs, "cutout", config.start, stop, problem=model.card.problem.table)
    labels, ids = read_labels(config.pairs), read_ids(config.pairs, config.start, stop)
    rows = [k for k, name in enumerate(ids) if labels.get(name, {}).get("central_class") == DEFLECTOR_LIKE]
    if len(rows) < FEWEST or len(ids) - len(rows) < FEWEST:
        raise RequestError(
            f"{config.pairs}: {len(rows)} of {len(ids)} pairs are {DEFLECTOR_LIKE} by the table beside the store, but "
            f"a calibration needs {FEWEST} of them and as many others; give more pairs, or a store with its table"
        )
    lenses, _, origin = inject(pairs, rows, config.seed)
    parts = [measure_pairs(config, model, pairs, 0), measure_pairs(config, model, lenses, len(ids))]
    measured = Measured.join(parts)
    is_lens = np.repeat([False, True], [len(ids), len(origin)])
    return measured, is_lens, np.concatenate([np.arange(len(ids)), np.array(origin)])


def measure_pairs(config: Config, model: Model, pairs: Pairs, first: int) -> Measured:
    """Residuals of pairs on their own pixels; `first` places them in the noise."""
    import torch

    from surveybridge.bridge_core.anomaly import scored_direction
    from surveybridge.bridge_core.discriminant import Measured
    from surveybridge.bridge_core.residuals import Asked, Cutouts, measure
    from surveybridge.jobs.running.progress import progress
    from surveybridge.storage.pairs import on_mosaic_grid

    if model.card.grid == "mosaic":
        pairs = on_mosaic_grid(pairs)
    direction, channels = scored_direction(model), model.card.network.image_channels
    asked = Asked(config.sigma, config.draws, config.seed, config.batch)
    found = []
    for begin in progress(range(0, len(pairs), GROUP), "measure", unit="groups"):
        some = slice(begin, begin + GROUP)
        x1, x0 = (
            end.forward(torch.from_numpy(pairs.ends[end.name][some]), channels)
            for end in (direction.observed, direction.wanted)
        )
        size = x0.shape[-1]
        corners = [(0, size * (first + begin + k)) for k in range(len(x0))]
        valid = torch.ones(len(x0), 1, size, size, dtype=torch.bool)
        found.append(measure(model, Cutouts(x1, x0, valid, corners), asked))
    return Measured.join(found)


def print_ranks(
    problem: Problem, measured: Measured, lens: NDArray[np.bool_], group: NDArray[np.int64], score: Floats, sigma: float
) -> None:
    """Print how well the held-out score, and each part of it alone, tells lenses from ordinary objects."""
    import numpy as np
    from scipy.stats import spearmanr

    from surveybridge.bridge_core.discriminant import fit, surprise
    from surveybridge.bridge_core.ranking import auroc, matched_auroc
    from surveybridge.bridge_core.residuals import columns

    regular = ~lens
    alike = lens | np.isin(group, group[lens])
    print(f"{lens.sum()} lenses made of {alike.sum() - lens.sum()} of {regular.sum()} regular objects; held-out folds:")
    print("                                   AUROC  galaxies without arcs  matched flux  rank corr. with flux")

    def line(name: str, values: Floats) -> None:
        correlation = float(spearmanr(values[regular], measured.flux[regular]).statistic)
        print(
            f"  {name:32s} {auroc(values, lens):.3f}  {auroc(values[alike], lens[alike]):20.3f}  "
            f"{matched_auroc(values, lens, measured.flux):12.3f}  {correlation:20.3f}"
        )

    line("the lens score", score)
    kinds = columns(problem)
    kinds |= {"signed and squared": kinds["signed"] + kinds["squared"]}
    for name, some in kinds.items():
        part = measured._replace(features=measured.features[..., some])
        line(f"of it, {name} alone", fit(part, lens, group, sigma=sigma)[1])
    line("no lens seen: Mahalanobis", surprise(measured, regular))
    plain = measured._replace(features=measured.features[..., kinds["signed and squared"]])
    line("the same, signed and squared", surprise(plain, regular))
    line("central flux alone", measured.flux)
