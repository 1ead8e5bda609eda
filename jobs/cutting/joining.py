"""Several pair stores as one: their pairs in turn, so that every part of the store holds some of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surveybridge.jobs.config import RequestError
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.pair_store import open_store
from surveybridge.storage.pair_writer import QUANTITIES, PairLayout, PairWriter, store_name
from surveybridge.storage.pairs import Pairs, problem_of_pairs, read_ids, read_pairs
from surveybridge.storage.problems import end_names

Progress = Callable[[Iterable[int], str, int], Iterable[int]]
"""Iterates over blocks, and says how far it is: items, what is done, and how many there are in all."""


def join_pairs(urls: Sequence[str], out: str, progress: Progress) -> int:
    """Write the pairs of several stores of one problem into one, on the mosaic grid; returns how many there are.

    Pairs that are held back come last. Conditions come along; a store that states none by pair gives the numbers of
    its bands.

    Raises
    ------
    RequestError
        If the stores differ in their problem, pixels or size of stamps.
    """
    probes = [read_pairs(url, stop=1, conditions=True) for url in urls]
    first = probes[0]
    for url, probe in zip(urls, probes, strict=True):
        if _kind(probe) != _kind(first):
            raise RequestError(
                f"{url} has stamps of {_kind(probe)} but {urls[0]} of {_kind(first)}; join stores of one problem"
            )
    problem = problem_of_pairs(urls[0])
    ends = end_names(problem)
    held_back = [int(open_store(url, None).attributes.get("held_back", 0)) for url in urls]
    order = interleaved([(probe.stored - kept, kept) for probe, kept in zip(probes, held_back, strict=True)])
    maps = tuple(name for name in ends if any(_of(probe, name).sigma is not None for probe in probes))
    layout = PairLayout(
        problem,
        len(order),
        (first.ends[ends[0]].shape[-2], first.ends[ends[0]].shape[-1]),
        first.pixel_scale[ends[0]],
        store_name(Folder.at(out).url),
        held_back=sum(held_back),
        sigma=maps,
        gain=ends,
        registration=True,
        attributes={"joined": [probe.name for probe in probes]},
    )
    writer = PairWriter.open(out, layout)
    for block in progress(writer.missing(), "join", layout.blocks):
        rows = order[layout.rows(block).start : layout.rows(block).stop]
        names, arrays = _block(urls, rows, maps)
        writer.write(block, names, arrays)
    writer.finish()
    return len(order)


def interleaved(counts: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Store and row of each pair of a joined store, int64 [N, 2]: all evenly mixed, those that are held back last.

    Parameters
    ----------
    counts
        Of each store: pairs to train on, which come first in it, and pairs that are held back.
    """
    parts = []
    for part in range(2):
        of_part = [
            (store, sum(of[:part]) + row, (row + 0.5) / of[part])
            for store, of in enumerate(counts)
            for row in range(of[part])
        ]
        parts += sorted(of_part, key=lambda entry: (entry[2], entry[0]))
    return np.array([entry[:2] for entry in parts], np.int64)


def _block(
    urls: Sequence[str], rows: NDArray[np.int64], maps: Sequence[str]
) -> tuple[list[str], Mapping[str, NDArray[Any]]]:
    """Names and arrays of some pairs, each store read in one piece."""
    names = [""] * len(rows)
    arrays: dict[str, NDArray[Any]] = {}
    for store in np.unique(rows[:, 0]):
        places = np.flatnonzero(rows[:, 0] == store)
        wanted = rows[places, 1]
        start, stop = int(wanted.min()), int(wanted.max()) + 1
        pairs = read_pairs(urls[store], start=start, stop=stop, conditions=True)
        ids = read_ids(urls[store], start, stop)
        for name, values in _arrays(pairs, maps).items():
            into = arrays.setdefault(name, np.empty((len(rows), *values.shape[1:]), np.float32))
            into[places] = values[wanted - start]
        for place, row in zip(places, wanted - start, strict=True):
            names[place] = ids[row]
    return names, arrays


def _arrays(pairs: Pairs, maps: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays of a pair store."""
    assert pairs.conditions is not None
    arrays: dict[str, NDArray[Any]] = {"registration": pairs.conditions.registration}
    for name, flux in pairs.ends.items():
        of = pairs.conditions.ends[name]
        arrays[name] = flux.transpose(0, 2, 3, 1)
        arrays |= {f"{name}_{quantity}": getattr(of, quantity) for quantity in (*QUANTITIES, "gain")}
        if name in maps:
            sigma = of.noise[:, :, None, None] if of.sigma is None else of.sigma
            arrays[f"{name}_sigma"] = np.broadcast_to(sigma, flux.shape).transpose(0, 2, 3, 1)
    return arrays


def _of(pairs: Pairs, name: str) -> Any:
    assert pairs.conditions is not None
    return pairs.conditions.ends[name]


def _kind(pairs: Pairs) -> str:
    """What stores that are joined must agree in, in words."""
    kinds = []
    for name, values in pairs.ends.items():
        pixels = f'{values.shape[-2]} x {values.shape[-1]} pixels of {pairs.pixel_scale[name]:g}"'
        kinds.append(f"{name} {','.join(pairs.bands[name])} in {pairs.units[name]}, {pixels}")
    return "; ".join(kinds)
