"""The jobs that a person runs: one module per job, typed config in, exit code out; behind each a room of its own."""
