"""The table of a profile: seconds of each stage and of its parts, how the stages lie in time, the operators' shares."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from surveybridge.cluster.stages import STAGES
from surveybridge.jobs.profiling.operators import Operators, covered
from surveybridge.jobs.profiling.spans import Part


def profile_of(
    receipts: Sequence[Mapping[str, Any]], parts: Sequence[Part], operators: Operators | None, began: float
) -> dict[str, Any]:
    """The numbers of the table.

    Parameters
    ----------
    receipts
        tile_id and intervals of the tiles that were done.
    parts
        Of the tiles that were looked at closely.
    operators
        What `profile_operators` has left, without which the worker is the one that did most of those tiles.
    began
        Epoch seconds.
    """
    worker = _worker_of(receipts, parts, operators)
    own = [r["intervals"] for r in receipts if r["intervals"].get("model", {}).get("worker") == worker]
    by_tile: dict[str, dict[str, Part]] = {}
    for part in parts:
        by_tile.setdefault(part.tile_id, {})[part.stage] = part
    close = [stages for stages in by_tile.values() if len(stages) == len(STAGES) and stages["model"].worker == worker]
    rows = _rows(close)
    return {
        "worker": worker,
        "tiles": len(own),
        "stages": {
            stage: sum(i[stage]["end"] - i[stage]["start"] for i in own if stage in i) / max(len(own), 1)
            for stage in STAGES
        },
        "close_tiles": len(close),
        "rows": rows,
        "overlap": _overlap(own, began),
        "operators": operators.summary() if operators else None,
    }


def _worker_of(receipts: Sequence[Mapping[str, Any]], parts: Sequence[Part], operators: Operators | None) -> str:
    """The worker that the profile is about: that of the operators, if it did a tile that was looked at."""
    counts = Counter(part.worker for part in parts if part.stage == "model")
    if operators and operators.about["worker"] in counts:
        return str(operators.about["worker"])
    if not counts:
        counts = Counter(r["intervals"]["model"]["worker"] for r in receipts if "model" in r["intervals"])
    return counts.most_common(1)[0][0] if counts else ""


def _rows(close: Sequence[Mapping[str, Part]]) -> list[dict[str, Any]]:
    """Return the seconds of each stage and its parts: one row per name, whose own time excludes its parts."""
    own: dict[str, dict[str, float]] = {stage: defaultdict(float) for stage in STAGES}
    gpu: dict[str, dict[str, float]] = {stage: defaultdict(float) for stage in STAGES}
    calls: dict[str, Counter[str]] = {stage: Counter() for stage in STAGES}
    for stages in close:
        for stage, part in stages.items():
            for name, seconds, on_gpu in own_times(part):
                own[stage][name] += seconds
                gpu[stage][name] += on_gpu or 0.0
                calls[stage][name] += 1
    total = math.fsum(seconds for named in own.values() for seconds in named.values())
    measured = any(span.gpu_seconds is not None for stages in close for span in stages["model"].spans)
    return [
        {
            "stage": stage,
            "part": name,
            "calls": calls[stage][name],
            "seconds": seconds,
            "seconds_a_tile": seconds / len(close),
            "share": seconds / total,
            "gpu_seconds": gpu[stage][name] if measured and stage == "model" else None,
        }
        for stage in STAGES
        for name, seconds in sorted(own[stage].items(), key=lambda pair: -pair[1])
    ]


def own_times(part: Part) -> Iterator[tuple[str, float, float | None]]:
    """Name, own seconds and own seconds of the GPU of each span; they sum to the stage's time."""
    inside = [0.0] * len(part.spans)
    inside_gpu = [0.0] * len(part.spans)
    parents: list[int] = []
    has_children = set()
    for place, one in enumerate(part.spans):
        del parents[one.depth :]
        if parents:
            inside[parents[-1]] += one.seconds
            inside_gpu[parents[-1]] += one.gpu_seconds or 0.0
            has_children.add(parents[-1])
        parents.append(place)
    path: list[str] = []
    for place, one in enumerate(part.spans):
        del path[one.depth :]
        path.append(one.name)
        name = ": ".join(path[1:])
        if place in has_children or one.depth == 0:
            rest = _rest(part.stage, one.depth)
            name = f"{name}: {rest}" if name else rest
        on_gpu = None if one.gpu_seconds is None else one.gpu_seconds - inside_gpu[place]
        yield name, one.seconds - inside[place], on_gpu


