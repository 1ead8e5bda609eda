"""Observing conditions by name or from a user's TOML or YAML file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from surveybridge.jobs.config import RequestError, read_table, suggestion
from surveybridge.jobs.simulating.observing import (
    FEW_STARS,
    Instrument,
    Marks,
    Observing,
    PsfKind,
    Registration,
    StarCounts,
)
from surveybridge.jobs.simulating.shipped_skies import shipped

_STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Band(BaseModel):
    """A table of one band, or of all bands of a survey; what is left out stays as it was."""

    model_config = _STRICT

    psf: PsfKind | None = None
    fwhm: float | None = Field(None, gt=0.05, lt=5, description="arcsec")
    beta: float | None = Field(None, ge=1.5, le=100)
    noise: float | None = Field(None, gt=0, description="nJy per pixel")
    correlation: float | None = Field(None, ge=0, le=0.9)
    sky: float | None = Field(None, ge=-2, le=2, description="in units of the noise")
    gain: float | None = Field(None, gt=0, description="electrons a nJy")
    saturation: float | None = Field(None, gt=0, description="nJy per pixel")
    cosmic_rays: float | None = Field(None, ge=0, le=1000, description="a square arcmin")
    cosmic_rays_masked: bool | None = None
    trails: float | None = Field(None, ge=0, le=100, description="an arcmin of the image's side")
    trails_masked: bool | None = None


class _Stars(BaseModel):
    model_config = _STRICT

    density: float = Field(StarCounts.density, ge=0, le=300)
    brightest: float = Field(StarCounts.brightest, ge=12)
    faintest: float = Field(StarCounts.faintest, le=28)
    slope: float = Field(StarCounts.slope, gt=0, le=1)
    showpieces: bool = False


class _Registration(BaseModel):
    model_config = _STRICT

    east: float = Field(0.0, ge=-3, le=3)
    north: float = Field(0.0, ge=-3, le=3)
    rotation: float = Field(0.0, ge=-2, le=2)


class _Sky(BaseModel):
    """A file: the shipped sky that it is like, and what differs."""

    model_config = _STRICT

    like: str = "ideal"
    lsst: _Band = _Band()
    euclid: _Band = _Band()
    g: _Band = _Band()
    r: _Band = _Band()
    i: _Band = _Band()
    VIS: _Band = _Band()
    stars: _Stars | bool | None = None
    registration: _Registration | None = None


def sky_of(text: str) -> Observing:
    """Observing conditions from what `--sky` is given: the name of a shipped sky, or a file.

    Raises
    ------
    RequestError
        There is no such sky, or the file does not describe one.
    """
    if not text.endswith((".toml", ".yaml", ".yml")):
        return _named(text, f"--sky {text}")
    path = Path(text)
    try:
        given = _Sky.model_validate(read_table(path, "--sky"))
    except ValidationError as error:
        raise RequestError(f"--sky {text}: {'; '.join(_said(detail) for detail in error.errors())}") from None
    sky = _named(given.like, f"--sky {text}: like = {given.like!r}")
    for table, which in (("lsst", "LSST"), ("euclid", "Euclid"), *((band, band) for band in ("g", "r", "i", "VIS"))):
        band: _Band = getattr(given, table)
        sky = sky.changed(which, lambda one, band=band: _changed(one, band))  # type: ignore[misc]
    for one in sky.instruments:
        if one.psf_kind == "moffat" and not one.beta > 1:
            raise RequestError(f"--sky {text}: band {one.band} has a Moffat PSF without a beta; give beta, such as 3.0")
    if isinstance(given.stars, _Stars):
        if given.stars.brightest >= given.stars.faintest:
            raise RequestError(
                f"--sky {text}: stars.brightest {given.stars.brightest:g} is not below stars.faintest "
                f"{given.stars.faintest:g}; magnitudes grow towards faint stars"
            )
        sky = replace(sky, stars=StarCounts(**given.stars.model_dump()))
    elif given.stars is not None:
        sky = replace(sky, stars=(sky.stars or FEW_STARS) if given.stars else None)
    if given.registration is not None:
        sky = replace(sky, registration=Registration(**given.registration.model_dump()))
    return replace(sky, name=path.stem)


def _named(name: str, where: str) -> Observing:
    skies = shipped()
    if name not in skies:
        nearest = suggestion(name, skies)
        remedy = f"did you mean {nearest}?" if nearest else f"known: {', '.join(skies)}, or a .toml file"
        raise RequestError(f"{where}: no sky of this name; {remedy}")
    return skies[name]


def _changed(one: Instrument, band: _Band) -> Instrument:
    names = {"psf": "psf_kind", "fwhm": "psf_fwhm", "beta": "psf_beta", "noise": "sky_sigma", "sky": "sky_residual"}
    values: dict[str, Any] = {names.get(key, key): value for key, value in band.model_dump(exclude_none=True).items()}
    for kind in ("cosmic_rays", "trails"):
        marks: Marks = getattr(one, kind)
        masked = values.pop(f"{kind}_masked", marks.masked)
        values[kind] = Marks(values.get(kind, marks.count), masked)
    return replace(one, **values)


def _said(detail: Any) -> str:
    """What is wrong with one value of a file, in words."""
    # a union adds the name of its arm to the place
    place = [str(part) for part in detail["loc"] if part not in ("_Stars", "bool")]
    if detail["type"] == "extra_forbidden":
        models: dict[str, type[BaseModel]] = {"stars": _Stars, "registration": _Registration}
        model = models.get(place[0], _Band) if len(place) > 1 else _Sky
        nearest = suggestion(place[-1], model.model_fields)
        remedy = f"did you mean {nearest}?" if nearest else f"known: {', '.join(model.model_fields)}"
        return f"unknown setting {'.'.join(place)}; {remedy}"
    message = str(detail["msg"]).removeprefix("Input ")
    return f"{'.'.join(place)} = {detail['input']}: {message}"
