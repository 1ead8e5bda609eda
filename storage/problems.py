"""Problems: the two ends that a bridge joins, read from TOML files of ten lines, checked, and completed.

A problem is a table of plain values, the form in which files, run.json and checkpoints hold it. Its two endpoints are
observations or physical fields: planes (bands) on one pixel grid. Units are written as in FITS. The bands of an
endpoint have one unit, but for one that is only observed, whose bands may be several quantities.
"""

from __future__ import annotations

import copy
import functools
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from surveybridge.storage.errors import StorageError
from surveybridge.storage.problem_parts import (
    check_keys,
    is_number,
    named_bands,
    quantities,
    scalings,
    shown_colours,
    twice_in,
)

MIXED = "mixed"
"""What an endpoint of several quantities states as its stretch: each band has its own."""

DEFAULT = "lsst-euclid"

SHIPPED = Path(__file__).parent / "problems"

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_TITLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_RESERVED = ("mean", "error", "residual", "id", "simulation")
"""Names that thumbnails, pictures and pair stores use for something else."""

_OBJECTIVE = ("sigma_data", "log_sigma_mean", "log_sigma_std")


class EndpointTable(TypedDict):
    """One end of a bridge, in plain values."""

    name: str
    bands: list[str]
    pixel_scale: float
    """Pixel scale of its own images, arcsec; 0 for a grid that is not on the sky."""
    unit: str
    extensive: bool
    """Whether values add up over pixels, as fluxes do; densities and angles do not."""
    stretch: str
    title: str
    rgb: list[str] | None
    """Bands that are shown as red, green and blue; None for grey."""
    units: NotRequired[dict[str, str]]
    """By band, where they are several quantities; `unit` then is empty, and `stretch` is `MIXED`."""
    stretches: NotRequired[dict[str, str]]
    """By band, where `units` is."""
    scaling: NotRequired[dict[str, float]]
    """Power of a common factor by band, where the values of both ends can be multiplied and a pair stays one."""


class ObjectiveTable(TypedDict):
    """Numbers of the training objective, in network units."""

    sigma_data: float
    log_sigma_mean: float
    log_sigma_std: float


class ProblemTable(TypedDict):
    """A problem, in plain values."""

    name: str
    catalog: str | None
    """The endpoint on whose first band objects are found; None to make maps only."""
    wanted: str | None
    """The only endpoint that is translated to; None for both ways."""
    endpoints: list[EndpointTable]
    objective: ObjectiveTable | None
    """Numbers of the objective; None to measure them on the training data."""


def read_problem(name_or_path: str | os.PathLike[str]) -> ProblemTable:
    """Read a problem, with every key filled in.

    Parameters
    ----------
    name_or_path : str
        Name of a shipped problem, or a TOML file.

    Raises
    ------
    StorageError
        If there is no such file, or it does not hold a problem; one line that says why.
    """
    where = os.fspath(name_or_path)
    file = SHIPPED / f"{where}.toml" if where in shipped_problems() else Path(where)
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise StorageError(
            f"problem {where}: {error.strerror or error}; give a TOML file, or one of {', '.join(shipped_problems())}"
        ) from error
    except ValueError as error:  # not TOML, or not text
        raise StorageError(f"problem {where}: not a TOML file ({' '.join(str(error).split())}); correct it") from error
    return complete_problem({"name": file.stem, **table}, f"problem {where}")


def shipped_problems() -> list[str]:
    """Return the names of the problems that come with the package."""
    return sorted(file.stem for file in SHIPPED.glob("*.toml"))


def default_problem() -> ProblemTable:
    """Return the problem of everything that does not state one: LSST and Euclid."""
    return copy.deepcopy(_default())


def stated_problem(document: Mapping[str, Any]) -> ProblemTable:
    """Return the problem that run.json or the like states; without `problem` that is the default, which none states."""
    return document.get("problem") or default_problem()


@functools.cache
def _default() -> ProblemTable:
    return read_problem(DEFAULT)


