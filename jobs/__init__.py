"""What a person runs: one module a job, typed config in, exit code out."""

__version__ = "0.1.0"
