"""A whole tiny run, hashed: `python -m tests.gate.run FOLDER [--record]` prints a digest for each thing that it made.

Simulate, ingest, train, translate both ways, evaluate, publish, export and query, through the command line alone.
Times, the folder and what follows from its name are left out; everything else counts, to the bit. Rebuilding the house
must not change a digest; a change that is meant to change results records them anew, on each processor, and says why.

The floating-point libraries are held to the instructions that every x86-64 processor has since 2011, because they add
in another order on other processors. What still differs, the weights that are trained and what is measured of images,
is recorded by processor.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
RECORDED = Path(__file__).with_name("digests.json")
"""By processor: the digests of the first one, and those of each other that differ from them."""

PLAIN_PROCESSOR = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "AVX",
    "MKL_CBWR": "COMPATIBLE",
    "OPENBLAS_CORETYPE": "Nehalem",
    "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
}
"""What keeps the libraries from choosing their instructions by the processor."""

WALL_CLOCK = re.compile(r"^(seconds.*|host|finished_at|time|started|DATE|CHECKSUM|DATASUM|code_version|CREATOR.*)$")
"""Columns, keys and cards that differ between equal runs, or say which version wrote them."""

CHECKPOINT = "mosaic-v2"
"""The default one when the digests were recorded, which jobs here take without being told."""

STAND_IN = "/recorded1"
"""Stands for the folder in FITS cards, which are padded, and continued, by the length of their value."""

NEW_CARD = ("trained/bridge.json", "own/run.json")
"""Files that carry the card of the checkpoint trained here, or its hash; the form of a card may change."""
SKIPPED = ("lease.json", "loss.png", "loss.csv", "snapshot.json", "_metadata")
"""Names of files that hold moments, or sums over files whose ids follow from the folder's name."""


def processor() -> str:
    """Name and family of this machine's processor; of family 6, which is most of Intel's, the model too."""
    pattern = re.compile(r"^(model name|cpu family|model)\s*: (.*)$", re.MULTILINE)
    lines = dict(pattern.findall(Path("/proc/cpuinfo").read_text()))
    name = f"{lines.get('model name')}, family {lines.get('cpu family')}"
    return f"{name}, model {lines.get('model')}" if lines.get("cpu family") == "6" else name


def recorded(processor: str) -> dict[str, str] | None:
    """Digests that were recorded on a processor; None where that was never done."""
    document: dict[str, dict[str, str]] = json.loads(RECORDED.read_text())
    first = next(iter(document.values()))
    return first | document[processor] if processor in document else None


def record(made: dict[str, str], processor: str) -> None:
    """Record the digests of a processor, beside those of the others."""
    document: dict[str, dict[str, str]] = json.loads(RECORDED.read_text())
    name, first = next(iter(document.items()))
    document[processor] = made if processor == name else {k: v for k, v in made.items() if first.get(k) != v}
    RECORDED.write_text(json.dumps({k: dict(sorted(v.items())) for k, v in document.items()}, indent=1) + "\n")


