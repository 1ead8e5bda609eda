"""Refuse a cluster without room for even the smallest form of a stream, where Ray would wait for ever in silence."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import ray
from ray.autoscaler.sdk import request_resources

from surveybridge.cluster.errors import ClusterError
from surveybridge.cluster.stream import IO_CPUS, gpus_of_model

Resources = Mapping[str, float]


def check_cluster(
    *, workers: int = 1, gpus: float | None = None, memory: Mapping[str, int] | None = None, wait: float = 10.0
) -> None:
    """Refuse a cluster without room for `workers` models, one reader and one writer.

    Parameters
    ----------
    workers
        Number of models in the smallest pool.
    gpus, memory
        As in `Stream`.
    wait
        Seconds to wait for room, e.g. until an earlier run has ended. An autoscaling cluster is asked to make room.
    """
    heap = memory or {}
    need: dict[str, Resources] = {
        "model": {"CPU": 1, "GPU": gpus_of_model(gpus), "memory": heap.get("model", 0)},
        "reader": {"CPU": IO_CPUS, "memory": heap.get("read", 0)},
        "writer": {"CPU": IO_CPUS, "memory": heap.get("write", 0)},
    }
    processes = [*([need["model"]] * workers), need["reader"], need["writer"]]
    _wait_for_room(processes, wait, lambda: _refusal(workers, need, processes))


def check_memory(workers: int, memory: int, wait: float = 10.0) -> None:
    """Refuse a cluster whose nodes cannot hold so many workers of a training, of `memory` bytes each.

    An autoscaling cluster is asked to make room, and waited for.
    """
    processes: list[Resources] = [{"memory": memory}] * workers

    def refusal() -> str:
        nodes = "; ".join(f"{count} of {size}" for size, count in Counter(map(_text, _nodes())).items())
        free = ray.available_resources().get("memory", 0)
        return (
            f"{workers} worker{'s' * (workers != 1)} of this training need {memory / 1e9:.1f} GB each, which makes "
            f"{workers * memory / 1e9:.1f} GB, but the cluster has {free / 1e9:.1f} GB free (its nodes: {nodes}); take "
            "fewer pairs with --limit, more workers on more nodes, or --accumulate"
        )

    _wait_for_room(processes, wait, refusal)


def _wait_for_room(processes: Sequence[Resources], wait: float, refusal: Callable[[], str]) -> None:
    """Return when there is room; ClusterError with the refusal if there is none after so many seconds."""
    if _room(processes):
        return
    request_resources(bundles=[{name: amount for name, amount in process.items() if amount} for process in processes])
    deadline = time.monotonic() + wait
    try:
        while not _room(processes):
            if time.monotonic() > deadline:
                raise ClusterError(refusal())
            time.sleep(0.2)
    finally:
        request_resources(bundles=[])


def _room(processes: Sequence[Resources]) -> bool:
    """Return whether the nodes are large enough and enough is free; Ray does not tell how much is free on each node."""
    return _fit(processes, _nodes()) and _fit(processes, [ray.available_resources()])


def _nodes() -> list[Resources]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _fit(processes: Sequence[Resources], nodes: Sequence[Resources]) -> bool:
    """Return whether the processes, the largest first, each find a node with room."""
    left = [dict(node) for node in nodes]
    for process in processes:
        for room in left:
            if all(room.get(name, 0) >= amount for name, amount in process.items()):
                for name, amount in process.items():
                    room[name] = room.get(name, 0) - amount
                break
        else:
            return False
    return True


def _refusal(workers: int, need: Mapping[str, Resources], processes: Sequence[Resources]) -> str:
    wanted = {name: sum(process.get(name, 0) for process in processes) for name in need["model"]}
    nodes = "; ".join(f"{count} of {size}" for size, count in Counter(map(_text, _nodes())).items())
    free = _text(ray.available_resources())
    return (
        f"{workers} model{'s' * (workers != 1)} of {_text(need['model'])}, a reader of {_text(need['reader'])} and a "
        f"writer of {_text(need['writer'])} need {_text(wanted)}, but the cluster has {free} free "
        f"(its nodes: {nodes}); ask for fewer workers or less memory, or add nodes"
    )


def _text(resources: Resources) -> str:
    amounts = [f"{resources.get('CPU', 0):g} CPU"]
    if resources.get("GPU"):
        amounts.append(f"{resources['GPU']:g} GPU")
    if resources.get("memory"):
        amounts.append(f"{resources['memory'] / 1e9:.1f} GB")
    return " ".join(amounts)
