"""The functions of `import surveybridge as sb` for notebooks and scripts: stores, runs, catalogs, translations.

This stands above the libraries and composes them, as `surveybridge.jobs` does for the command line. Every function
imports what it needs when it is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import os

    import numpy as np
    from astropy.io.fits import Header
    from astropy.nddata import CCDData
    from astropy.table import QTable
    from astropy.units import UnitBase
    from astropy.wcs import WCS
    from numpy.typing import ArrayLike, NDArray

    from surveybridge.bridge_core.maps import MapsHead
    from surveybridge.bridge_core.model import Model
    from surveybridge.bridge_core.problem import Direction, Endpoint
    from surveybridge.bridge_core.scene import Scene
    from surveybridge.storage.regions import Region
    from surveybridge.storage.runs import RunFolder
    from surveybridge.storage.systems import Kind
    from surveybridge.storage.tiles import Tile, TileStore
    from surveybridge.storage.views import Urls


@dataclass(frozen=True, eq=False)
class PosteriorMap:
    """A model's prediction of one end: posterior mean and standard deviation of every pixel.

    ``found["VIS"]`` is one band as an astropy `CCDData`, with unit, uncertainty, mask and WCS. The uncertainties of
    neighbouring pixels are not independent: for the error of a sum over pixels draw samples
    (``surveybridge export --cutout RA,DEC,ARCSEC --samples K``).

    Parameters
    ----------
    mean, std : float32 [B, H, W]
        In `unit`; NaN where nothing was observed.
    coverage : float32 [H, W]
        Share of observed input within the seeing, 0 to 1.
    bands : tuple of str
        In the order of the first axis.
    unit : astropy unit
        Of mean and std.
    wcs : astropy.wcs.WCS or None
        Of these pixels; None where arrays were translated, whose place on the sky is not known.
    header : astropy.io.fits.Header
        Marks the pixels as model-generated, and says what made them.
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    coverage: NDArray[np.float32]
    bands: tuple[str, ...]
    unit: UnitBase
    wcs: WCS | None
    header: Header

    def __getitem__(self, band: str) -> CCDData:
        """Return one band as `CCDData` [H, W], masked where nothing was observed; KeyError if there is no such band."""
        from astropy.nddata import CCDData, StdDevUncertainty

        if band not in self.bands:
            raise KeyError(f"no band {band!r}; there are {', '.join(self.bands)}")
        plane = self.bands.index(band)
        header = self.header.copy()
        header["FILTER"] = (band, "band")
        return CCDData(
            self.mean[plane],
            unit=self.unit,
            uncertainty=StdDevUncertainty(self.std[plane]),
            mask=self.coverage <= 0,
            wcs=self.wcs,
            meta=header,
        )


