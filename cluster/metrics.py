"""Prometheus metrics of a stream, through Ray's agents: ``ray_surveybridge_*`` on every node's metrics port."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from surveybridge.cluster.stages import STAGES, Interval


@functools.cache
def _tiles() -> Counter:
    return Counter("surveybridge_tiles_total", "Tiles committed, by status.", ("status",))


@functools.cache
def _patches() -> Counter:
    return Counter("surveybridge_patches_total", "Windows that the network has translated.")


@functools.cache
def _stage_seconds() -> Histogram:
    edges = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000]
    return Histogram("surveybridge_stage_seconds", "Wall seconds per tile in a stage.", edges, ("stage",))


@functools.cache
def _in_flight() -> Gauge:
    return Gauge("surveybridge_in_flight", "Tiles that are being done now, by stage.", ("stage",))


def count_receipt(receipt: Mapping[str, Any], intervals: Mapping[str, Interval]) -> None:
    """Count a finished item; the driver calls this."""
    _tiles().inc(1, {"status": str(receipt.get("status", "unknown"))})
    if patches := receipt.get("n_patches"):
        _patches().inc(patches)
    for stage, interval in intervals.items():
        # Ray refuses zero
        _stage_seconds().observe(max(interval.end - interval.start, 1e-9), {"stage": stage})


def count_in_flight(counts: Mapping[str, int]) -> None:
    """Set the gauge of every stage; the actor `Attempts` calls this."""
    for stage in STAGES:
        _in_flight().set(counts.get(stage, 0), {"stage": stage})