def _rest(stage: str, depth: int) -> str:
    """Return the time of a stage, or of a span, outside the spans that lie in it."""
    if stage == "read":
        return "decode and check"
    return "encode" if stage == "write" and depth else "the rest"


def _overlap(own: Sequence[Mapping[str, Any]], began: float) -> dict[str, float]:
    """Return how the stages of a worker's tiles overlap: how long the model waited, and what ran beside it."""

    def of(stage: str) -> list[tuple[float, float]]:
        return [(i[stage]["start"], i[stage]["end"]) for i in own if stage in i]

    model, io = of("model"), of("read") + of("write")
    if not model:
        return {}
    first, last = min(start for start, _ in model), max(end for _, end in model)
    working, beside = covered(model), covered(io)
    both = working + beside - covered([*model, *io])
    return {
        "seconds_until_the_first_tile": first - began,
        "seconds": last - first,
        "model_working": working / (last - first),
        "model_waiting": 1 - working / (last - first),
        "io_beside_the_model": both / beside if beside else 0.0,
    }


def describe(found: Mapping[str, Any], trace_url: str) -> str:
    """The table, for a person."""
    stages, overlap, operators = found["stages"], found["overlap"], found["operators"]
    spent = ", ".join(f"{stage} {seconds:.3f} s" for stage, seconds in stages.items())
    lines = [f"profile of worker {found['worker']}: {found['tiles']} tiles; a tile takes {spent}"]
    if found["rows"]:
        gpu = any(row["gpu_seconds"] is not None for row in found["rows"])
        lines.append(f"of {found['close_tiles']} tiles that were looked at closely:")
        on_gpu = f"{'GPU s':>9}" if gpu else ""
        lines.append(f"  {'stage':6}{'':42}{'calls':>7}{'seconds':>10}{'ms a tile':>11}{'share':>8}{on_gpu}")
        for stage in STAGES:
            rows = [row for row in found["rows"] if row["stage"] == stage]
            lines.append(_line(stage, "", rows, found["close_tiles"], gpu))
            lines += [_line("", row["part"], [row], row["calls"], gpu) for row in rows]
    if overlap:
        lines.append(
            f"the model stage worked {overlap['model_working']:.1%} of {overlap['seconds']:.1f} s from its first to "
            f"its last tile, and waited {overlap['model_waiting']:.1%}"
        )
        lines.append(
            f"{overlap['io_beside_the_model']:.0%} of reading and writing went on beside it; its first tile began "
            f"{overlap['seconds_until_the_first_tile']:.1f} s after the start"
        )
    if operators:
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in operators["kinds"].items())
        height, width = operators["core"]
        busy = operators["gpu_busy"]
        lines.append(
            f"{operators['of']}, in a part of {height} x {width} pixels of tile {operators['tile_id']} under "
            f"torch.profiler ({operators['seconds']:.2f} s): {shares}"
            + ("" if busy is None else f"; the GPU is busy {busy:.1%} of the time")
        )
    lines.append(f"{trace_url}: open it at https://ui.perfetto.dev")
    return "\n".join(lines)


def _line(stage: str, part: str, rows: Sequence[Mapping[str, Any]], calls: int, gpu: bool) -> str:
    """A row of the table, or the sum of some."""
    total = {name: math.fsum(row[name] for row in rows) for name in ("seconds", "seconds_a_tile", "share")}
    line = (
        f"  {stage:6}{part:42}{calls:7d}{total['seconds']:10.3f}{1e3 * total['seconds_a_tile']:11.2f}"
        f"{total['share']:8.1%}"
    )
    on_gpu = [row["gpu_seconds"] for row in rows if row["gpu_seconds"] is not None]
    return line + (f"{math.fsum(on_gpu):9.3f}" if gpu and on_gpu else "")
