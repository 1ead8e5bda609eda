"""What a person runs: one module a job, typed config in, exit code out; the room of a job is the folder behind it."""
