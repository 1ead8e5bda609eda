"""What an ingest is asked for, and the grid that it brings images to."""
