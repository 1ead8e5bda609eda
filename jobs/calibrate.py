"""Calibrate a checkpoint: its lens score on pairs, or its intervals and false-alarm rates on the sky of a tile store.

With --pairs: puts simulated arcs around deflector-like galaxies of pair stores and measures how both surveys depart
from what the checkpoint lets expect, for these lenses and for the stores' own regular objects. From that follow the
weights of the score and its false-alarm rate, both by observing conditions if the checkpoint is told them. Take pairs
that no test uses; those that training kept for validation are best, and the others do where the network does not know
them by heart.

With --store: translates tiles that both surveys have observed, and learns by which factor standard deviations of each
predicted brightness are too small or too large on that sky, and how often its ordinary objects have which lens score.
`translate --calibrated` applies both.

A checkpoint that goes through the seeing says what no telescope observes. It takes --pairs with sharp skies, which are
observed as in a training, and learns the factors of its standard deviations from them.

With --pairs --maps: fits the head that says the standard deviation of every pixel from one evaluation of the network,
for `translate --samples 0`. It is a file of its own beside a copy of the checkpoint, which stays as it is.

With --pairs --consistency: learns how the light of one survey follows from the bands of the other, and how far the
network's is off, by which `translate` then makes the light of its maps agree with what was observed.

All else is written into the card of a copy of the checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from surveybridge.jobs.config import JobConfig, RequestError
from surveybridge.jobs.translating.config import Patch, steps_of

if TYPE_CHECKING:
    from torch import Tensor

    from surveybridge.bridge_core.maps import MapsHead
    from surveybridge.bridge_core.model import Card, Model
    from surveybridge.bridge_core.settings import Sampling
    from surveybridge.jobs.calibrating.store import Asked

EXAMPLES = """\
surveybridge calibrate --pairs pairs/train.zarr --start 3600 --checkpoint runs/mosaic/bridge --out runs/calibrated
surveybridge calibrate --store field.zarr --tiles 8 --out runs/here
surveybridge calibrate --store s3://survey/tiles --checkpoint runs/mine/mine --out s3://survey/models --executor ray
surveybridge calibrate --pairs skies.zarr --checkpoint seeing-v1 --out runs/calibrated
surveybridge calibrate --pairs skies.zarr pairs/train.zarr --maps --checkpoint runs/mosaic/bridge --out runs/maps
surveybridge calibrate --pairs skies.zarr --consistency --checkpoint runs/mosaic/bridge --out runs/consistent"""

ONLY = {
    "pairs": ("start", "limit", "sigma", "draws", "maps", "consistency"),
    "store": (
        *("tiles", "to", "arcs", "hold_back", "hold_back_order"),
        *("known_lenses", "known_lenses_radius", "executor", "workers", "patch"),
    ),
}
"""Settings that mean something with one of both only."""


class Config(JobConfig):
    """Settings of `surveybridge calibrate`."""

    writes = ("out",)

    pairs: tuple[str, ...] = Field(
        (),
        description="pair stores of regular objects, each with its table beside it, local paths or URLs: for the lens "
        "score; or of sharp skies, for a checkpoint that goes through the seeing",
    )
    store: str | None = Field(
        None, description="tile store with both surveys, local path or URL: for intervals and false-alarm rates"
    )
    out: str = Field(description="folder or URL for the calibrated checkpoint")
    checkpoint: str | None = Field(None, description="checkpoint path or shipped name (default: the shipped one)")
    start: int = Field(0, ge=0, description="with --pairs: first row of each store")
    limit: int | None = Field(None, ge=1, description="with --pairs: number of pairs of each to use (default: all)")
    sigma: float | None = Field(
        None,
        gt=0,
        description="with --pairs: noise level at which residuals are taken, network units (default: 2, or the end of "
        "the bridge where the network has learnt to begin with nothing there)",
    )
    draws: int = Field(2, ge=1, description="with --pairs: number of noise draws that are averaged")
    maps: bool = Field(
        False,
        description="with --pairs: fit the head of `translate --samples 0` instead of the lens score, on 2048 pairs of "
        "each store if --limit says nothing",
    )
    consistency: bool = Field(
        False,
        description="with --pairs: learn how the light of one end follows from the other's instead of the lens score, "
        "from 4096 pairs of each store if --limit says nothing",
    )
    tiles: int = Field(16, ge=1, description="with --store: largest number of tiles, spread over the store")
    to: str | None = Field(None, description="with --store: endpoint to translate to (default: all that there are)")
    samples: int = Field(8, ge=2, description="for intervals: posterior samples K of each patch")
    steps: int | None = Field(
        None, ge=1, description="for intervals: network evaluations per sample (default: as of translate)"
    )
    patch: Patch = Field(
        None,
        description="with --store: what the network sees at once, as of translate; the calibrated checkpoint's card "
        "states it, and new runs see tiles so (default: as the card of --checkpoint states)",
    )
    arcs: bool = Field(True, description="with --store: also put arcs around its galaxies, and say how many are found")
    known_lenses: str | None = Field(
        None,
        description="with --store: table of known lenses with ra and dec (CSV, ECSV, FITS, VOTable, Parquet), path or "
        "URL: they are no ordinary objects",
    )
    known_lenses_radius: float = Field(
        3.0, gt=0, le=30, description="with --known-lenses: arcsec within which an object is one of them, or its arcs"
    )
    executor: Literal["ray", "serial"] = Field("serial", description="with --store: serial in this process, or ray")
    workers: int = Field(1, ge=1, description="with --store: largest number of actors at a time, on Ray")
    hold_back: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="with --store: use only the share of the sky that a training with the same --hold-back and --seed "
        "held back (default: all that the tiles show)",
    )
    hold_back_order: int | None = Field(
        None, ge=2, le=27, description="with --hold-back: HEALPix order of its cells, as in the training"
    )
    seed: int = Field(0, ge=0, description="seed of lenses and noise, and of the cells of --hold-back")
    batch: int | None = Field(
        None, ge=1, description="stamps or patches in one network call (default: 16 on a CPU, 512 on a GPU)"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if bool(self.pairs) == (self.store is not None):
            raise ValueError("give --pairs for the lens score, or --store for intervals and false-alarm rates")
        other = "store" if self.store is None else "pairs"
        if strange := [name for name in ONLY[other] if name in self.model_fields_set]:
            raise ValueError(f"--{strange[0].replace('_', '-')} is for --{other}; leave it out")
        if self.maps and self.consistency:
            raise ValueError("--maps and --consistency learn one thing each; give one of them")
        apart = "maps" if self.maps else "consistency" if self.consistency else None
        if apart and (strange := [name for name in OF_SCORE if name in self.model_fields_set]):
            raise ValueError(f"--{strange[0]} is not for --{apart}; leave it out")
        if self.hold_back_order is not None and self.hold_back is None:
            raise ValueError(f"--hold-back-order {self.hold_back_order} says nothing without --hold-back; give both")
        if "known_lenses_radius" in self.model_fields_set and self.known_lenses is None:
            raise ValueError(
                f"--known-lenses-radius {self.known_lenses_radius:g} says nothing without --known-lenses; give both"
            )
        return self


OF_SCORE = ("sigma", "draws", "samples", "steps")
"""Settings of lens score and intervals."""
SIGMA = 2.0
"""Noise far above that of images, network units."""
ARCS_A_TILE = 16
"""Galaxies of a tile that get arcs, if there are so many."""


def run(config: Config) -> int:
    """Measure, learn, say how good the result is, and write the checkpoint; 3 if tiles failed, 1 if all did."""
    from surveybridge.jobs.translating.request import read_model

    model = read_model(config.checkpoint)
    if not model.card.physical:
        raise RequestError(
            f"checkpoint {model.card.name} has no stretch, so fluxes cannot enter it; use one trained here"
        )
    weights = {name: value.clone() for name, value in model.network.state_dict().items()}
    if config.maps:
        return fit_maps(config, model, weights)
    if config.consistency:
        return fit_consistency(config, model, weights)
    card, failed = calibrated_card(config, model)
    if card is None:
        return 1
    print(write(config.out, card, weights))
    return 3 if failed else 0


def write(url: str, card: Card, weights: dict[str, Tensor], head: MapsHead | None = None) -> str:
    """Write a checkpoint, and its head for maps without samples if there is one; returns the URL of the last file."""
    import tempfile
    from pathlib import Path

    from surveybridge.bridge_core.checkpoint import head_file, load_checkpoint, save_checkpoint
    from surveybridge.bridge_core.maps import save_head
    from surveybridge.storage.objectstore import Folder

    out = Folder.at(url)
    with tempfile.TemporaryDirectory() as scratch:
        path = save_checkpoint(card, weights, Path(scratch, card.name))
        files = [path.with_suffix(".json"), path]
        if head is not None:
            files.append(head_file(path))
            save_head(head, load_checkpoint(path), files[-1])
        for file in files:
            out.put(file.read_bytes(), file.name)
    return out.file_url(files[-1].name)


def fit_maps(config: Config, model: Model, weights: dict[str, Tensor]) -> int:
    """Fit the head for maps without samples, and write it beside a copy of the checkpoint; returns 0."""
    from surveybridge.bridge_core.maps import check_maps
    from surveybridge.jobs.calibrating.maps import PAIRS, fit_head, read

    check_maps(model.card)
    stores = [read(model.card, url, config.start, config.limit or PAIRS) for url in config.pairs]
    for url, pairs in zip(config.pairs, stores, strict=True):
        if not len(pairs):
            raise RequestError(f"{url} has {pairs.stored} pairs but --start is {config.start}; give a smaller one")
    head = fit_head(model, stores, config.seed, config.batch or 16)
    print(write(config.out, model.card, weights, head))
    return 0


def fit_consistency(config: Config, model: Model, weights: dict[str, Tensor]) -> int:
    """Learn how light is brought to agree, print it, and write a copy of the checkpoint that says so; returns 0."""
    from dataclasses import replace

    from surveybridge.bridge_core.checkpoint import head_file
    from surveybridge.bridge_core.maps import load_head
    from surveybridge.jobs.calibrating.light import PAIRS, fit_relation, read

    if model.card.bridge.kind == "seeing":
        raise RequestError(
            f"checkpoint {model.card.name} goes through the seeing, where the light of both ends is the same; leave "
            "--consistency out"
        )
    stores = [read(model.card, url, config.start, config.limit or PAIRS) for url in config.pairs]
    relation = fit_relation(model, stores, config.seed, config.batch or 16)
    terms = " + ".join(f"{weight:.3g} {band}" for band, weight in relation.weights.items())
    print(f"{relation.band} = {terms}, within {relation.scatter:.1%}; {relation.provenance['bright']} bright pairs")
    for direction, error in relation.error.items():
        print(f"{direction}: light of the network is off by {error:.1%} beyond that")
    head = None if model.file is None else head_file(model.file)
    kept = load_head(model, head) if head is not None and head.is_file() else None
    print(write(config.out, replace(model.card, consistency=relation), weights, kept))
    return 0


def calibrated_card(config: Config, model: Model) -> tuple[Card | None, int]:
    """The card with what was measured, None where nothing was; and the number of tiles that failed."""
    from dataclasses import replace

    from surveybridge.bridge_core.residuals import Asked

    check_kind(config, model.card)
    if config.store is not None:
        from surveybridge.jobs.calibrating.store import calibrate_on_store

        return calibrate_on_store(model, store_request(config, model.card))
    try:
        from surveybridge.jobs.calibrating.pairs import PairRows, calibrate_on_pairs
        from surveybridge.jobs.calibrating.skies import calibrate_on_skies
    except ModuleNotFoundError as missing:
        raise RequestError(
            f"calibrate needs the package {missing.name}, which is not installed; pip install 'surveybridge[sim]'"
        ) from None
    stores = [PairRows(url, config.start, config.limit) for url in config.pairs]
    if model.card.bridge.kind == "seeing":
        return calibrate_on_skies(model, stores, sampling_of(config, model.card)), 0
    sigma = config.sigma or noise_level(model.card)
    discriminant = calibrate_on_pairs(model, stores, Asked(sigma, config.draws, config.seed, config.batch or 16))
    # rates that were measured with another score say nothing of this one
    kept = model.card.recalibration and replace(model.card.recalibration, false_alarms=None)
    return replace(model.card, discriminant=discriminant, recalibration=kept), 0


def check_kind(config: Config, card: Card) -> None:
    """Refuse what a checkpoint of this kind of bridge cannot be calibrated by."""
    seeing = card.bridge.kind == "seeing"
    if seeing and config.store is not None:
        raise RequestError(
            f"checkpoint {card.name} says what the sky is behind the seeing, which no tile of {config.store} has "
            "observed; give --pairs with sharp skies, such as `surveybridge simulate-pairs --grid sharp` draws"
        )
    strange = ("sigma", "draws") if seeing else ("samples", "steps") if config.pairs else ()
    if given := [name for name in strange if name in config.model_fields_set]:
        what = "lens scores, which it has none of" if seeing else "intervals, which --pairs does not measure of it"
        raise RequestError(f"--{given[0]} with checkpoint {card.name} is for {what}; leave it out")


def sampling_of(config: Config, card: Card) -> Sampling:
    """How posteriors are sampled."""
    from surveybridge.bridge_core.settings import DEFAULT_BATCH, Sampling

    return Sampling(
        samples=config.samples,
        steps=config.steps or steps_of(card.bridge.kind),
        seed=config.seed,
        batch=config.batch or DEFAULT_BATCH["cpu"],
    )


def noise_level(card: Card) -> float:
    """At which a network's mean of the unknown image is asked for, network units."""
    from surveybridge.bridge_core.sampler import starts_without_x0

    bridge = card.bridge
    return float(bridge.sigma[-1]) if starts_without_x0(card, bridge.num_steps - 1) else SIGMA


def store_request(config: Config, card: Card) -> Asked:
    """The calibration on a store that is asked for."""
    from surveybridge.jobs.calibrating.store import Asked

    return Asked(
        store=str(config.store),
        checkpoint=config.checkpoint,
        out=config.out,
        to=config.to,
        tiles=config.tiles,
        lenses=ARCS_A_TILE if config.arcs else 0,
        hold_back=config.hold_back,
        hold_back_order=config.hold_back_order,
        known_lenses=config.known_lenses,
        known_lenses_radius=config.known_lenses_radius,
        sampling=sampling_of(config, card),
        patch=config.patch,
        batch=config.batch,
        executor=config.executor,
        workers=config.workers,
    )
