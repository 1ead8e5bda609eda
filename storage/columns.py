"""What the columns of Parquet schemas are made of: fields with unit, UCD and description, and those for bands."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from surveybridge.storage.errors import StorageError
from surveybridge.storage.problems import EndpointTable, ProblemTable, band_columns, endpoint
from surveybridge.storage.units import njy_per_unit

F32, F64, I32, I64, TEXT = pa.float32(), pa.float64(), pa.int32(), pa.int64(), pa.string()


def column_of(
    name: str, kind: pa.DataType, description: str, unit: str = "", ucd: str = "", shape: Sequence[int] = ()
) -> pa.Field:
    """Make a column whose metadata say what it holds: unit (VOUnit), UCD1+, and the shape of a flattened array."""
    metadata = {"description": description, "unit": unit, "ucd": ucd, "shape": ",".join(map(str, shape))}
    return pa.field(name, kind, metadata={key: value for key, value in metadata.items() if value})


def ucd_of(unit: str, *more: str) -> str:
    """UCD of values in a unit: a flux density, or just a value."""
    return ";".join(["phot.flux.density" if njy_per_unit(unit) else "stat.value", *more])


def bands_of(problem: ProblemTable) -> list[tuple[str, str, EndpointTable]]:
    """For each band of both endpoints: what columns are called after it, what it is called in words, its endpoint."""
    return [
        (column, band if column == band else f"{band} of {endpoint(problem, name)['title']}", endpoint(problem, name))
        for (name, band), column in band_columns(problem).items()
    ]


def catalog_end(problem: ProblemTable) -> EndpointTable:
    """The endpoint with the objects; StorageError where there is none."""
    if problem["catalog"] is None:
        raise StorageError(
            f"problem {problem['name']} makes maps only: it has no catalog; name the endpoint with the objects"
        )
    return endpoint(problem, problem["catalog"])
