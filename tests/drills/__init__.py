"""Drills; a package, so that their cluster ends with the last of them (pytest knows no scope of a bare folder)."""
