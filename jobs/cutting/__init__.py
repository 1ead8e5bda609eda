"""Cutting pairs of windows out of a tile store, for training."""
