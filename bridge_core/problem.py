"""Problems and directions: two endpoints make a problem, and a direction says which of them is wanted.

Endpoint i owns input slot i, head i, embedding i and noise stream i of the network, as AS-Bridge's published weights
have it: there 0 is LSST and 1 is Euclid. So a direction is the index of the wanted endpoint, and nothing here knows a
survey by name.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.stretch import AnyStretch, decades, stretch_from_card


@dataclass(frozen=True)
class Endpoint:
    """One end of a bridge, an observation or a physical field: its bands, and how they enter the network.

    Parameters
    ----------
    name
        Letters, digits and ``_``; also the name of its arrays on disk.
    bands
        In the order of the arrays' first axis.
    pixel_scale
        Arcsec per pixel: in a problem file those of its own images, in a checkpoint those that the network sees. 0 is a
        grid that does not lie on the sky.
    unit
        Of the values, as astropy writes it; empty where `units` has one for each band.
    extensive
        Whether values add up over pixels, as a flux does; a density or an angle does not.
    kind
        Name of the stretch: ``asinh``, ``log10`` or ``axial``; ``mixed`` where `kinds` has one for each band.
    title
        How figures and pages call it; the name where it is empty.
    rgb
        Bands that are shown as red, green and blue, or None where it is shown in grey.
    stretch
        Fitted to the data by training, None before.
    units, kinds
        Unit and stretch of each band, where these are several quantities; such an endpoint is only observed.
    spread
        Whether its planes are repeated until they fill the network's channels; else the other channels are 0.
    scaling
        Power of a common factor, by band, with which the values of both ends can be multiplied and a pair stays one;
        empty where there is no such factor.
    """

    name: str
    bands: tuple[str, ...]
    pixel_scale: float
    unit: str = "nJy"
    extensive: bool = True
    kind: str = "asinh"
    title: str = ""
    rgb: tuple[str, str, str] | None = None
    stretch: AnyStretch | None = None
    units: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    spread: bool = True
    scaling: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an endpoint without bands, or with a band twice."""
        if not self.bands:
            raise BridgeError(f"endpoint {self.name} has no bands; give at least one")
        twice = [band for band, count in Counter(self.bands).items() if count > 1]
        if twice:
            raise BridgeError(f"endpoint {self.name} has the band {twice[0]} twice; give each band once")
        if self.kind == "mixed" and not len(self.units) == len(self.kinds) == len(self.bands):
            raise BridgeError(
                f"endpoint {self.name} has {len(self.bands)} bands, {len(self.units)} units and {len(self.kinds)} "
                "stretches; give one of each for every band"
            )

    def check(self, bands: Sequence[str], unit: str, pixel_scale: float, *, what: str, model: str) -> None:
        """Refuse an image that does not match the data on which a model was trained.

        Parameters
        ----------
        bands, unit, pixel_scale
            Of the image; the scale in arcsec per pixel.
        what, model
            Names of the image's place (``tile t0312``) and of the checkpoint, for the message.
        """
        # a grid that is not on the sky has no pixel scale to compare
        if self.pixel_scale and abs(pixel_scale / self.pixel_scale - 1) > 0.01:
            raise BridgeError(
                f'{what}: {self.name} pixel scale {pixel_scale:.3f}" but checkpoint {model} expects '
                f'{self.pixel_scale:.3f}"; re-ingest onto that grid or choose another checkpoint'
            )
        if tuple(bands) != self.bands:
            raise BridgeError(
                f"{what}: {self.name} bands {','.join(bands)} but checkpoint {model} expects {','.join(self.bands)}; "
                "re-ingest with those bands"
            )
        if unit != self.image_unit:
            raise BridgeError(
                f"{what}: {self.name} is in {unit} but checkpoint {model} expects {self.image_unit}; re-ingest in that "
                "unit"
            )

    @property
    def image_unit(self) -> str:
        """Unit of an image of it; where its bands are several quantities, those of all, separated by commas."""
        return ",".join(self.units) or self.unit

    @property
    def quantities(self) -> tuple[Endpoint, ...]:
        """Each band as an endpoint of its own, without a fitted stretch."""
        units = self.units or (self.unit,) * len(self.bands)
        return tuple(
            replace(self, bands=(band,), unit=unit, kind=kind, stretch=None, rgb=None, units=(), kinds=(), scaling=())
            for band, unit, kind in zip(self.bands, units, self._kinds, strict=True)
        )

    @property
    def band_of(self) -> list[int]:
        """Index of the band of each plane in network units: one plane per band, two per angle."""
        return [band for band, kind in enumerate(self._kinds) for _ in range(2 if kind == "axial" else 1)]

    @property
    def planes(self) -> int:
        """The number of planes in network units."""
        return len(self.band_of)

    @property
    def fitted(self) -> AnyStretch:
        """The stretch; BridgeError if there is none, because such a checkpoint works in network units only."""
        if self.stretch is None:
            raise BridgeError(
                f"the checkpoint has no stretch for {self.name}, so it cannot take {self.unit}; use one trained here"
            )
        return self.stretch

    def forward(self, values: Tensor, channels: int) -> Tensor:
        """Bring values [..., B, H, W] in the endpoint's unit to network units [..., channels, H, W]."""
        return self.shown(self.fitted.forward(values, self.bands), channels)

    def inverse(self, u: Tensor) -> Tensor:
        """Bring network units [..., C, H, W] back to values [..., B, H, W]."""
        return self.fitted.inverse(self.planes_in(u), self.bands)

    def shown(self, u: Tensor, channels: int) -> Tensor:
        """Show planes [..., P, H, W] in the network's channels [..., C, H, W]."""
        if self.spread or channels == self.planes:
            return to_channels(u, channels)
        rest = u.new_zeros((*u.shape[:-3], channels - self.planes, *u.shape[-2:]))
        return torch.cat([u, rest], -3)

    def planes_in(self, u: Tensor) -> Tensor:
        """Bring channels [..., C, H, W] back to planes [..., P, H, W]."""
        return from_channels(u, self.planes) if self.spread else u[..., : self.planes, :, :]

    def flips(self, channels: int) -> Tensor:
        """Tell which channels hold an angle's cos 2psi (1) and sin 2psi (2), int64 [channels]; 0 for all others."""
        part = [value for kind in self._kinds for value in ((1, 2) if kind == "axial" else (0,))]
        if not self.spread:
            return torch.tensor(part + [0] * (channels - self.planes))
        return torch.tensor([part[plane] for plane in planes_of_channels(self.planes, channels)])

    def scaled(self, channels: int) -> Tensor:
        """Return by how much a common factor of ten moves each channel, network units, float32 [channels]."""
        powers = self.scaling or (0.0,) * len(self.bands)
        steps = [step * powers[band] for band, step in zip(self.band_of, decades(self.fitted, self.bands), strict=True)]
        return self.shown(torch.tensor(steps)[:, None, None], channels).flatten()

    @property
    def _kinds(self) -> tuple[str, ...]:
        """Stretch of each band."""
        return self.kinds or (self.kind,) * len(self.bands)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Endpoint:
        """Read an endpoint of a problem's table."""
        rgb, bands = table.get("rgb"), tuple(table["bands"])
        return cls(
            name=table["name"],
            bands=bands,
            pixel_scale=float(table["pixel_scale"]),
            unit=table.get("unit", "nJy"),
            extensive=table.get("extensive", True),
            kind=table.get("stretch", "asinh"),
            title=table.get("title", ""),
            rgb=(rgb[0], rgb[1], rgb[2]) if rgb else None,
            stretch=stretch_from_card(table["fitted"]) if table.get("fitted") else None,
            units=tuple(table["units"][band] for band in bands) if "units" in table else (),
            kinds=tuple(table["stretches"][band] for band in bands) if "units" in table else (),
            spread=table.get("spread", True),
            scaling=tuple(float(table["scaling"][band]) for band in bands) if "scaling" in table else (),
        )

    @property
    def table(self) -> dict[str, Any]:
        """The plain form without the fitted stretch, which `from_table` reads."""
        return {
            "name": self.name,
            "bands": list(self.bands),
            "pixel_scale": self.pixel_scale,
            "unit": self.unit,
            "extensive": self.extensive,
            "stretch": self.kind,
            "title": self.title or self.name,
            "rgb": list(self.rgb) if self.rgb else None,
            **({"units": dict(zip(self.bands, self.units, strict=True))} if self.units else {}),
            **({"stretches": dict(zip(self.bands, self.kinds, strict=True))} if self.kinds else {}),
            **({"scaling": dict(zip(self.bands, self.scaling, strict=True))} if self.scaling else {}),
        }


