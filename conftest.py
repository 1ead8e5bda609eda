"""Make Triton interpret its kernels in the test suite, so that they run where there is no GPU.

Triton reads TRITON_INTERPRET when a kernel is decorated, hence before `kernels` is imported; a GPU lane sets it to 0.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
