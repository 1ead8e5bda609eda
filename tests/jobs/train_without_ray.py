"""`python -m tests.jobs.train_without_ray ARGUMENTS`: `surveybridge train`, its steps in this process."""

from __future__ import annotations

import sys

from surveybridge.__main__ import main
from tests.jobs.training_runs import quick_energies, without_ray

if __name__ == "__main__":
    with without_ray(), quick_energies():
        sys.exit(main(["train", *sys.argv[1:]]))