@dataclass(frozen=True)
class Direction:
    """A direction, from the observed to the wanted endpoint; `index` is that of the wanted endpoint in its problem."""

    observed: Endpoint
    wanted: Endpoint
    index: int

    def __str__(self) -> str:
        return f"{self.observed.name}->{self.wanted.name}"


@dataclass(frozen=True)
class Problem:
    """Two endpoints, and what is to be done with them.

    Parameters
    ----------
    name
        Of the problem, such as ``lsst-euclid``.
    endpoints
        In the order of the network's slots.
    catalog
        Endpoint on whose first band objects are found and scored; None where only maps are made.
    wanted
        The only endpoint that is translated to, of a one-way problem; None for both.
    objective
        Numbers of training (``sigma_data``, ``log_sigma_mean``, ``log_sigma_std``); those that are absent are measured.
    """

    name: str
    endpoints: tuple[Endpoint, Endpoint]
    catalog: str | None = None
    wanted: str | None = None
    objective: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse endpoints that cannot be told apart, and names that are not endpoints."""
        if len(self.endpoints) != 2:
            raise BridgeError(f"problem {self.name} has {len(self.endpoints)} endpoints; a bridge has 2")
        first, second = (end.name for end in self.endpoints)
        if first == second:
            raise BridgeError(f"problem {self.name}: both endpoints are named {first}; give each a name of its own")
        for what, name in (("catalog", self.catalog), ("wanted", self.wanted)):
            if name is not None and name not in (first, second):
                raise BridgeError(f"problem {self.name}: {what} {name} is not an endpoint; give {first} or {second}")

    def __getitem__(self, name: str) -> Endpoint:
        """Return the endpoint of a name."""
        for end in self.endpoints:
            if end.name == name:
                return end
        raise BridgeError(
            f"{name!r} is not an endpoint of {self.name}, which joins "
            f"{' and '.join(end.name for end in self.endpoints)}"
        )

    @property
    def channels(self) -> int:
        """The number of channels of the network's images: the larger number of planes, for one shape of both ends."""
        return max(end.planes for end in self.endpoints)

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The directions that the problem has, in the order of their index."""
        both = (self._to(0), self._to(1))
        return tuple(d for d in both if self.wanted in (None, d.wanted.name))

    def to(self, wanted: str) -> Direction:
        """Return the direction to an endpoint.

        Raises
        ------
        BridgeError
            If there is no such endpoint, or the problem goes the other way only.
        """
        return self._allowed(self._to(self.endpoints.index(self[wanted])))

    def direction(self, text: str) -> Direction:
        """Return the direction that is written ``observed->wanted``, as in run folders."""
        for direction in (self._to(0), self._to(1)):
            if str(direction) == text:
                return self._allowed(direction)
        raise BridgeError(
            f"direction {text!r} is not one of {', '.join(map(str, self.directions))}; name the wanted end instead: "
            f"{' or '.join(f'--to {d.wanted.name}' for d in self.directions)}"
        )

    @property
    def scored(self) -> Direction | None:
        """The direction in which objects are reconstructed and scored; None if only maps are made."""
        return None if self.catalog is None else self._to(self.endpoints.index(self[self.catalog]))

    def with_endpoints(self, endpoints: Sequence[Endpoint]) -> Problem:
        """Return the problem with other endpoints of the same names, such as fitted ones."""
        first, second = endpoints
        return replace(self, endpoints=(first, second))

    def _allowed(self, direction: Direction) -> Direction:
        if self.wanted not in (None, direction.wanted.name):
            raise BridgeError(f"{self.name} goes one way, to {self.wanted}; {direction} was not trained")
        return direction

    def _to(self, index: int) -> Direction:
        return Direction(self.endpoints[1 - index], self.endpoints[index], index)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Problem:
        """Read the plain form of a problem, from a file, a run folder or a card."""
        endpoints = tuple(Endpoint.from_table(end) for end in table["endpoints"])
        return cls(
            name=table["name"],
            endpoints=cast("tuple[Endpoint, Endpoint]", endpoints),  # counted by __post_init__
            catalog=table.get("catalog"),
            wanted=table.get("wanted"),
            objective=dict(table.get("objective") or {}),
        )

    @property
    def table(self) -> Any:
        """The plain form without fitted stretches, the `ProblemTable` of problem files and run folders."""
        return {
            "name": self.name,
            "catalog": self.catalog,
            "wanted": self.wanted,
            "endpoints": [end.table for end in self.endpoints],
            "objective": dict(self.objective) or None,
        }

    @property
    def card(self) -> dict[str, Any]:
        """The JSON form for a checkpoint's card: the table with the fitted stretches, and what is shown otherwise."""
        fitted = [
            {"fitted": end.stretch.card if end.stretch else None} | ({} if end.spread else {"spread": False})
            for end in self.endpoints
        ]
        return self.table | {"endpoints": [end.table | more for end, more in zip(self.endpoints, fitted, strict=True)]}


