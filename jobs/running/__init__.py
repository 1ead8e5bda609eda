"""Logging, progress and the orderly end of a running job."""
