"""Where the time of a worker goes, as a table and as a trace."""
