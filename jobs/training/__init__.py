"""The work of `train` on every worker."""