def planes_of_channels(planes: int, channels: int) -> list[int]:
    """Index of the plane that each channel of the network shows: channel k of C shows plane k P // C.

    One plane is repeated in all, as AS-Bridge does with Euclid; three of three stay as they are.
    """
    return [k * planes // channels for k in range(channels)]


def to_channels(u: Tensor, channels: int) -> Tensor:
    """Show planes [..., P, H, W] in the network's channels [..., C, H, W], by `planes_of_channels`."""
    planes = u.shape[-3]
    return planes_at(u, planes_of_channels(planes, channels))


def planes_at(u: Tensor, places: Sequence[int]) -> Tensor:
    """Return the planes of [..., P, H, W] at some places, in that order; all of them as they are are no copy.

    On a GPU it waits for nothing, as a list of indices would.
    """
    if list(places) == list(range(u.shape[-3])):
        return u
    return torch.stack([u[..., place, :, :] for place in places], -3)


def from_channels(u: Tensor, planes: int) -> Tensor:
    """Bring channels [..., C, H, W] back to planes [..., P, H, W]: the mean of the channels that show a plane."""
    channels = u.shape[-3]
    if planes == channels:
        return u
    if planes == 1:
        return u.mean(-3, keepdim=True)
    # channel k shows plane p where p C <= k P < (p + 1) C
    edges = [-(-plane * channels // planes) for plane in range(planes + 1)]
    return torch.cat([u[..., a:b, :, :].mean(-3, keepdim=True) for a, b in itertools.pairwise(edges)], -3)
