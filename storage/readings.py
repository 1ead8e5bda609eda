"""What was understood of a band's file: one record a band, for the log, the provenance of tiles, and inspection."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Allowances:
    """What a user allows of files that are not as they should be.

    Attributes
    ----------
    subtract_sky : bool
        Subtract the level of the sky, which is measured on the image, from fluxes; else refuse one that is not 0.
    stale_sums : bool
        Take images whose CHECKSUM or DATASUM is not theirs, which were edited after these were written.
    """

    subtract_sky: bool = False
    stale_sums: bool = False


STRICT = Allowances()
"""Nothing is allowed."""


@dataclass(frozen=True)
class BandReading:
    """What was understood of the file of one band.

    Attributes
    ----------
    band : str
        Name of the band.
    file : str
        File and HDU, as they can be given again: `sky.fits[SCI,2]`.
    hdu : str
        The HDU: number, name, EXTVER, shape and type of its pixels.
    filter : str
        FILTER of the header; "not stated".
    unit : str
        Unit of the pixels as they are kept.
    calibration : tuple of (str, str)
        Key ("zero_point" or "unit") and words.
    zero_point : float
        AB zero point of the file; NaN where the pixels are no fluxes.
    psf_fwhm, psf_wing, psf_source : float, float, str
        arcsec without the pixel, 1 / beta of the Moffat with its wings (0 is a Gaussian), NaN where unknown, and where
        they were found.
    noise_source : str
        Where the variances come from.
    noise_sigma : float
        Median standard deviation of a usable pixel, in `unit`.
    map_sigma : float
        The same of the file's noise map, whether or not it is used; NaN where there is none.
    uncovered : float
        Share of the pixels that the noise map marks as not covered.
    sky_level, sky_sigma, sky_pixels : float, float, int
        Background of the image in `unit`, as the file has it, and the pixels that it was measured on.
    sky_subtracted : bool
        Whether the level was subtracted.
    noise_correlation : str
        Lag-1 correlation of the noise, in words.
    mask_source : str
        Where the mask comes from, and the planes that leave a pixel usable.
    mask_shares : tuple of (str, float)
        Planes that are set in the mask and their shares of the pixels; in brackets those that leave a pixel usable.
    zeros : float
        Share of the pixels that are exactly 0 over an area, and therefore no data.
    unusable : float
        Share of the pixels that are not usable, for any reason.
    cosmic_rays : str
        How many pixels were found to be of cosmic rays, in words; "" where they were not sought.
    wcs : str
        What there is to say of the WCS, such as that it was turned to ICRS.
    notes : tuple of str
        What was left aside, and anything else worth a word.
    """

    band: str
    file: str
    hdu: str
    filter: str
    unit: str
    calibration: tuple[tuple[str, str], ...]
    zero_point: float
    psf_fwhm: float
    psf_wing: float
    psf_source: str
    noise_source: str
    noise_sigma: float
    map_sigma: float
    uncovered: float
    sky_level: float
    sky_sigma: float
    sky_pixels: int
    sky_subtracted: bool
    noise_correlation: str
    mask_source: str
    mask_shares: tuple[tuple[str, float], ...]
    zeros: float
    unusable: float
    cosmic_rays: str = ""
    wcs: str = ""
    notes: tuple[str, ...] = ()

    def provenance(self) -> dict[str, str]:
        """Return the record as texts, `<band>.<key>`, as tiles keep them."""
        shares = ", ".join(f"{name} {share:.2%}" for name, share in self.mask_shares if share)
        texts = {
            "file": self.file,
            "filter": self.filter,
            **dict(self.calibration),
            "noise": self.noise_source + (f"; {self.uncovered:.2%} not covered" if self.uncovered else ""),
            "noise_correlation": self.noise_correlation,
            "psf_fwhm": self.psf_source,
            "mask": self.mask_source + (f"; shares: {shares}" if shares else ""),
            "sky": self.sky,
        }
        if self.zeros:
            texts["no_data"] = f"{self.zeros:.2%} are exactly 0 over an area"
        if self.cosmic_rays:
            texts["cosmic_rays"] = self.cosmic_rays
        if self.wcs:
            texts["wcs"] = self.wcs
        if self.notes:
            texts["notes"] = "; ".join(self.notes)
        return {f"{self.band}.{key}": text for key, text in texts.items()}

    @property
    def sky(self) -> str:
        """Level of the sky in words."""
        if not self.sky_pixels:
            return "not measured"
        ratio = f" = {self.sky_level / self.sky_sigma:+.2f} sigma" if self.sky_sigma else ""
        said = f"{self.sky_level:.4g} {self.unit}{ratio}".replace("+-", "-")
        return f"{said}, {'subtracted' if self.sky_subtracted else 'left as it is'}"

    @property
    def psf(self) -> str:
        """Width and wings of the PSF in words."""
        if not math.isfinite(self.psf_fwhm):
            return "not stated"
        wings = f", wings 1/beta {self.psf_wing:.2f}" if math.isfinite(self.psf_wing) else ", wings not stated"
        return f'{self.psf_fwhm:.3g}"{wings} ({self.psf_source})'

    def facts(self) -> dict[str, str]:
        """Return what a person wants to know, in words, by what it is about; nothing about what the file lacks."""
        noise = f"{self.noise_sigma:.4g} {self.unit} ({self.noise_source})"
        shares = ", ".join(f"{name} {share:.2%}" for name, share in self.mask_shares if share)
        facts = {
            "HDU": self.hdu,
            **{key.replace("_", " "): text for key, text in self.calibration},
            "PSF": self.psf,
            "noise": noise + (f"; {self.uncovered:.2%} not covered" if self.uncovered else ""),
            "correlation": self.noise_correlation,
            "sky": self.sky,
            "mask": self.mask_source + (f"; {shares}" if shares else ""),
            "unusable": f"{self.unusable:.2%} of the pixels"
            + (f", {self.zeros:.2%} exactly 0 over an area" if self.zeros else ""),
            "cosmic rays": self.cosmic_rays,
            "WCS": self.wcs,
            "notes": "; ".join(self.notes),
        }
        return {key: text for key, text in facts.items() if text}

    def line(self) -> str:
        """Return the record as one line for the log."""
        return "; ".join([f"{self.band}: {self.file}", *(f"{key} {text}" for key, text in self.facts().items())])
