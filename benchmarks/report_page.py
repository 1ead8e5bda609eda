"""Draws the picture of a report in docs/report.md: a part of the page, as Chromium shows it.

    python -m benchmarks.report_page --report report/report.html [--out docs/report.png] [--chromium /usr/bin/chromium]

The part runs from the scores to the end of the first candidate.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH = 860
"""Of the window, pixels."""


def main() -> None:
    """Open the page, photograph the part, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/report.png"))
    parser.add_argument("--chromium", type=Path, default=Path("/usr/bin/chromium"))
    args = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium)
        page = browser.new_page(viewport={"width": WIDTH, "height": 800}, color_scheme="light")
        page.goto(args.report.resolve().as_uri())
        top = page.locator("#plot-3").bounding_box()["y"]
        card = page.locator("#rank-1").bounding_box()
        clip = {"x": 0, "y": top, "width": WIDTH, "height": card["y"] + card["height"] + 16 - top}
        picture = page.screenshot(full_page=True, clip=clip)
        browser.close()
    colours = Image.open(io.BytesIO(picture)).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE)
    colours.save(args.out, optimize=True)
    print(f"{args.out}: {args.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
