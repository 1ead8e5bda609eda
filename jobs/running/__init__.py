"""How a job runs: its log and progress, and its end by SIGTERM."""
