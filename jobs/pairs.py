"""Cut a pair store from a tile store: windows of both surveys, to train on the sky that you have.

The windows lie in the cores of the tiles that both surveys have, on a lattice and around objects. Masked pixels are
NaN, and noise and PSF of each window come along. Parts of the sky are held back: their windows come last in the store,
and training keeps them for validation. Run again, it goes on where it was stopped.
"""

from __future__ import annotations

from pydantic import Field

from surveybridge.jobs.config import JobConfig, RequestError

EXAMPLES = """\
surveybridge pairs --store tiles --out pairs/mine.zarr
surveybridge pairs --store s3://sky/tiles --out s3://sky/pairs/mine.zarr --count 20000 --hold-back 0.05
surveybridge pairs --store tiles --out pairs/maps.zarr --problem clouds.toml --stride 32
surveybridge pairs --join pairs/one.zarr pairs/two.zarr --out pairs/both.zarr"""


class Config(JobConfig):
    """Settings of `surveybridge pairs`."""

    writes = ("out",)

    store: str | None = Field(None, description="tile store, local path or URL")
    join: tuple[str, ...] = Field((), description="pair stores to join into one instead, on the mosaic grid")
    out: str = Field(description="pair store to write, NAME.zarr, local path or URL; its table is NAME.parquet")
    problem: str | None = Field(
        None, description="problem file (TOML) or shipped name (default: lsst-euclid, or what the tiles hold)"
    )
    count: int | None = Field(
        None, ge=2, description="number of windows (default: all of the lattice, and their share on objects)"
    )
    stride: int | None = Field(
        None, ge=1, description="pixels between the windows of the lattice (default: --size, side by side)"
    )
    objects: float = Field(0.5, ge=0, le=1, description="share of the windows that are centred on objects")
    snr: float = Field(10.0, ge=0, description="least signal to noise of these objects, where they are detected")
    complete: float = Field(
        0.5, ge=0, le=1, description="least share of a window's pixels with data in all bands of both surveys"
    )
    hold_back: float = Field(0.1, ge=0, lt=1, description="share of the sky that is held back for validation")
    hold_back_order: int | None = Field(
        None, ge=2, le=27, description="HEALPix order of its cells (default: of cells 8 to 16 windows wide)"
    )
    size: int = Field(64, ge=8, description="side of a window, pixels of the tiles' grid")
    seed: int = Field(0, ge=0, description="seed of the choice of windows and of the cells that are held back")


def run(config: Config) -> int:
    """Write the pair store and its table, and say how many pairs they hold."""
    from surveybridge.jobs.cutting.cut import cut_pairs, open_source
    from surveybridge.jobs.cutting.joining import join_pairs
    from surveybridge.jobs.cutting.windows import Cutting
    from surveybridge.jobs.running.progress import progress
    from surveybridge.storage.held_back import HeldBack, order_of
    from surveybridge.storage.objectstore import Folder
    from surveybridge.storage.pair_labels import labels_url
    from surveybridge.storage.problems import read_problem

    if (config.store is None) == (not config.join):
        raise RequestError(f"give either --store or --join (store={config.store}, join={list(config.join)})")
    if config.store is None:
        count = join_pairs(config.join, config.out, lambda items, what, total: progress(items, what, total=total))
        print(f"{Folder.at(config.out).url}: {count} pairs of {len(config.join)} stores")
        return 0
    source = open_source(config.store, None if config.problem is None else read_problem(config.problem))
    order = config.hold_back_order or order_of(config.size * source.scale)
    how = Cutting(
        held_back=HeldBack(config.hold_back, order, config.seed),
        size=config.size,
        stride=config.stride or config.size,
        count=config.count,
        objects=config.objects,
        snr=config.snr,
        complete=config.complete,
        seed=config.seed,
    )
    found = cut_pairs(source, config.out, how, watch=lambda items, what, _: progress(items, what, unit="parts"))
    url = Folder.at(config.out).url
    print(f"{url}: {found.pairs} pairs, {found.held_back} of them held back for validation")
    print(labels_url(url))
    if found.failed:
        print(f"{len(found.failed)} of {source.manifest.num_rows} tiles cannot be read: {', '.join(found.failed[:5])}")
        return 3
    return 0
