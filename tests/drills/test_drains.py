"""Runs on a Ray of their own that a whole process group, or every process, is told to end: the drills of `drains`."""

from __future__ import annotations

import pytest

from tests.drills.drains import Field

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    return Field(tmp_path_factory.mktemp("drains"))


@pytest.mark.parametrize(("target", "moment"), [("process group", 0.4), ("every process", 2)])
def test_a_run_that_is_told_to_stop_ends_with_143_and_a_summary_and_is_gone_on_with(field, target, moment):
    run = target.replace(" ", "-")
    tried = field.stop(target, moment, run)
    assert (tried.code, tried.left_behind) == (143, ()), tried.said
    assert tried.said == "summary"
    assert tried.done >= moment if moment > 1 else tried.done == 0
    assert field.same_as_undisturbed(run)
