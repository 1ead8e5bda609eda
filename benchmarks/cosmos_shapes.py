"""Sizes, indices and axis ratios of COSMOS galaxies, real and as `jobs.simulating.galaxies` draws them.

    python -m benchmarks.cosmos_shapes --cosmos ../shared/data/cosmos

Reads GalSim's samples of Sersic fits (Leauthaud et al. 2007): 100 galaxies with F814W magnitudes, from which the sizes
along magnitude and the share of early types (index above 2.2) follow, and 277 without, of index and axis ratio. Prints
each number of the real galaxies beside that of drawn ones of the same magnitudes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from surveybridge.jobs.simulating.galaxies import cosmos_like

Values = NDArray[np.float64]
PIXEL = 0.03
"""arcsec, in which the radii of the fits are."""
EARLY = 2.2


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cosmos", type=Path, required=True)
    arguments = parser.parse_args()
    magnitude, size, index, q = read(arguments.cosmos)
    rng = np.random.default_rng(1)
    many = np.tile(magnitude, 200)
    drawn = cosmos_like(rng, many, np.zeros(len(many)), np.zeros(len(many)))
    both = {"real": (magnitude, size, index, q), "drawn": (many, drawn["re"], drawn["sersic_n"], drawn["q"])}
    print(f"{'':28s}" + "".join(f"{name:>8s}" for name in both))
    tables = [describe(*columns) for columns in both.values()]
    for name in tables[0]:
        print(f"{name:28s}" + "".join(f"{table[name]:8.2f}" for table in tables))
    sample = np.loadtxt(arguments.cosmos / "cosmos_sersics_sample_N300_cleaned.asc")
    print(f"{len(sample)} galaxies without magnitudes: early {np.mean(sample[:, 1] > EARLY):.2f}, ", end="")
    print(f"ln n of late ones {np.log(sample[sample[:, 1] <= EARLY, 1]).mean():.2f}, ", end="")
    print(f"median axis ratio {np.median((1 - sample[:, 3]) / (1 + sample[:, 3])):.2f}")


def read(folder: Path) -> tuple[Values, Values, Values, Values]:
    """Magnitudes, half-light radii in arcsec (geometric mean of the axes), Sersic indices and axis ratios, [N]."""
    with fits.open(folder / "real_galaxy_catalog_23.5_example_fits.fits") as file:
        table: Any = file[1].data
        magnitude, of_fit = np.array(table["mag_auto"], float), np.array(table["sersicfit"], float)
    return magnitude, of_fit[:, 1] * PIXEL * np.sqrt(of_fit[:, 3]), np.clip(of_fit[:, 2], 0.3, 6), of_fit[:, 3]


def describe(magnitude: Values, size: Values, index: Values, q: Values) -> dict[str, float]:
    """Numbers of a sample by name."""
    found = {"early types": float(np.mean(index > EARLY))}
    for name, some in (("late", index <= EARLY), ("early", index > EARLY)):
        slope, at_22 = np.polyfit(magnitude[some] - 22, np.log(size[some]), 1)
        scatter = np.std(np.log(size[some]) - at_22 - slope * (magnitude[some] - 22))
        found |= {f"{name}: ln size at 22": at_22, f"{name}: its slope": slope, f"{name}: its scatter": scatter}
        found |= {f"{name}: ln n": np.log(index[some]).mean(), f"{name}: its scatter ": np.log(index[some]).std()}
        found |= {f"{name}: axis ratio": q[some].mean(), f"{name}: its spread": q[some].std()}
    return found


if __name__ == "__main__":
    main()
