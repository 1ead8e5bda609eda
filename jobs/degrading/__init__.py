"""Showing stores as they would be through a worse seeing."""
