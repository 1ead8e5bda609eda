"""Profiles of a worker's time, as a table and as a trace."""