def is_default(problem: Mapping[str, Any]) -> bool:
    """Return whether a problem has the ends of the default one, whatever their titles and pixel scales."""

    def ends(table: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        return [(end["name"], list(end["bands"]), end["unit"]) for end in table["endpoints"]]

    return ends(problem) == ends(_default()) and problem["catalog"] == _default()["catalog"]


def described(problem: Mapping[str, Any]) -> ProblemTable:
    """Complete the problem of a checkpoint; that of the default ends is the default, whose titles older cards lack."""
    return default_problem() if is_default(problem) else complete_problem(problem, f"problem {problem['name']}")


def complete_problem(table: Mapping[str, Any], where: str) -> ProblemTable:
    """Check a problem and fill in the keys that it leaves out.

    Parameters
    ----------
    table : mapping
        As a TOML file has it.
    where : str
        What to call it in messages.

    Raises
    ------
    StorageError
        If it is no problem; one line that says why.
    """
    check_keys(table, ProblemTable.__annotations__, where)
    name = table.get("name")
    if not isinstance(name, str) or not _TITLE.fullmatch(name):
        raise StorageError(f"{where}: name {name!r}; give letters, digits and any of . _ + -")
    ends = table.get("endpoints")
    if not isinstance(ends, list | tuple) or len(ends) != 2 or not all(isinstance(end, Mapping) for end in ends):
        count = len(ends) if isinstance(ends, list | tuple) else 0
        raise StorageError(f"{where}: {count} endpoints, but a bridge has 2; give two tables [[endpoints]]")
    first, second = (_endpoint(end, number, where) for number, end in enumerate(ends))
    if first["name"].lower() == second["name"].lower():
        raise StorageError(f"{where}: two endpoints have the name {second['name']}; give each its own")
    names = [first["name"], second["name"]]
    for key in ("catalog", "wanted"):
        if table.get(key) is not None and table[key] not in names:
            raise StorageError(
                f"{where}: {key} {table[key]!r} is not an endpoint; give {' or '.join(names)}, or leave it out"
            )
    problem = ProblemTable(
        name=name,
        catalog=table.get("catalog"),
        wanted=table.get("wanted"),
        endpoints=[first, second],
        objective=_objective(table.get("objective"), where),
    )
    for end, opposite in ((first, second), (second, first)):
        if is_mixed(end) and problem["wanted"] != opposite["name"]:
            raise StorageError(
                f"{where}: endpoint {end['name']} has bands of several quantities, which are observed and never "
                f'predicted; give wanted = "{opposite["name"]}", or one unit and one stretch'
            )
    columns = list(band_columns(problem).values())
    twice = twice_in(columns)
    if twice:
        raise StorageError(f"{where}: two bands would both be the column flux_{twice}; rename one of them")
    return problem


def endpoint(problem: ProblemTable, name: str) -> EndpointTable:
    """Return the endpoint of a name; StorageError if there is none."""
    for end in problem["endpoints"]:
        if end["name"] == name:
            return end
    raise StorageError(f"problem {problem['name']} has no endpoint {name!r}; it has {' and '.join(end_names(problem))}")


def is_mixed(end: EndpointTable) -> bool:
    """Return whether the bands of an endpoint are several quantities."""
    return "units" in end


def unit_of(end: EndpointTable, band: str) -> str:
    """Return the unit of a band of an endpoint."""
    return end["units"][band] if "units" in end else end["unit"]


def image_unit(end: EndpointTable) -> str:
    """Return the unit of an image of an endpoint; where its bands are several quantities, those of all, by comma."""
    return ",".join(end["units"][band] for band in end["bands"]) if "units" in end else end["unit"]


def quantity(end: EndpointTable, band: str) -> EndpointTable:
    """Return an endpoint of several quantities as one of the quantity of a band; any other stays as it is."""
    if "units" not in end or "stretches" not in end:
        return end
    return EndpointTable(
        name=end["name"],
        bands=end["bands"],
        pixel_scale=end["pixel_scale"],
        unit=end["units"][band],
        extensive=end["extensive"],
        stretch=end["stretches"][band],
        title=end["title"],
        rgb=end["rgb"],
    )


def other(problem: ProblemTable, name: str) -> EndpointTable:
    """Return the endpoint opposite to the one of a name."""
    first, second = problem["endpoints"]
    return second if endpoint(problem, name) is first else first


def end_names(problem: ProblemTable) -> tuple[str, str]:
    """Return the names of both endpoints, in order."""
    first, second = problem["endpoints"]
    return first["name"], second["name"]


def shown_ends(problem: ProblemTable) -> tuple[EndpointTable, EndpointTable]:
    """Return both endpoints, the one with the catalog second; in the problem's order if it makes maps only."""
    first, second = problem["endpoints"]
    return (second, first) if problem["catalog"] == first["name"] else (first, second)


def observed_and_wanted(problem: ProblemTable, direction: str) -> tuple[EndpointTable, EndpointTable]:
    """Return the endpoints of a direction such as "lsst->euclid"; StorageError if the problem does not have it."""
    first, second = problem["endpoints"]
    for observed, wanted in ((first, second), (second, first)):
        if direction == f"{observed['name']}->{wanted['name']}":
            return observed, wanted
    names = [f"{first['name']}->{second['name']}", f"{second['name']}->{first['name']}"]
    raise StorageError(f"direction {direction!r} is not one of problem {problem['name']}: {' or '.join(names)}")


def wanted_end(run_json: Mapping[str, Any]) -> EndpointTable:
    """Return the endpoint that a run translates to."""
    return observed_and_wanted(stated_problem(run_json), str(run_json.get("direction")))[1]


def main_plane(end: EndpointTable) -> int:
    """Return the index of the band that shows an endpoint in grey: the red one if it has colours, else the first."""
    return end["bands"].index(end["rgb"][0]) if end["rgb"] else 0


def rgb_planes(end: EndpointTable) -> list[int] | None:
    """Return the indices of the bands that are shown as red, green and blue; None for grey."""
    return [end["bands"].index(band) for band in end["rgb"]] if end["rgb"] else None


def band_columns(problem: ProblemTable) -> dict[tuple[str, str], str]:
    """Return the column suffix of each (endpoint, band): its name, or `<endpoint>_<band>` if both endpoints have it.

    Names count as equal whatever their case, since SQL does not tell `flux_y` from `flux_Y`.
    """
    first, second = problem["endpoints"]
    shared = {band.lower() for band in first["bands"]} & {band.lower() for band in second["bands"]}
    return {
        (end["name"], band): f"{end['name']}_{band}" if band.lower() in shared else band
        for end in (first, second)
        for band in end["bands"]
    }


def bands_title(end: EndpointTable) -> str:
    """Return title and bands of an endpoint for a heading: `LSST gri`, `HST F606W,F814W`."""
    short = all(len(band) == 1 for band in end["bands"])
    return f"{end['title']} {('' if short else ',').join(end['bands'])}"


# -- the parts of a problem --


def _endpoint(table: Mapping[str, Any], number: int, where: str) -> EndpointTable:
    name = table.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise StorageError(f"{where}: endpoint {number + 1} has the name {name!r}; give letters, digits and _")
    if name.lower() in _RESERVED:
        raise StorageError(f"{where}: an endpoint cannot be called {name}, which has another meaning; rename it")
    what = f"{where}: endpoint {name}"
    check_keys(table, EndpointTable.__annotations__, what)
    bands = named_bands(table.get("bands"), what)
    if "pixel_scale" not in table:
        raise StorageError(f"{what} has no pixel_scale; give arcsec, or 0 for a grid without a sky")
    scale = table["pixel_scale"]
    if not is_number(scale) or scale < 0:
        raise StorageError(f"{what}: pixel_scale {scale!r}; give arcsec above 0, or 0 for a grid without a sky")
    units, stretches = quantities(table, bands, what)
    mixed = len(set(zip(units, stretches, strict=True))) > 1
    unit, stretch = ("", MIXED) if mixed else (units[0], stretches[0])
    extensive = table.get("extensive", stretch in ("asinh", "linear"))
    if not isinstance(extensive, bool):
        raise StorageError(f"{what}: extensive {extensive!r}; give true or false")
    if extensive and "axial" in stretches:
        raise StorageError(f"{what}: extensive = true, but angles do not add up over pixels; give false")
    title = table.get("title", name)
    if not isinstance(title, str) or not title.strip() or not title.isprintable():
        raise StorageError(f"{what}: title {title!r}; give a word for headings")
    found = EndpointTable(
        name=name,
        bands=bands,
        pixel_scale=float(scale),
        unit=unit,
        extensive=extensive,
        stretch=stretch,
        title=title,
        rgb=shown_colours(table.get("rgb"), bands, what),
    )
    if mixed:
        found["units"] = dict(zip(bands, units, strict=True))
        found["stretches"] = dict(zip(bands, stretches, strict=True))
    if (powers := scalings(table.get("scaling"), dict(zip(bands, stretches, strict=True)), what)) is not None:
        found["scaling"] = powers
    return found


def _objective(table: Any, where: str) -> ObjectiveTable | None:
    if table is None:
        return None
    what = f"{where}: objective"
    if not isinstance(table, Mapping):
        raise StorageError(f"{what} {table!r}; give a table of {', '.join(_OBJECTIVE)}")
    check_keys(table, _OBJECTIVE, what)
    for key in _OBJECTIVE:
        if not is_number(table.get(key)) or (key != "log_sigma_mean" and table[key] <= 0):
            kind = "a number" if key == "log_sigma_mean" else "a number above 0"
            raise StorageError(
                f"{what}: {key} {table.get(key)!r}; give {kind}, or leave out the objective, so that it is measured"
            )
    return ObjectiveTable(
        sigma_data=float(table["sigma_data"]),
        log_sigma_mean=float(table["log_sigma_mean"]),
        log_sigma_std=float(table["log_sigma_std"]),
    )
