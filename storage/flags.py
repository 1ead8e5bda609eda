"""The bits of a candidate's `flags`: what each says, in words, and which of them only inform.

The bits up to 128 are those of SEP (Barbary 2016), which takes the first four from SExtractor; those above are our own.
`flags = 0` is an ordinary object alone, whole, and with all its pixels; `flags & CUTS = 0` also accepts objects that
were told apart from a neighbour, and images that are out of the checkpoint's domain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

NEAR_ARCSEC = 3.0
"""Distance within which a bright star or the edge of the data matters, and within which objects are one system."""

BRIGHT_STAR_SNR = 1000.0
"""Signal to noise from which a star is bright, if it is not saturated."""


class Flag(NamedTuple):
    """What a bit says: a name, a word or two for a page, a sentence, whether it only informs, and since which version.

    The version is that of `storage.schema`: runs that an earlier one began do not set it.
    """

    name: str
    words: str
    meaning: str
    informs: bool = False
    since: int = 4


FLAGS: Mapping[int, Flag] = {
    1: Flag("MERGED", "deblended", "told apart from a neighbour whose light overlaps", informs=True),
    2: Flag("TRUNCATED", "cut off", "its footprint reaches the edge of the image"),
    4: Flag("OVERFLOW", "deblending incomplete", "too many branches to tell apart"),
    8: Flag("SINGULAR", "no shape", "too few pixels for a shape"),
    16: Flag("APERTURE_TRUNCATED", "aperture cut off", "the aperture reaches beyond the image"),
    32: Flag("APERTURE_MASKED", "masked pixels", "some pixels of the aperture are masked, in any band of either end"),
    64: Flag("APERTURE_ALL_MASKED", "all masked", "all pixels of the aperture are masked in the detection band"),
    256: Flag("SATURATED", "saturated", "saturated pixels in the aperture, in any band, or beside the footprint"),
    512: Flag("EDGE", "near the edge", f'pixels without data, or the end of the image, within {NEAR_ARCSEC:g}"'),
    1024: Flag(
        "BRIGHT_STAR",
        "near a bright star",
        f'within {NEAR_ARCSEC:g}" of a saturated pixel, or of a star of signal to noise {BRIGHT_STAR_SNR:g} or more',
    ),
    2048: Flag(
        "OUT_OF_DOMAIN",
        "out of domain",
        "the images here are not such as the checkpoint was trained on; the column domain says why",
        informs=True,
        since=5,
    ),
    4096: Flag("STAR", "star", "a star by its shape, or by the list of stars that was given", since=5),
    8192: Flag(
        "STAR_HALO",
        "in a star's wings",
        "in the wings or spikes of a bright or saturated star, and a piece of them",
        since=5,
    ),
}
"""By bit."""

BITS: Mapping[str, int] = {flag.name: bit for bit, flag in FLAGS.items()}
"""By name."""

CUTS = sum(bit for bit, flag in FLAGS.items() if not flag.informs)
"""Bits that do more than inform."""


def in_words(bits: int | None) -> str:
    """The flags of a candidate in words: `none` where there are none, a dash where they are not known."""
    if bits is None:
        return "–"
    named = [flag.words for bit, flag in FLAGS.items() if bits & bit]
    other = bits & ~sum(FLAGS)
    return ", ".join([*named, *([f"others ({other})"] if other else [])]) or "none"


def legend(version: int) -> str:
    """All bits of a schema version in one line, as the description of the column has them."""
    return ", ".join(f"{bit} {flag.words}" for bit, flag in FLAGS.items() if flag.since <= version)
