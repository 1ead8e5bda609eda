"""Python environments that hold no code of ours, but find what it depends on where the tests have it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

NO_LEAKS = ("PYTHONPATH", "PYTHONHOME", "RAY_ADDRESS")


def bare_environment(folder: Path, *wheels: Path) -> Path:
    """Make an environment at `folder`, install some wheels into it, and return its `bin`.

    Packages of the tests' own environment are found after its own. An editable install is not among them: it is made
    by a `.pth` file, and Python reads those of its own site-packages only.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    python = folder / "bin" / "python"
    if wheels:
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
        subprocess.run([*command, *map(str, wheels)], check=True, timeout=120, env=outside())
    # After the installation, so that pip does not look for earlier versions in there.
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "packages_of_the_tests.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "bin"


def outside(**variables: str) -> dict[str, str]:
    """Environment variables of a process that must not find the checkout."""
    return {name: value for name, value in os.environ.items() if name not in NO_LEAKS} | variables
