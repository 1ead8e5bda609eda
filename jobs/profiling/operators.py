"""The model stage under torch's profiler: which operators, or kernels of a GPU, a part of one tile consists of."""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surveybridge.bridge_core.settings import WINDOW_PIXELS
from surveybridge.bridge_core.spans import listening, span
from surveybridge.cluster.stages import this_worker
from surveybridge.jobs.profiling.spans import PARTS, Profiled
from surveybridge.storage.objectstore import Folder

if TYPE_CHECKING:
    from surveybridge.bridge_core.settings import Sampling
    from surveybridge.storage.tiles import Tile

log = logging.getLogger(__name__)

CLAIM, ABOUT, RECORDED = "operators.claim", "operators.json", "operators-trace.json"
"""Files of a worker below `profiling.spans.PARTS`: its claim to do the part, what it did, and torch's trace of it."""

BATCHES = 2
"""Batches that the windows of the part fill, if the smallest core does not: a call leaves half a megabyte of trace."""

EVENTS_AT_MOST = 400_000
"""Largest number of events in the trace, the longest ones: 60 MB, which Perfetto still opens."""

PROFILER_BYTES = 300 << 20
"""Memory that torch's profiler adds to its worker (measured with batches of 16 windows: 190 MiB)."""

KINDS = {
    "convolutions": ("conv", "cudnn", "cutlass", "gemm", "implicit", "xmma"),
    "norms": ("norm",),
    "linear layers": ("addmm", "linear", "mm", "matmul", "bmm"),
    "activations, FiLM, sums": ("silu", "mul", "add", "cat", "sub", "div"),
    "casts and copies": ("copy", "to", "clone", "contiguous", "memcpy"),
}
"""Kinds of operators and kernels, by words in a name: the first that fits; all others are noise and bookkeeping."""


def profile_operators(translate: Callable[[Tile], Any], profiled: Profiled, store: str, how: Sampling) -> None:
    """Translate a part of the first tile under torch's profiler, in the first worker that gets here; before its tiles.

    The part is done twice, and the first time nobody looks: what is loaded, tuned, compiled and captured once is in no
    number. What it gives is thrown away. Where it fails, the tile itself will say why.
    """
    folder = Folder.at(profiled.url)
    if folder.put_new(this_worker().encode(), PARTS, CLAIM) is None:
        return
    try:
        about, trace = _record(translate, profiled.tiles[0], store, how)
        folder.put(trace, PARTS, RECORDED)
        folder.put(json.dumps(about).encode(), PARTS, ABOUT)
    except Exception as error:
        log.warning("no profile of the operators (%s: %s)", type(error).__name__, error)


def _record(translate: Callable[[Tile], Any], tile_id: str, store: str, how: Sampling) -> tuple[dict[str, Any], bytes]:
    """Record the operators, and torch's trace as it is, which the driver parses: parsed, it is many times larger."""
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    from surveybridge.storage.tiles import TileStore, part_of

    side = how.patches.core_side(BATCHES * how.batch * WINDOW_PIXELS / how.samples)
    part = part_of(TileStore.open(store).read_tile(tile_id), side)
    translate(part)
    gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as recording, listening(record_function), span(MODEL):
        translate(part)
        if gpu:
            torch.cuda.synchronize()
    about = {"worker": this_worker(), "tile_id": part.tile_id, "core": part.core_shape, "gpu": gpu}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "trace.json")
        recording.export_chrome_trace(str(path))
        return about, path.read_bytes()