def digests(folder: Path) -> dict[str, str]:
    """Make everything below an empty folder and return its digests by name."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment = os.environ | PLAIN_PROCESSOR
    done = subprocess.run(
        [sys.executable, "-m", "tests.gate.run", "--make", str(folder)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the run of the gate failed:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
    found: dict[str, str] = json.loads((folder / "digests.json").read_text())
    return found


@contextmanager
def first_layer_as_recorded() -> Iterator[None]:
    """Let the first layer add as where the digests were recorded, which was with oneDNN's kernels for SSE4.1.

    Those for AVX take a third of the time and give every other layer the same bits. For its 36 channels oneDNN has no
    convolution with SSE4.1, and multiplies matrices instead: the first half of the columns, then the second.
    """
    from torch import Tensor, float32, from_numpy, is_autocast_enabled, is_inference_mode_enabled, nn
    from torch.nn.functional import unfold

    usual = nn.Conv2d._conv_forward

    def convolve(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        plain = x.dtype == float32 and is_inference_mode_enabled() and not is_autocast_enabled("cpu")
        if layer.in_channels != 36 or bias is None or not plain:
            return usual(layer, x, weight, bias)
        columns, rows = unfold(x, 3, padding=1).numpy(), weight.flatten(1).numpy()
        half = rows.shape[1] // 2
        sums = rows[:, :half] @ columns[:, :half] + rows[:, half:] @ columns[:, half:]
        return from_numpy(sums + bias.numpy()[:, None]).unflatten(2, x.shape[-2:])

    nn.Conv2d._conv_forward = convolve  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Conv2d._conv_forward = usual  # type: ignore[method-assign]


def make(folder: Path) -> dict[str, str]:
    """Run every job in this process, whose environment is plain, and hash what each has made."""
    from surveybridge.__main__ import main
    from tests.jobs.training_runs import quick_energies, without_ray
    from tests.tiny import write_pairs

    def job(*arguments: str) -> None:
        with first_layer_as_recorded(), patch("surveybridge.bridge_core.checkpoint.DEFAULT_CHECKPOINT", CHECKPOINT):
            code = main(arguments)
        if code:
            raise RuntimeError(f"surveybridge {' '.join(arguments)} ended with exit code {code}")

    os.chdir(folder)
    job("simulate", "--out", "sky", "--size", "320", "--lenses", "1", "--seed", "5")
    lsst = [f"sky/lsst_{band}.fits" for band in "gri"]
    images = ["--euclid", "sky/euclid_vis.fits", "--lsst", *lsst]
    job("ingest", *images, "--store", "tiles", "--tile-size", "192", "--halo", "32")
    pairs = write_pairs(folder / "pairs.zarr", 24)
    with without_ray(), quick_energies():  # loss.csv has no digest
        job(
            *("train", "--pairs", pairs, "--out", "trained", "--steps", "3", "--base", "8", "--batch-size", "8"),
            *("--shards", "2", "--validation", "4", "--report-steps", "2"),
        )
    fast = ["--samples", "2", "--steps", "2", "--score-samples", "2", "--score-steps", "2", "--executor", "serial"]
    there = ["translate", "--store", "tiles", "--precision", "float32", *fast]
    job(*there, "--run", "there", "--direction", "lsst->euclid")
    job(*there, "--run", "back", "--direction", "euclid->lsst", "--seed", "3")
    job("translate", "--store", "tiles", *fast, "--run", "own", "--checkpoint", "trained/bridge")
    job(
        *("evaluate", "--pairs", pairs, "--anomalies", pairs, "--limit", "6", "--samples", "2", "--steps", "2"),
        *("--score-samples", "2", "--score-steps", "2", "--precision", "float32", "--out", "evaluation"),
    )
    job("publish", "--run", "there", "--out", "catalog")
    job("export", "--run", "there", "--out", "field.fits", "--png")
    job("export", "--run", "back", "--out", "back.fits", "--png", "--lossless")
    sys.stdout.flush()
    listing = io.StringIO()
    stdout, sys.stdout = sys.stdout, listing
    try:
        job("query", "--run", "there", "--top", "5", "--format", "csv")
    finally:
        sys.stdout = stdout
    found = {"query/top.csv": _digest(_anonymous(listing.getvalue(), folder).encode())}
    for top in ("sky", "tiles", "trained", "there", "back", "own", "evaluation", "catalog", "field.fits", "back.fits"):
        for path in _files(folder / top):
            if (content := _content(path, folder)) is not None:
                found[_anonymous(str(path.relative_to(folder)), folder)] = content
    for path in sorted(folder.glob("*.png")):
        found[path.name] = _digest(path.read_bytes())
    return found


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    else:
        yield from sorted(file for file in path.rglob("*") if file.is_file() and "ray" not in file.parts)


def _content(path: Path, folder: Path) -> str | None:
    """Digest of what a file says, None for what says only when and where."""
    data = path.read_bytes()
    if path.name in SKIPPED or path.suffix == ".lock" or str(path.relative_to(folder)) in NEW_CARD:
        return None
    if path.suffix == ".parquet":
        return _parquet(data, folder, ("model_id",) if path.is_relative_to(folder / "own") else ())
    if path.suffix in (".json", ".properties"):
        text = data.decode()
        if path.suffix == ".json":
            text = json.dumps(_timeless(json.loads(text)), sort_keys=True)
        return _digest(_anonymous(text, folder).encode())
    if path.suffix == ".fits":
        return _fits(path, folder)
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        tensors = load_file(path)
        return _digest(*(part for name in sorted(tensors) for part in (name.encode(), tensors[name].tobytes())))
    return _digest(_anonymous(data.decode(), folder).encode()) if _is_text(data) else _digest(data)


def _parquet(data: bytes, folder: Path, left_out: tuple[str, ...]) -> str:
    """Schema with its metadata, and all columns but the wall clock's."""
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data))
    kept = table.select([name for name in table.column_names if not WALL_CLOCK.match(name) and name not in left_out])
    metadata = {key.decode(): value.decode("utf-8", "replace") for key, value in (table.schema.metadata or {}).items()}
    parts = [
        _anonymous(json.dumps(metadata, sort_keys=True), folder),
        _anonymous(str(kept.schema.remove_metadata()), folder),
    ]
    parts += [f"{field.name} {sorted((field.metadata or {}).items())}" for field in kept.schema]
    return _digest(*(part.encode() for part in parts), _anonymous(json.dumps(_rows(kept)), folder).encode())


