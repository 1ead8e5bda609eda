"""What is asked of the wanted end: its depth and its PSF, as if that survey had observed so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from surveybridge.bridge_core.conditions import Conditions
from surveybridge.jobs.config import RequestError
from surveybridge.storage.errors import StorageError
from surveybridge.storage.psf import parse_psf

if TYPE_CHECKING:
    from surveybridge.bridge_core.model import Card
    from surveybridge.bridge_core.problem import Direction


@dataclass(frozen=True)
class Wishes:
    """Conditions that are asked of the wanted end, by band; those that are not follow from the tile or the checkpoint.

    Parameters
    ----------
    noise
        Standard deviation of the sky noise of a pixel, in the end's unit.
    psf
        FWHM in arcsec and wing (1 / beta).
    """

    noise: Mapping[str, float] = field(default_factory=dict)
    psf: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, card: Card, direction: Direction, noise: Sequence[str], psf: Sequence[str]) -> Wishes | None:
        """Read BAND=NUMBER and BAND=PROFILE as a user gives them; None if nothing is asked.

        Raises
        ------
        RequestError
            If a text cannot be read, the wanted end has no such band, or the checkpoint cannot heed it: its network is
            told no conditions, or was never shown such.
        """
        if not (noise or psf):
            return None
        if not card.network.conditions:
            raise RequestError(
                f"--wanted-noise and --wanted-psf ask how {direction.wanted.name} is to be observed, but the network "
                f"of checkpoint {card.name} is told no such thing; leave them out, or choose a checkpoint that is"
            )
        end = direction.wanted
        bands = end.bands
        wishes = cls(
            {band: _noise(text) for band, text in _by_band(noise, "--wanted-noise", bands)},
            {band: _psf(text) for band, text in _by_band(psf, "--wanted-psf", bands)},
        )
        asked = wishes.applied(bands, Conditions.unknown(len(bands)))
        reasons = card.outside({end.name: asked})
        if reasons:
            raise RequestError(
                f"checkpoint {card.name} cannot give {'; '.join(reasons)}; ask for what it was trained on"
            )
        return wishes

    @property
    def document(self) -> dict[str, Any]:
        """The form in run.json; `of_document` reads it."""
        return {"noise": dict(self.noise), "psf": {band: list(of) for band, of in self.psf.items()}}

    @classmethod
    def of_document(cls, document: Mapping[str, Any] | None) -> Wishes | None:
        """What a run states; None where it states nothing."""
        if document is None:
            return None
        return cls(dict(document["noise"]), {band: (of[0], of[1]) for band, of in document["psf"].items()})

    def applied(self, bands: Sequence[str], conditions: Conditions) -> Conditions:
        """The conditions of the wanted end, with what is asked in their place."""
        fwhm = {band: of[0] for band, of in self.psf.items()}
        wing = {band: of[1] for band, of in self.psf.items()}

        def asked(known: tuple[float, ...], wishes: Mapping[str, float]) -> tuple[float, ...]:
            return tuple(wishes.get(band, value) for band, value in zip(bands, known, strict=True))

        return replace(
            conditions,
            noise=asked(conditions.noise, self.noise),
            fwhm=asked(conditions.fwhm, fwhm),
            wing=asked(conditions.wing, wing),
        )


def _by_band(texts: Sequence[str], flag: str, bands: Sequence[str]) -> list[tuple[str, str]]:
    """Bands and what is asked of them."""
    found = []
    for text in texts:
        band, _, value = text.partition("=")
        if band not in bands or not value:
            raise RequestError(f"{flag} {text}: expected BAND=VALUE with a band of the wanted end, {', '.join(bands)}")
        found.append((band, value))
    return found


def _noise(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise RequestError(
            f"--wanted-noise {text}: expected a standard deviation above 0, in the unit of the wanted end"
        )
    return value


def _psf(text: str) -> tuple[float, float]:
    try:
        psf = parse_psf(text)
    except StorageError as error:
        raise RequestError(f"--wanted-psf: {error}") from None
    return psf.fwhm, psf.wing
