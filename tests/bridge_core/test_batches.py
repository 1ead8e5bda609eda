"""Batches: nobody is left out, none is too large, and none is much smaller than the others."""

from __future__ import annotations

import pytest

from surveybridge.bridge_core.batches import balanced


@pytest.mark.parametrize(("number", "most"), [(0, 4), (1, 4), (4, 4), (5, 4), (520, 512), (33, 16), (100, 7), (9, 1)])
def test_batches_hold_everything_once_in_order_and_are_equal_to_one_row(number, most):
    parts = balanced(number, most)
    assert [row for part in parts for row in range(number)[part]] == list(range(number))
    sizes = [part.stop - part.start for part in parts]
    assert len(parts) == -(-number // most)
    assert max(sizes, default=0) <= most
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