def _rows(table: Any) -> list[Any]:
    """Columns as JSON has them; numbers by all their digits."""
    import numpy as np

    found: list[Any] = []
    for name in table.column_names:
        column = table[name].combine_chunks()
        if hasattr(column, "storage"):
            column = column.storage
        while hasattr(column, "flatten") and "list" in str(column.type):
            found.append(str(column.type))
            column = column.flatten()
        if "float" in str(column.type) or "double" in str(column.type):
            values = np.ascontiguousarray(column.to_numpy(zero_copy_only=False))
            found.append(hashlib.sha256(values.tobytes()).hexdigest())
        else:
            found.append([str(value) for value in column.to_pylist()])
    return found


def _fits(path: Path, folder: Path) -> str:
    """Cards and pixels of every HDU."""
    from astropy.io import fits

    parts = []
    with fits.open(path) as hdus:
        for hdu in hdus:
            cards = [_card(card, folder) for card in hdu.header.cards if not WALL_CLOCK.match(card.keyword)]
            parts.append(_anonymous("\n".join(cards), folder).encode())
            if hdu.data is not None:
                parts.append(hdu.data.tobytes())
    return _digest(*parts)


def _card(card: Any, folder: Path) -> str:
    """A card as it stands in the file, had the folder a name as long as where the digests were recorded."""
    if isinstance(card.value, str) and str(folder) in card.value:
        return str(type(card)(card.keyword, card.value.replace(str(folder), STAND_IN), card.comment)).replace(
            STAND_IN, "FOLDER"
        )
    return str(card)


def _timeless(document: Any) -> Any:
    """A JSON document without the keys of `WALL_CLOCK`."""
    if isinstance(document, Mapping):
        return {key: _timeless(value) for key, value in document.items() if not WALL_CLOCK.match(key)}
    return [_timeless(value) for value in document] if isinstance(document, list) else document


def _anonymous(text: str, folder: Path) -> str:
    """Text without the folder's name, the run ids that follow from it, and moments."""
    text = text.replace(str(folder), "FOLDER")
    for name in ("there", "back", "own"):
        run_json = folder / name / "run.json"
        if run_json.is_file():
            text = text.replace(json.loads(run_json.read_text())["run_id"], f"RUN-{name}")
    for snapshot in (folder / "catalog" / "snapshots").glob("*"):
        text = text.replace(snapshot.name, "SNAPSHOT")
    return re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|\+00:00| ?UTC)?", "MOMENT", text)


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:20]


if __name__ == "__main__":
    where = Path(sys.argv[-1] if "--make" in sys.argv else sys.argv[1]).resolve()
    if "--make" in sys.argv:
        (where / "digests.json").write_text(json.dumps(make(where), indent=1))
    else:
        made = digests(where)
        if "--record" in sys.argv:
            record(made, processor())
        print(json.dumps(made, indent=1, sort_keys=True))