@dataclass(frozen=True)
class Operators:
    """The part under torch's profiler.

    Parameters
    ----------
    about
        worker, tile_id, core (height, width), gpu.
    events
        name, cat, start (epoch) and dur in whole nanoseconds, and row: "model" for the thread that the model ran in,
        else the name of the thread or of the GPU's stream.
    """

    about: dict[str, Any]
    events: list[dict[str, Any]]

    @classmethod
    def of(cls, about: bytes, trace: bytes) -> Operators:
        """Read the two files of `profile_operators`."""
        return cls(json.loads(about), events_of(json.loads(trace)))

    def summary(self) -> dict[str, Any]:
        """Own times by kind, of the GPU's kernels where there is one, and how much of the time that is busy."""
        model = [event for event in self.events if event["row"] == "model"]
        (whole,) = (event for event in model if event["name"] == MODEL)
        kernels = [event for event in self.events if event["cat"] in KERNELS]
        own: Counter[str] = Counter()  # nanoseconds
        if self.about["gpu"]:  # by kernel: those of a captured CUDA graph belong to no operator
            for kernel in kernels:
                own[kernel["name"]] += kernel["dur"]
            busy = covered((k["start"], k["start"] + k["dur"]) for k in kernels) / whole["dur"]
        else:
            own, busy = own_times(model), None
        return {
            **self.about,
            "of": "kernels of the GPU" if self.about["gpu"] else "operators on the CPU",
            "seconds": whole["dur"] / 1e9,
            "network_calls": sum(event["name"] == "network" for event in model),
            "kinds": shares_by_kind(own),
            "longest": [(name, spent / 1e9) for name, spent in own.most_common(12)],
            "gpu_busy": busy,
            "events_left_out": max(len(self.events) - EVENTS_AT_MOST, 0),
        }

    def longest(self) -> list[dict[str, Any]]:
        """`EVENTS_AT_MOST` of the events."""
        return sorted(self.events, key=lambda event: -event["dur"])[:EVENTS_AT_MOST]


MODEL = "model, under torch.profiler"
"""Span of the part."""


def events_of(trace: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return torch's record, reduced to the fields of `Operators.events`."""
    base = int(trace.get("baseTimeNanoseconds", 0))
    complete = [event for event in trace["traceEvents"] if event.get("ph") == "X" and event.get("cat") in CATEGORIES]
    main = {event["tid"] for event in complete if event["name"] == MODEL and event["cat"] == "user_annotation"}

    def row(event: Mapping[str, Any]) -> str:
        if event["cat"] == "gpu_user_annotation":  # spans, which need not end where a kernel does
            return f"GPU {event['pid']}, stream {event['tid']}, spans"
        if event["cat"] in KERNELS:
            return f"GPU {event['pid']}, stream {event['tid']}"
        return "model" if event["tid"] in main else f"thread {event['tid']}"

    return [
        {
            "name": event["name"],
            "cat": event["cat"],
            "start": base + round(1e3 * event["ts"]),
            "dur": round(1e3 * event["dur"]),
            "row": row(event),
        }
        for event in complete
    ]


KERNELS = ("kernel", "gpu_memcpy", "gpu_memset")
CATEGORIES = ("cpu_op", "user_annotation", "cuda_runtime", "cuda_driver", "gpu_user_annotation", *KERNELS)
"""Categories of events that are kept of torch's trace."""


def own_times(events: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Time of the operators of a thread by name, without what lies in them; in the events' unit."""
    own: Counter[str] = Counter()
    around: list[Mapping[str, Any]] = []
    for event in sorted(events, key=lambda event: (event["start"], -event["dur"])):
        while around and around[-1]["start"] + around[-1]["dur"] <= event["start"]:
            around.pop()
        if event["cat"] == "cpu_op":
            own[event["name"]] += event["dur"]
            if around and around[-1]["cat"] == "cpu_op":
                own[around[-1]["name"]] -= event["dur"]
        around.append(event)
    return own


def shares_by_kind(own: Mapping[str, float]) -> dict[str, float]:
    """Shares of the operators' own time by `KINDS`; they sum to 1."""
    total = sum(own.values())
    shares = dict.fromkeys((*KINDS, "noise, update and the rest"), 0.0)
    for name, spent in own.items():
        shares[kind_of(name)] += spent / max(total, 1)
    return shares


def kind_of(name: str) -> str:
    """The kind of an operator: ``aten::mkldnn_convolution`` is one of the convolutions."""
    words = name.removeprefix("aten::").strip("_").lower()
    parts = words.split("_")
    for kind, known in KINDS.items():
        if any(word in parts or (len(word) > 3 and word in words) for word in known):
            return kind
    return "noise, update and the rest"


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of some intervals."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
