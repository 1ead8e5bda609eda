"""Which score finds lenses: DeCo-Diff, CFM, AS-Bridge's, ours, or the flux alone.

    python -m benchmarks.table2 --train ../shared/data/pairs/train_regular.zarr
        --regular ../shared/data/pairs/test_regular.zarr --lenses ../shared/data/pairs/test_lens.zarr
        --runs runs/table2 --out benchmarks/results

The whole of AS-Bridge's table 2, on the mosaic grid: rate of false positives at the thresholds that 1% and 5% of the
lenses pass, area under the precision-recall curve (AUPR), and besides the area under the ROC curve (AUROC), also at
matched flux; against all ordinary objects and against those that are like deflectors. Intervals (95%) are from drawing
the objects anew. Rivals are trained on ordinary pairs, each network for `--seconds` of processor time on one thread.
They stay in `--runs`: run again, they are not trained again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.table1 import displayed, units, write
from surveybridge.bridge_core.anomaly import score_windows
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.comparators.budget import Budget
from surveybridge.bridge_core.comparators.crossmodal import CrossModal
from surveybridge.bridge_core.comparators.decodiff import DecoDiff
from surveybridge.bridge_core.comparators.detectors import (
    CrossModalDetector,
    DecoDiffDetector,
    train_decodiff,
    train_encoder,
    train_maps,
)
from surveybridge.bridge_core.comparators.features import EfficientNetFeatures, SelfTaught
from surveybridge.bridge_core.comparators.fit import load_weights, save_weights
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.evaluation import trivial_scores
from surveybridge.bridge_core.problem import Problem
from surveybridge.bridge_core.settings import Scoring
from surveybridge.jobs.evaluating.cutouts import pair_cutouts
from surveybridge.jobs.evaluating.ranking import ranked
from surveybridge.jobs.evaluating.summary import in_words, percent
from surveybridge.jobs.training.card import asked_problem
from surveybridge.storage.pairs import DEFLECTOR_LIKE, Pairs, read_ids, read_labels, read_pairs

Floats = NDArray[np.float64]


def main() -> None:
    """Train what is not trained yet, score all objects, print a line for each score, and write table2.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="pair store of ordinary objects to learn from")
    parser.add_argument("--regular", required=True, help="pair store of ordinary objects to be judged on")
    parser.add_argument("--lenses", required=True, help="pair store of anomalies")
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/table2"),
        help="folder of what is trained; another one for another budget",
    )
    parser.add_argument("--checkpoint", default="mosaic-v2", help="of the scores of AS-Bridge and ours")
    parser.add_argument("--seconds", type=float, default=3600, help="processor seconds of training of each network")
    parser.add_argument("--steps", type=int, help="steps instead")
    parser.add_argument("--training", type=int, help="training pairs (default: all)")
    parser.add_argument("--base", type=int, default=16, help="channels of the first stage of DeCo-Diff")
    parser.add_argument("--limit", type=int, help="objects of each store that are scored (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for table2.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    problem = asked_problem(None, None, arguments.train)
    training = read_pairs(arguments.train, "mosaic", stop=arguments.training, problem=problem.table)
    stores = (arguments.regular, arguments.lenses)
    judged = [read_pairs(url, "mosaic", stop=arguments.limit, problem=problem.table) for url in stores]
    anomalous = np.repeat([False, True], [len(pairs) for pairs in judged])
    labels = read_labels(arguments.regular)
    ids = read_ids(arguments.regular, 0, len(judged[0]))
    like = np.array([labels.get(name, {}).get("central_class") == DEFLECTOR_LIKE for name in ids])
    rows: list[dict[str, Any]] = []
    flux: Floats | None = None
    some = np.concatenate([like, np.ones(len(judged[1]), bool)])
    counts = f"{len(judged[1])} lenses, {len(ids)} ordinary objects, {like.sum()} of them like deflectors"
    print(f"{len(training)} pairs to learn from; {counts}")
    print("score                     against        |  FPR@1%  FPR@5% | AUPR, AUROC, AUROC at matched flux")
    for name, score in all_scores(problem, training, judged, arguments):
        flux = score if flux is None else flux  # the first score is the central flux
        for against, kept in (("all", np.ones(len(some), bool)), (DEFLECTOR_LIKE, some)):
            if against == DEFLECTOR_LIKE and not like.any():
                continue
            row = {"score": name, "against": against} | ranked(score[kept], anomalous[kept], flux[kept])
            rows.append(row)
            print(line_of(row), flush=True)
        if arguments.out:
            write(arguments, rows, "table2.json")


def all_scores(
    problem: Problem, training: Pairs, judged: list[Pairs], asked: argparse.Namespace
) -> Iterator[tuple[str, Floats]]:
    """Yield each score of all objects, ordinary ones first: those that need no model, ours, and the rivals'."""
    trivial = [trivial_of(problem, pairs) for pairs in judged]
    for name in trivial[0]:
        yield name, np.concatenate([one[name] for one in trivial])
    model = load_checkpoint(asked.checkpoint).to("cpu", "bfloat16")
    found = []
    for row, pairs in enumerate(judged):
        corners = [(64 * row, 64 * k) for k in range(len(pairs))]
        cutouts = pair_cutouts(model, pairs, corners, torch.device("cpu"))
        found.append(score_windows(model, cutouts, Scoring(seed=asked.seed)))
    yield "AS-Bridge", np.concatenate([one.published.numpy() for one in found])
    yield "ours", np.concatenate([one.score.numpy() for one in found])
    shown = displayed(problem, training)
    ends = units(shown, training)
    test = [units(shown, pairs) for pairs in judged]
    vis = np.concatenate([pairs.ends[problem.endpoints[1].name][:, 0].sum((1, 2)) for pairs in judged])
    networks = {end.name: decodiff_of(shown, which, ends[which], asked) for which, end in enumerate(shown.endpoints)}
    for some in (["euclid"], ["lsst"], ["lsst", "euclid"]):
        detector = DecoDiffDetector(shown, {name: networks[name] for name in some})
        score = np.concatenate([detector.score(*pair, asked.seed).double().numpy() for pair in test])
        yield f"DeCo-Diff {' and '.join(some)}", score
        if some == ["euclid"]:
            yield "DeCo-Diff euclid / flux", score / np.maximum(vis, 1.0)
    for name, encoders in encoders_of(shown, ends, asked):
        maps = maps_of(shown, name, encoders, ends, asked)
        cross = CrossModalDetector(shown, encoders, maps)
        yield f"CFM {name}", np.concatenate([cross.score(*pair, asked.seed).double().numpy() for pair in test])


def trivial_of(problem: Problem, pairs: Pairs) -> Mapping[str, Floats]:
    """Scores that need no model; the first is the central flux in i."""
    first, second = problem.endpoints
    observed, wanted = (torch.from_numpy(pairs.ends[end.name]) for end in (first, second))
    noise = pairs.noise[second.name][second.bands[0]]
    return trivial_scores(observed, wanted, pairs.pixel_scale[first.name], noise)


def budget_of(asked: argparse.Namespace) -> Budget:
    """Return the budget of one network."""
    return Budget(steps=asked.steps, seconds=None if asked.steps else asked.seconds, seed=asked.seed)


def decodiff_of(problem: Problem, which: int, images: Tensor, asked: argparse.Namespace) -> DecoDiff:
    """Train DeCo-Diff on an end, or find it trained."""
    end = problem.endpoints[which]
    path = asked.runs / f"decodiff-{end.name}-{asked.seed}"
    network = DecoDiff(end.planes, asked.base)
    if not path.with_suffix(".json").is_file():
        save_weights(train_decodiff(end, images, budget_of(asked), asked.base), {"method": "decodiff"}, path)
    load_weights(network, path)
    return network.eval().requires_grad_(False)


def encoders_of(
    problem: Problem, ends: tuple[Tensor, Tensor], asked: argparse.Namespace
) -> Iterator[tuple[str, tuple[nn.Module, nn.Module]]]:
    """Yield the features of CFM: EfficientNet's, where the extra is installed, and those that taught themselves."""
    try:
        frozen = EfficientNetFeatures()
    except BridgeError as error:
        print(error)
    else:
        yield "EfficientNet", (frozen, frozen)
    taught = []
    for end, images in zip(problem.endpoints, ends, strict=True):
        path = asked.runs / f"encoder-{end.name}-{asked.seed}"
        encoder = SelfTaught()
        if not path.with_suffix(".json").is_file():
            save_weights(train_encoder(end, images, budget_of(asked)), {"method": "vicreg"}, path)
        load_weights(encoder, path)
        taught.append(encoder.eval().requires_grad_(False))
    yield "self-taught", (taught[0], taught[1])


def maps_of(
    problem: Problem,
    name: str,
    encoders: tuple[nn.Module, nn.Module],
    ends: tuple[Tensor, Tensor],
    asked: argparse.Namespace,
) -> CrossModal:
    """Train the maps of CFM between some features, or find them trained."""
    path = asked.runs / f"cfm-{name}-{asked.seed}"
    first, second = (int(getattr(encoder, "width")) for encoder in encoders)  # noqa: B009
    maps = CrossModal(first, second)
    if not path.with_suffix(".json").is_file():
        save_weights(train_maps(problem, encoders, ends, budget_of(asked)), {"method": "cfm"}, path)
    load_weights(maps, path)
    return maps.eval().requires_grad_(False)


def line_of(row: Mapping[str, Any]) -> str:
    """Write a row for a person."""
    few, more = (percent(row["fpr_at_tpr"][share]["value"]) for share in ("0.01", "0.05"))
    areas = ", ".join(in_words(row[name]) for name in ("aupr", "auroc", "matched_flux_auroc"))
    return f"{row['score']:25s} {row['against']:14s} | {few:>7s} {more:>7s} | {areas}"


if __name__ == "__main__":
    main()
