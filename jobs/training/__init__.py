"""What `train` runs on every worker."""
