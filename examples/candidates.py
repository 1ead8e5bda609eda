# %% [markdown]
# # Look at the candidates of a run
#
# Cells like these run in Jupyter (through jupytext), VS Code, Spyder, or all at once: `python
# examples/candidates.py runs/first`. The run is that of
# the tutorial; any other will do, a path or an s3:// URL.

# %%
from __future__ import annotations

import sys

import astropy.units as u
import matplotlib.pyplot as plt
import numpy as np

from surveybridge.jobs.drawing.rendering import candidate_pictures, views
from surveybridge.storage.astrotables import query_table
from surveybridge.storage.query import query
from surveybridge.storage.runs import RunFolder

RUN = sys.argv[1] if len(sys.argv) > 1 else "runs/first"

# %% [markdown]
# ## The catalog
#
# A `QTable` has units, so magnitudes and colours are one line each. `rank` 1 is the object that is hardest to
# reconcile.

# %%
catalog = query_table(RUN)
for band in ("g", "r", "i", "VIS"):
    flux = np.maximum(catalog[f"flux_{band}"].to_value(u.nJy), 1e-3)
    catalog[f"mag_{band}"] = (31.4 - 2.5 * np.log10(flux)) * u.mag
print(catalog["rank", "object_id", "ra", "dec", "score", "false_alarm", "mag_VIS"][:5])

# %% [markdown]
# ## Are the best ones just bright and red?
#
# The score compares objects of like flux and colour, so high scores should lie all over this plot, not in one corner.

# %%
figure, axis = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
detected = (catalog["snr_g"] > 3) & (catalog["snr_i"] > 3)
some = catalog[detected]
points = axis.scatter(some["mag_VIS"], some["mag_g"] - some["mag_i"], c=some["score"], s=14, cmap="viridis")
best = some[:6]
axis.scatter(best["mag_VIS"], best["mag_g"] - best["mag_i"], s=90, facecolors="none", edgecolors="crimson")
axis.set(
    xlabel="VIS (AB mag)", ylabel="g - i (AB mag)", title=f"{len(some)} of {len(catalog)} objects, best six circled"
)
axis.invert_xaxis()
figure.colorbar(points, label="lens score")
figure.savefig("colours.png", dpi=120)

# %% [markdown]
# ## Pictures
#
# Thumbnails are read for the rows that are asked for. The last three pictures of a row are made by the model,
# wholly or in part.

# %%
rows = query(RUN, top=4).to_pylist()
problem = RunFolder.open(RUN).problem
headings = views(problem)
figure, axes = plt.subplots(len(rows), len(headings), figsize=(9, 2.0 * len(rows)), layout="constrained", squeeze=False)
for line, row in zip(axes, rows, strict=True):
    for axis, (name, picture) in zip(line, candidate_pictures(row, problem).items(), strict=True):
        axis.imshow(picture)
        axis.set(xticks=[], yticks=[])
        if row["rank"] == 1:
            axis.set_title(headings[name], fontsize=8)
    line[0].set_ylabel(f"{row['rank']}: {row['score']:.1f}")
figure.savefig("pictures.png", dpi=120)

# %% [markdown]
# ## The map around the best
#
# Mean and standard deviation of what the other survey would see, in nJy per pixel. A pixel's error is not that of
# its neighbour: for the error of a flux draw
# samples (`surveybridge export --cutout RA,DEC,ARCSEC --samples K`), do not add up pixels.

# %%
x, y = int(rows[0]["x"]), int(rows[0]["y"])
around = RunFolder.open(RUN).read_mosaic(region=(y - 40, y + 40, x - 40, x + 40))
figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
for axis, plane, label in zip(axes, (around.mean[-1], around.std[-1]), ("mean", "standard deviation"), strict=True):
    shown = axis.imshow(plane, origin="lower", cmap="gray", norm="asinh")
    figure.colorbar(shown, label=f"{label}, nJy per pixel")
    axis.set(xticks=[], yticks=[])
figure.savefig("map.png", dpi=120)
