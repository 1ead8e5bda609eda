"""The problem whose bands, units and pixels images are read for: of a file, or of the checkpoint that they are for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surveybridge.jobs.config import RequestError

if TYPE_CHECKING:
    from surveybridge.bridge_core.model import Card
    from surveybridge.storage.problems import ProblemTable


def problem_and_card(problem: str | None, checkpoint: str | None) -> tuple[ProblemTable, Card | None]:
    """Return the problem of a file or shipped name, or that of a checkpoint with its card; the default one for neither.

    Raises
    ------
    RequestError
        If both are given.
    """
    from surveybridge.storage.problems import default_problem, described, read_problem

    if checkpoint is None:
        return (default_problem() if problem is None else read_problem(problem)), None
    if problem is not None:
        raise RequestError(f"--checkpoint {checkpoint} has a problem of its own; leave out --problem {problem}")
    from surveybridge.bridge_core.checkpoint import load_checkpoint

    card = load_checkpoint(checkpoint).card
    return described(card.problem.table), card
