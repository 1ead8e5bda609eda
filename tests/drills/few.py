"""`python -m MODULE ...` with one reader and one writer for each model: python -m tests.drills.few -m MODULE ...

Each is a process that takes three seconds of a core to start.
"""

from __future__ import annotations

import runpy
import sys

from surveybridge.cluster import stream

if __name__ == "__main__":
    stream.IO_PER_MODEL = 1
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
