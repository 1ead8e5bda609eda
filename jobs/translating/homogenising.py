"""Which PSFs a run brings its images to, and how it does so: those of the training images, where the card states them.

The end with the wider PSF is homogenised, such as LSST: what a network sees of the sharper one is blurred by it anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from surveybridge.storage.homogenise import SAID, WantedPsfs, homogenise
from surveybridge.storage.psf import Psf, psf_of
from surveybridge.storage.psf_matching import SAME_WIDTH, SAME_WING

if TYPE_CHECKING:
    import pyarrow as pa

    from surveybridge.bridge_core.model import Card
    from surveybridge.storage.fields import FieldGrid
    from surveybridge.storage.tiles import Tile


@dataclass(frozen=True)
class Homogenisation(WantedPsfs):
    """The PSFs to which the ends of a run are brought."""

    @classmethod
    def of_card(cls, card: Card, noise: float) -> Homogenisation | None:
        """What a checkpoint calls for; None where its card states no PSF, or it was trained on a range of them."""
        known = {end.name: trained_psfs(card, end.name) for end in card.problem.endpoints}
        widths = {name: max(psf.fwhm for psf in psfs.values()) for name, psfs in known.items() if psfs}
        if not widths:
            return None
        name = max(widths, key=lambda name: widths[name])
        return cls({name: {band: str(psf) for band, psf in known[name].items()}}, noise)

    @property
    def document(self) -> dict[str, Any]:
        """The form in run.json; `of_document` reads it."""
        return {"psfs": {end: dict(bands) for end, bands in self.psfs.items()}, "noise": self.noise}

    @classmethod
    def of_document(cls, document: Mapping[str, Any] | None) -> Homogenisation | None:
        """What a run states; None where it states nothing."""
        return None if document is None else cls(document["psfs"], float(document["noise"]))

    def applied(self, tile: Tile, field: FieldGrid | None) -> Tile:
        """The tile whose `seen` images are homogenised; `field` is what its store says of its field, None without."""
        halo = halo_of(tile, field)
        seen = {
            name: homogenise(image, self.plans(image, halo)) for name, image in tile.images.items() if name in self.psfs
        }
        return replace(tile, seen=seen)


def trained_psfs(card: Card, end: str) -> dict[str, Psf]:
    """The PSFs of the images that a model was trained on, by band; only where there was one of each band."""
    stated = {} if card.conditions is None else card.conditions.ranges.get(end, {})
    found: dict[str, Psf] = {}
    for band, (narrow, wide) in stated.get("fwhm", {}).items():
        low, high = stated.get("wing", {}).get(band, (float("nan"),) * 2)
        psf = psf_of((narrow + wide) / 2, (low + high) / 2)
        if psf is not None and wide / narrow - 1 <= SAME_WIDTH and high - low <= SAME_WING:
            found[band] = psf
    return found


def halo_of(tile: Tile, field: FieldGrid | None) -> int | None:
    """Pixels that a tile has around its core, where it has neighbours; None where it is all of its field."""
    (height, width), (y0, y1, x0, x1) = tile.shape, tile.core
    if field is None:
        return max(y0, height - y1, x0, width - x1) or None
    return None if tile.core_shape == tuple(field.shape) else field.halo


def count_words(ledger: pa.Table) -> dict[str, int]:
    """Number of tiles by what was done to their PSFs, most first; ledgers of earlier versions say nothing."""
    if "psf" not in ledger.column_names:
        return {}
    counts = {entry["values"]: entry["counts"] for entry in ledger["psf"].drop_null().value_counts().to_pylist()}
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def say_words(counts: Mapping[str, int]) -> str:
    """Say what was done to the PSFs of how many tiles; "" if nothing was."""
    said = [f"{tiles} tile{'s' * (tiles != 1)}: {text}" for text, tiles in counts.items()]
    others = len(said) - MOST_SAID
    return "; ".join(said[:MOST_SAID]) + (f"; and {others} others" if others > 0 else "")


MOST_SAID = 3
"""Ways of homogenising that are listed; fields may differ in each."""


def words(tile: Tile) -> str | None:
    """What was done to the PSFs of a tile, for its row of the ledger; None where nothing was to be done."""
    said = [
        f"{name} {band} {image.provenance[key]}"
        for name, image in tile.seen.items()
        for band in image.bands
        if (key := f"{band}.{SAID}") in image.provenance
    ]
    return "; ".join(said) or None