def open_store(url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> TileStore:
    """Open a tile store, which `surveybridge ingest` makes.

    Parameters
    ----------
    url : str
        Local path or URL.
    storage_options : mapping, optional
        Arguments of the fsspec filesystem, such as ``{"profile": "survey"}`` for s3.

    Returns
    -------
    TileStore
        ``manifest()`` is its table of tiles (Arrow), ``read_tile(tile_id)`` reads one.

    Examples
    --------
    >>> import surveybridge as sb
    >>> store = sb.open_store("tiles")
    >>> store.manifest()["tile_id"].to_pylist()
    ['t0000', 't0001', 't0002', 't0003']
    >>> tile = store.read_tile("t0000")
    >>> {name: image.bands for name, image in tile.images.items()}
    {'lsst': ('g', 'r', 'i'), 'euclid': ('VIS',)}
    """
    from surveybridge.storage.tiles import TileStore

    return TileStore.open(url, storage_options)


def open_run(url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> RunFolder:
    """Open a run folder, which `surveybridge translate` writes.

    Parameters
    ----------
    url : str
        Local path or URL.
    storage_options : mapping, optional
        Arguments of the fsspec filesystem.

    Returns
    -------
    RunFolder
        ``run_json`` says what ran, ``ledger()`` has a row for each tile (Arrow), ``ok_tiles()`` names the finished
        ones, ``read_tile_mosaic(tile_id)`` reads one.

    Examples
    --------
    >>> import surveybridge as sb
    >>> run = sb.open_run("runs/first")
    >>> run.run_json["direction"], run.ok_tiles()
    ('lsst->euclid', ['t0000', 't0001', 't0002', 't0003'])
    """
    from surveybridge.storage.runs import RunFolder

    return RunFolder.open(url, storage_options)


def read_catalog(
    url: Urls,
    *,
    cone: str | tuple[Any, Any, Any] | None = None,
    region: Region | None = None,
    top: int | None = None,
    columns: Sequence[str] | None = None,
    kind: Kind = "object",
    members: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> QTable:
    """Read candidates of a run, of several runs or of a published catalog, highest score first, with units.

    Parameters
    ----------
    url : str or sequence of str
        Run folder or published catalog, local path or URL, or several run folders. Of an object in overlapping fields
        there is one row, as in a catalog.
    cone : (ra, dec, radius), optional
        ICRS degrees and arcsec, as numbers, quantities or text (``"10:00:24 -02:12:00 30"``); adds `separation`.
    region : Region, optional
        Any other part of the sky, instead of a cone: a `Box` or a `Coverage` (MOC) of `surveybridge.storage.regions`.
    top : int, optional
        At most so many systems.
    columns : sequence of str, optional
        Only these, in this order. Thumbnails are read where they are named here.
    kind : {"object", "star", "saturated", "all"}
        What to list; stars and saturated sources rank behind all objects.
    members : bool
        All rows of each system (a lens and its arcs), not only the leading one.
    storage_options : mapping, optional
        Arguments of the fsspec filesystem.

    Returns
    -------
    QTable
        Floats are quantities where the schema has a unit; descriptions and UCDs are in each column's `info`.

    Raises
    ------
    StorageError
        If `url` is neither run nor catalog, or the question is wrong.

    Examples
    --------
    >>> import surveybridge as sb
    >>> best = sb.read_catalog("runs/first", top=5)
    >>> len(best), best["ra"].unit, best["flux_VIS"].to("uJy").unit
    (5, Unit("deg"), Unit("uJy"))
    >>> sb.read_catalog("runs/first", top=5, columns=["thumbnail_euclid"])["thumbnail_euclid"].shape
    (5, 1, 64, 64)
    """
    from surveybridge.storage.astrotables import query_table
    from surveybridge.storage.errors import StorageError
    from surveybridge.storage.query import Listing
    from surveybridge.storage.regions import Cone

    if cone is not None:
        if region is not None:
            raise StorageError("a cone and another region are given; give one of them")
        region = Cone(*_degrees_and_arcsec(cone))
    listing = Listing(kind, members)
    return query_table(url, region, top, columns=columns, listing=listing, storage_options=storage_options)


def read_mosaic(
    url: str | os.PathLike[str],
    *,
    cutout: str | tuple[Any, Any, Any] | None = None,
    region: tuple[int, int, int, int] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> PosteriorMap:
    """Read the translated mosaic of a run, its tiles put side by side.

    Parameters
    ----------
    url : str
        Run folder, local path or URL.
    cutout : (ra, dec, side), optional
        A square on the sky: ICRS degrees of its centre and arcsec, as numbers, quantities or text.
    region : (y0, y1, x0, x1), optional
        Pixels of the run's global grid, half-open, instead of a cutout; the box around all finished tiles by default.
    storage_options : mapping, optional
        Arguments of the fsspec filesystem.

    Returns
    -------
    PosteriorMap
        NaN, with coverage 0, where no tile is finished.

    Raises
    ------
    StorageError
        If there is no such run, no tile of it is finished, or the result would be larger than 4 GiB.

    Examples
    --------
    >>> import surveybridge as sb
    >>> field = sb.read_mosaic("runs/first")
    >>> field.bands, field.mean.shape, field.unit
    (('VIS',), (1, 192, 192), Unit("nJy"))
    >>> best = sb.read_catalog("runs/first", top=1)[0]
    >>> image = sb.read_mosaic("runs/first", cutout=(best["ra"], best["dec"], 4.0))["VIS"]
    >>> image.shape, image.uncertainty.uncertainty_type
    ((40, 40), 'std')
    """
    from astropy.units import Unit

    from surveybridge.storage.celestial import celestial_wcs
    from surveybridge.storage.errors import StorageError
    from surveybridge.storage.footprint import square
    from surveybridge.storage.runs import RunFolder

    if cutout is not None and region is not None:
        raise StorageError("a cutout and a region are given; give one of them")
    run = RunFolder.open(url, storage_options)
    tiles = run.ok_tiles()
    if cutout is not None and tiles:
        region = square(run.mosaic_headers(tiles[:1])[0], *_degrees_and_arcsec(cutout))
    mosaic = run.read_mosaic(region, tiles=tiles)
    return PosteriorMap(
        mean=mosaic.mean,
        std=mosaic.std,
        coverage=mosaic.coverage,
        bands=run.mosaic_headers(tiles[:1])[0].bands,
        unit=Unit(mosaic.unit),
        wcs=celestial_wcs(mosaic.wcs_header),
        header=_header(run.run_json),
    )


def load_checkpoint(name_or_path: str | os.PathLike[str] | None = None) -> Model:
    """Load a trained model: one that ships with the package, or one that `surveybridge train` wrote.

    Parameters
    ----------
    name_or_path : str, optional
        Name of a shipped checkpoint, or path of a card or of its weights; by default the shipped one for tiles.

    Returns
    -------
    Model
        ``card.problem`` says which ends it joins, their bands, units and pixel scales.

    Raises
    ------
    BridgeError
        If there is no such checkpoint, or it cannot be read.

    Examples
    --------
    >>> import surveybridge as sb
    >>> model = sb.load_checkpoint()
    >>> for end in model.card.problem.endpoints:
    ...     print(end.name, end.bands, end.unit, end.pixel_scale)
    lsst ('g', 'r', 'i') nJy 0.1
    euclid ('VIS',) nJy 0.1
    """
    import os

    from surveybridge.bridge_core.checkpoint import load_checkpoint as load

    return load(None if name_or_path is None else os.fspath(name_or_path))


def translate(
    model: Model,
    observed: Tile | ArrayLike,
    *,
    to: str,
    valid: ArrayLike | None = None,
    samples: int = 8,
    steps: int | None = None,
    seed: int = 0,
    homogenise: Literal["auto", "off"] = "auto",
) -> PosteriorMap:
    """Translate a tile, or arrays of the observed end, as `surveybridge translate` does, in this process.

    A tile gives the pixels that `surveybridge translate` with the same settings writes for it on the same processor.
    One without a halo is taken for a field of its own. Its light is brought to agree with what was observed where the
    model's card says how, and the PSFs are known; light of arrays, whose PSFs are not, stays as the network has it.

    Parameters
    ----------
    model : Model
        From `load_checkpoint`; it stays as it is. The network runs on a GPU if torch sees one.
    observed : Tile or array [B, H, W]
        A tile of a store, whose core is translated, or the bands of the observed end on the model's pixels: a
        `Quantity`, or numbers in the end's unit. NaN is no data; [H, W] will do for an end of one band.
    to : str
        The end that is wanted.
    valid : bool array, optional
        Usable pixels, [B, H, W] or what broadcasts to it; only with arrays (a tile has its own mask).
    samples : int
        Posterior samples, at least 2; or 0 for mean and standard deviation alone, from one evaluation of the network
        and the head of its checkpoint (`mosaic-v3` has one).
    steps : int, optional
        Network evaluations for each sample; by default as `surveybridge translate` takes.
    seed : int
        Key of the noise.
    homogenise : "auto" or "off"
        Whether a tile is brought to the PSF of the training images, as `surveybridge translate` does.

    Returns
    -------
    PosteriorMap
        Of the tile's core, or of all of the arrays; without a WCS for arrays, whose coverage is that of the pixel
        alone.

    Raises
    ------
    BridgeError
        If the model is not for tiles, does not go to that end, or was trained on other bands, units or pixels; or has
        no head for maps without samples.

    Examples
    --------
    >>> import numpy as np
    >>> import surveybridge as sb
    >>> model, tile = sb.load_checkpoint(), sb.open_store("tiles").read_tile("t0000")
    >>> euclid = sb.translate(model, tile, to="euclid", samples=2, steps=2)
    >>> euclid.mean.shape, euclid.unit, euclid["VIS"].wcs.wcs.ctype[0]
    ((1, 96, 96), Unit("nJy"), 'RA---TAN')

    Arrays need no store:

    >>> gri = np.random.default_rng(1).normal(0.0, 0.4, (3, 64, 64))
    >>> found = sb.translate(model, gri, to="euclid", samples=2, steps=2)
    >>> found.mean.shape, found.bands
    ((1, 64, 64), ('VIS',))
    """
    import copy
    from dataclasses import replace

    import torch
    from astropy.units import Unit

    from surveybridge.bridge_core.errors import BridgeError
    from surveybridge.bridge_core.maps import map_tile
    from surveybridge.bridge_core.settings import DEFAULT_BATCH, Sampling
    from surveybridge.bridge_core.translate import translate_tile, with_shared_start
    from surveybridge.jobs.translating.config import NOISE_BOUND, steps_of
    from surveybridge.jobs.translating.homogenising import Homogenisation
    from surveybridge.jobs.translating.light import compared_light, relation_for
    from surveybridge.jobs.translating.scene import wanted_conditions
    from surveybridge.jobs.translating.windows import halo_of_tile, windows_for
    from surveybridge.storage.celestial import celestial_wcs
    from surveybridge.storage.tiles import Tile, core_header
    from surveybridge.version import __version__

    card, direction = model.card, model.card.problem.to(to)
    if card.grid != "mosaic":
        raise BridgeError(
            f"checkpoint {card.name} is for the {card.grid} grid, where each end has its own pixels; choose a mosaic "
            "checkpoint"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    head = None if samples else _head_of(model).to(device)
    steps = steps or steps_of(card.bridge.kind)
    how = Sampling(samples=samples, steps=steps, seed=seed, batch=DEFAULT_BATCH[device.type])
    if isinstance(observed, Tile):
        if valid is not None:
            raise BridgeError(f"tile {observed.tile_id} has a mask of its own; give valid with arrays only")
        how_seen = None if homogenise == "off" else Homogenisation.of_card(card, NOISE_BOUND)
        observed = observed if how_seen is None else how_seen.applied(observed, None)
        scene, wcs = _scene_of_tile(model, observed, direction, device), celestial_wcs(core_header(observed))
        halo = halo_of_tile(observed)
    else:
        scene, wcs, halo = _scene_of_arrays(direction.observed, observed, valid, device), None, None
    how = with_shared_start(card, replace(how, patches=windows_for(card, None, halo)))
    # On a copy, since weights that are rounded to bfloat16 stay so.
    moved = replace(model, network=copy.deepcopy(model.network)).to(device, how.precision)
    wanted = agreeing = None
    if isinstance(observed, Tile):
        wanted = wanted_conditions(card, observed, direction)
        relation = relation_for(card, direction, how.patches)
        agreeing, _ = compared_light(card, relation, observed, direction, wanted, how.patches)
    if head is None:
        posterior = translate_tile(moved, direction, scene, how, wanted=wanted, consistency=agreeing)
    else:
        posterior = map_tile(moved, head, direction, scene, how, wanted, agreeing)
    made_by = {
        "code_version": __version__,
        "direction": str(direction),
        "model": card.name,
        "checkpoint_sha256": model.sha256,
        "samples": samples,
        "steps": steps,
        "seed": seed,
        "precision": how.precision,
        "consistency": agreeing is not None,
    }
    return PosteriorMap(
        mean=posterior.mean.numpy(),
        std=posterior.std.numpy(),
        coverage=posterior.coverage.numpy(),
        bands=direction.wanted.bands,
        unit=Unit(direction.wanted.unit),
        wcs=wcs,
        header=_header(made_by),
    )


def _head_of(model: Model) -> MapsHead:
    """Return the head for maps without samples that lies beside a model's checkpoint; refuse a model that has none."""
    from surveybridge.bridge_core.checkpoint import head_file
    from surveybridge.bridge_core.errors import BridgeError
    from surveybridge.bridge_core.maps import check_maps, load_head

    check_maps(model.card)
    if model.file is None:
        raise BridgeError(
            f"samples is 0 but {model.card.name} was not loaded from a file, beside which a head for maps would lie; "
            "load it with load_checkpoint, or draw samples"
        )
    return load_head(model, head_file(model.file))


def _degrees_and_arcsec(place: Any) -> tuple[float, float, float]:
    """Return right ascension and declination in degrees and an angle in arcsec, from numbers, quantities or text."""
    from astropy.units import Quantity

    from surveybridge.storage.positions import position_and_angle

    if isinstance(place, str) or any(isinstance(value, str) for value in place):
        return position_and_angle(place)
    ra, dec, size = (float(Quantity(v, unit).value) for v, unit in zip(place, ("deg", "deg", "arcsec"), strict=True))
    return ra, dec, size


def _header(made_by: Mapping[str, Any]) -> Header:
    """Return FITS cards that mark pixels as model-generated and say what made them; `made_by` has run.json's keys."""
    from astropy.io.fits import Card, Header

    from surveybridge.storage.fits_mosaics import provenance_cards

    return Header([Card(*facts) for facts in provenance_cards(made_by)])


def _scene_of_tile(model: Model, tile: Tile, direction: Direction, device: Any) -> Scene:
    """Return the observed end of a tile; refuse it if it is absent, or if the model was trained on other data."""
    from surveybridge.bridge_core.errors import BridgeError
    from surveybridge.jobs.translating.scene import prepared, scene_of

    name = direction.observed.name
    if name not in tile.images:
        raise BridgeError(
            f"tile {tile.tile_id} has {', '.join(tile.images)} but no {name}, which {direction} needs; choose another"
        )
    tile = prepared(model.card, tile)
    return scene_of(tile, name, device, model.card)


def _scene_of_arrays(end: Endpoint, observed: ArrayLike, valid: ArrayLike | None, device: Any) -> Scene:
    """Return arrays of an end, which is wanted in full; refuse them if their shapes or unit do not fit."""
    import numpy as np
    import torch
    from astropy.units import Quantity, UnitConversionError

    from surveybridge.bridge_core.errors import BridgeError
    from surveybridge.bridge_core.scene import Scene

    numbers: Any = observed
    try:
        numbers = numbers.to_value(end.unit) if isinstance(numbers, Quantity) else numbers
    except UnitConversionError as error:
        raise BridgeError(f"{end.name} is in {numbers.unit} but the model takes {end.unit}; convert it") from error
    values = np.ma.filled(np.ma.asarray(numbers).astype(np.float32), np.nan)
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or len(values) != len(end.bands):
        raise BridgeError(
            f"{end.name} is {values.shape} but the model takes {len(end.bands)} band(s), {','.join(end.bands)}; give "
            f"[{len(end.bands)}, height, width]"
        )
    usable = np.isfinite(values)
    if valid is not None:
        try:
            usable &= np.asarray(valid, bool)
        except ValueError as error:
            raise BridgeError(
                f"valid is {np.shape(valid)} but {end.name} {values.shape}; give one of the same shape"
            ) from error
    if not usable.all(0).any():
        raise BridgeError(
            f"{end.name}: 0 of {usable[0].size} pixels are usable in all of {','.join(end.bands)}; give some"
        )
    height, width = values.shape[1:]
    return Scene(
        torch.from_numpy(values).to(device),
        torch.from_numpy(usable).to(device),
        origin=(0, 0),
        core=(0, height, 0, width),
        psf_fwhm=1.0,
    )
