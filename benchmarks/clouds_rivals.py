"""How well closed forms and networks tell densities and fields of clouds, like those of the training and others.

    python -m benchmarks.clouds_rivals --train clouds/id.zarr --suites id=clouds/id.zarr gravity=clouds/gravity.zarr
        [--wanted density] [--rivals 3PLF MDR U-Net cDDPM DSB] [--training 4000] [--runs runs/rivals]
        [--checkpoints DSB=runs/clouds/clouds] [--samples 8] [--limit N] [--out benchmarks/results/clouds-rivals.json]

Closed forms are fitted to the training pairs. Networks are trained on them, all alike but for what `TRAINED` says, so
that the same number of steps costs the same, in `--runs`, where they stay: run again, they go on, or are not trained
again. DSB is Astro-DSB with both its switches, the rows below it are its ablation, and `edm` is the objective of this
house on the same bridge; any of them with a quarter of the steps is NAME-quarter. A suite that holds pairs back is
judged on those. The table has 95% intervals from drawing whole simulations anew; with few of them these are too narrow.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from surveybridge.__main__ import main as surveybridge
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.power_laws import PowerLaws
from surveybridge.bridge_core.settings import Sampling
from surveybridge.jobs.evaluating.rivals.closed_forms import PolarisationRival, PowerLawRival, WidthRival
from surveybridge.jobs.evaluating.rivals.maps import Rival
from surveybridge.jobs.evaluating.rivals.table import Suite, judge, lines_of
from surveybridge.jobs.evaluating.rivals.trained import TrainedRival
from surveybridge.jobs.evaluating.summary import in_words, percent
from surveybridge.jobs.translating.request import read_model
from surveybridge.storage.pair_maps import read_maps
from surveybridge.storage.pair_store import held_back_of, open_store

WANTED = {
    "density": (("column",), ("3PLF", "MDR", "U-Net", "cDDPM", "DSB")),
    "field": (("column", "psi", "sigma_v"), ("DCF", "U-Net", "cDDPM", "DSB")),
    "field_total": (("column", "psi", "sigma_v"), ("DCF",)),
}
"""Observed maps and rivals of what may be wanted."""
BRIDGE = ("--bridge", "schrodinger", "--objective", "i2sb")
NOISE = ("--end-noise", "0.1")
TRAINED: dict[str, tuple[str, ...]] = {
    "U-Net": ("--bridge", "regression", "--objective", "grad"),
    "cDDPM": ("--bridge", "diffusion", "--objective", "eps"),
    "DSB": (*BRIDGE, *NOISE),
    "DSB-without-M0": (*BRIDGE, *NOISE, "--no-broadcast"),
    "DSB-without-M1": BRIDGE,
    "DSB-without-M2": (*BRIDGE, *NOISE, "--no-clean-input"),
    "DSB-without-M1-M2": (*BRIDGE, "--no-clean-input"),
    "edm": ("--bridge", "schrodinger", "--objective", "edm"),
}
"""What is trained, and how it differs from the others."""
QUARTER = "-quarter"
"""After the name of one of them: with a quarter of the steps."""
RIVALS = ["3PLF", "MDR", "DCF", *TRAINED, *(name + QUARTER for name in TRAINED)]
DDIM = 50
"""Steps of the conditional diffusion's sampler, as published."""


