"""How threads of a network wait for each other is settled before torch is loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LOOK = "import surveybridge, os, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_do_not_keep_a_core_busy_unless_somebody_asks_for_it(given, found):
    plain = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", LOOK], env=plain | given, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [found, "False"]
