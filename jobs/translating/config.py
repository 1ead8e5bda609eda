"""The settings of a translation, as `surveybridge translate` takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from surveybridge.jobs.config import JobConfig

if TYPE_CHECKING:
    from surveybridge.bridge_core.settings import Sampling, Scoring

NOISE_BOUND = 1.5
"""As `storage.psf_matching.NOISE_BOUND`, which is not imported for `--help`."""

STEPS, SEEING_STEPS = 6, 16
"""Network evaluations of a sample, and of one that is drawn through the seeing (docs/notes/2026-11-29-physics.md)."""

RECONSTRUCT = 0.1
"""Largest false-alarm rate at which new runs reconstruct a source: of ordinary ones a tenth."""

PATCHES = (64, 128)
"""Sides of a patch that give equally good results, by `benchmarks/windows.py`; the first suits every network."""

Patch = Annotated[
    Literal["tile", 64, 128] | None,
    BeforeValidator(lambda given: int(given) if isinstance(given, str) and given.isdigit() else given),
]
"""Windows as a run states them (`bridge_core.settings.windows_of`): whole tiles, or patches by their side."""


def steps_of(bridge: str) -> int:
    """Return the default number of network evaluations of a sample, by the kind of a checkpoint's bridge."""
    return SEEING_STEPS if bridge == "seeing" else STEPS


class TranslationConfig(JobConfig):
    """The settings that decide a translation and how it runs, except where it goes."""

    store: str = Field(description="tile store, local path or URL")
    checkpoint: str | None = Field(
        None,
        description="checkpoint path or shipped name (default: the shipped one; of a run that goes on, what it began "
        "with)",
    )
    to: str | None = Field(
        None, description="endpoint to translate to (default: the one with the catalog, such as euclid)"
    )
    direction: str | None = Field(None, description="the same, as both endpoints in quotes: 'lsst->euclid'")
    samples: int = Field(
        8,
        ge=0,
        description="posterior samples K of each patch, at least 2; 0 for maps of mean and standard deviation from one "
        "evaluation, with a checkpoint that has a head for them",
    )
    steps: int | None = Field(
        None,
        ge=1,
        description=f"network evaluations per sample (default: {STEPS}; with a checkpoint that goes through the seeing "
        f"{SEEING_STEPS})",
    )
    score_samples: int = Field(5, ge=2, description="reconstructions K of each source for the anomaly score")
    score_steps: int = Field(8, ge=1, description="network evaluations per reconstruction")
    score_reconstruct: float | None = Field(
        None,
        ge=0,
        le=1,
        description="largest false-alarm rate, by the checkpoint's lens score, of sources that are reconstructed: 1 "
        f"for all, 0 for none (default: {RECONSTRUCT}; of a run that goes on, what it began with)",
    )
    workers: int = Field(
        1, ge=1, description="largest number of model actors at a time (each on a GPU, if there are any)"
    )
    min_workers: int = Field(1, ge=1, description="smallest number of model actors, with which the run begins")
    executor: Literal["ray", "serial"] = Field("ray", description="ray, or serial in this process without Ray")
    seed: int = Field(0, ge=0, description="key of the sky's noise")
    batch: int | None = Field(
        None,
        ge=1,
        description="patches of 64 pixels in one network call, or as many pixels of tiles (default: 16 on a CPU, 512 "
        "on a GPU)",
    )
    patch: Patch = Field(
        None,
        description="what the network sees at once: the whole tile with 64 pixels around it, or patches of 64 or 128 "
        "pixels a side, of which 128 need a halo of 119 (default: what the checkpoint's card states that it "
        "was measured with, where the tiles have such a halo, else 64; of a run that goes on, what it began with)",
    )
    precision: Literal["bfloat16", "float32"] = Field("bfloat16", description="arithmetic of the network")
    calibrated: bool = Field(
        False,
        description="give standard deviations and false-alarm rates by the recalibration in the checkpoint's card",
    )
    stars: str | None = Field(
        None,
        description="table of known stars, such as Gaia's, with ra, dec and perhaps a magnitude (CSV, ECSV, FITS, "
        "VOTable or Parquet): what matches is no lens",
    )
    stars_radius: float = Field(0.5, gt=0, le=5, description="arcsec within which an object is a star of --stars")
    homogenise: Literal["auto", "off"] | None = Field(
        None,
        description="bring images to the PSF of the training images where the checkpoint's card states it and it is "
        "another (auto), or not (off) (default: auto; of a run that goes on, what it began with)",
    )
    psf_noise: float = Field(
        NOISE_BOUND,
        gt=1,
        le=10,
        description="factor by which that may enlarge the noise of a pixel; where it would, the PSF comes only as near",
    )
    consistency: Literal["auto", "off"] | None = Field(
        None,
        description="multiply mean and deviation so that their light agrees with what was observed, at the resolution "
        "of both, where the checkpoint's card says how, in whole tiles (auto), or not (off) (default: auto; of a run "
        "that goes on, what it began with)",
    )
    wanted_noise: tuple[str, ...] = Field(
        (),
        description="depth that is asked of the wanted endpoint: BAND=STD of its sky noise per pixel, in its unit "
        "(default: that of its own image in the tile, else the typical one of the training images)",
    )
    wanted_psf: tuple[str, ...] = Field(
        (), description="PSF that is asked of the wanted endpoint: BAND=gaussian:FWHM or BAND=moffat:FWHM,BETA, arcsec"
    )
    retry_failed: bool = Field(False, description="repeat tiles that failed or were quarantined before")
    minutes: float | None = Field(None, gt=0, description="begin no tile after this many minutes; a rerun continues")

    @property
    def sampling(self) -> Sampling:
        """How posteriors are sampled; without `batch` as on a CPU, without `steps` as most, without `patch` in 64."""
        from surveybridge.bridge_core.settings import Sampling, windows_of

        return Sampling(
            samples=self.samples,
            steps=self.steps or STEPS,
            seed=self.seed,
            batch=self.batch or Sampling.batch,
            precision=self.precision,
            patches=windows_of(self.patch or PATCHES[0]),
        )

    @property
    def scoring(self) -> Scoring:
        """How sources are scored; the batch as in `sampling`."""
        from surveybridge.bridge_core.settings import Scoring

        return Scoring(
            samples=self.score_samples,
            steps=self.score_steps,
            seed=self.seed,
            batch=self.batch or Scoring.batch,
            precision=self.precision,
            reconstruct=RECONSTRUCT if self.score_reconstruct is None else self.score_reconstruct,
        )

    @model_validator(mode="after")
    def _pool(self) -> Self:
        if self.samples == 1:
            raise ValueError("--samples 1 has no standard deviation; give at least 2, or 0 for maps without samples")
        if self.samples == 0 and self.calibrated:
            raise ValueError("--calibrated has factors of the deviations of samples; leave it out with --samples 0")
        if self.min_workers > self.workers:
            raise ValueError(
                f"--min-workers {self.min_workers} is above --workers {self.workers}; give at most that many"
            )
        return self


class Config(TranslationConfig):
    """Settings of `surveybridge translate`."""

    writes = ("run", "profile")

    run: str = Field(description="run folder to write, local path or URL; an unfinished one of the same run is resumed")
    wait: float = Field(0.0, ge=0, description="seconds to wait for another driver of this run to end")
    profile: str | None = Field(
        None, description="folder or URL for a profile of one worker: a trace that Perfetto opens, and a table"
    )