def main() -> None:
    """Train what is to be trained, judge all, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="pair store whose training pairs are fitted")
    parser.add_argument("--suites", nargs="+", required=True, metavar="NAME=STORE")
    parser.add_argument("--wanted", default="density", choices=list(WANTED))
    parser.add_argument("--observed", action="store_true", help="the maps through a beam, with noise")
    parser.add_argument("--rivals", nargs="+", choices=RIVALS)
    parser.add_argument("--checkpoints", nargs="*", default=[], metavar="NAME=CHECKPOINT", help="to be judged as well")
    parser.add_argument(
        "--problem", help="problem to train on (default: that of the store for densities, else shipped)"
    )
    parser.add_argument("--training", type=int, default=4000, metavar="STEPS", help="steps of training each")
    parser.add_argument("--batch-size", type=int, default=32, help="pairs a step")
    parser.add_argument("--rescale", type=float, default=0.0, help="as `train --rescale`, for all that is trained")
    parser.add_argument("--base", type=int, default=32, help="channels of the first stage of the networks")
    parser.add_argument("--runs", default="runs/rivals")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8, help="network evaluations of a sample of a bridge")
    parser.add_argument("--limit", type=int, help="pairs of each suite")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plain, usual = WANTED[arguments.wanted]
    arguments.rivals = arguments.rivals or list(usual)
    names = tuple(f"{name}_observed" if arguments.observed else name for name in plain)
    if arguments.problem is None and names != ("column",):  # stores state columns and densities as their endpoints
        arguments.problem = f"clouds-{arguments.wanted}{'-observed' * arguments.observed}"
    suites = [Suite.of(name, url, arguments.limit) for name, url in map(named, arguments.suites)]
    rows = []
    for rival in rivals(arguments, names):
        rows += [judge(rival, suite, names, arguments.wanted, arguments.samples) for suite in suites]
        for row in rows[-len(suites) :]:
            print(json.dumps({k: row.get(k) for k in ("suite", "rival", "pixels", "beyond_25_degrees")}), flush=True)
    order = [suite.name for suite in suites]
    print("\n".join(lines_of(sorted(rows, key=lambda row: order.index(row["suite"])))))
    print("\n".join(lines_by_suite(rows, order)))
    if arguments.out:
        asked = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"asked": asked, "rows": rows}, indent=1) + "\n")


def rivals(arguments: argparse.Namespace, names: tuple[str, ...]) -> Iterator[Rival]:
    """Make the rivals one after the other."""
    store = open_store(arguments.train, None)
    if {"3PLF", "DCF"} & set(arguments.rivals):
        training = read_maps(arguments.train, [names[0], "density"], 0, store.count - held_back_of(store))
        column, density = (torch.from_numpy(maps) for maps in training.values())
        laws = PowerLaws.fit(column, density)
    how = Sampling(samples=max(2, arguments.samples), steps=arguments.steps)
    for rival in arguments.rivals:
        if rival == "3PLF":
            yield PowerLawRival(laws, names[0])
        elif rival == "MDR":
            yield WidthRival(names[0])
        elif rival == "DCF":
            yield PolarisationRival(laws, names, in_space=arguments.wanted == "field_total")
        else:
            model = model_of(trained(rival, arguments), arguments.wanted)
            yield TrainedRival(rival, model, how, uniform=DDIM if rival.startswith("cDDPM") else None)
    for name, checkpoint in map(named, arguments.checkpoints):
        yield TrainedRival(name, model_of(checkpoint, arguments.wanted), how)


def model_of(checkpoint: str, wanted: str) -> Model:
    """Read a checkpoint, which must predict what is wanted."""
    model = read_model(checkpoint).to("cpu", "bfloat16")
    predicted = [direction.wanted.name for direction in model.card.problem.directions]
    if predicted != [wanted]:
        raise SystemExit(
            f"{checkpoint} predicts {', '.join(predicted)}, and {wanted} is wanted; name another checkpoint"
        )
    return model


def lines_by_suite(rows: Sequence[Mapping[str, Any]], suites: Sequence[str]) -> list[str]:
    """Tables in Markdown with a column for each suite: scatter of one sample and of the median, CRPS and coverage."""
    lines = []
    for title, cell in (
        ("std of r, one sample", lambda row: in_words(row["estimates"]["single"]["scatter"])),
        ("std of r, median", lambda row: in_words(row["estimates"]["median"]["scatter"])),
        ("CRPS (dex)", lambda row: in_words(row["crps"])),
        ("68% holds", lambda row: percent(row["coverage"]["0.68"]["value"])),
    ):
        lines += ["", f"| {title} | " + " | ".join(suites) + " |", "|" + "---|" * (1 + len(suites))]
        for rival in dict.fromkeys(row["rival"] for row in rows):
            cells = {row["suite"]: cell(row) for row in rows if row["rival"] == rival}
            lines.append(f"| {rival} | " + " | ".join(cells[suite] for suite in suites) + " |")
    return lines


def named(text: str) -> tuple[str, str]:
    """Name and place of NAME=PLACE."""
    name, equals, place = text.partition("=")
    if not (name and equals and place):
        raise SystemExit(f"{text!r}: give NAME=PLACE, such as id=clouds/id.zarr")
    return name, place


def trained(rival: str, arguments: argparse.Namespace) -> str:
    """Train a rival, or find it trained; returns its checkpoint."""
    out, kind = f"{arguments.runs}/{rival}", rival.removesuffix(QUARTER)
    steps = arguments.training if kind == rival else arguments.training // 4
    command = ["train", "--pairs", arguments.train, "--out", out, "--name", rival, *TRAINED[kind]]
    command += ["--steps", str(steps), "--base", str(arguments.base), "--batch-size", str(arguments.batch_size)]
    command += ["--rescale", str(arguments.rescale)] if arguments.rescale else []
    command += ["--problem", arguments.problem] if arguments.problem else []
    if (code := surveybridge(command)) != 0:
        raise SystemExit(code)
    return f"{out}/{rival}"


if __name__ == "__main__":
    main()
