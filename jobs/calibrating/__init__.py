"""Calibrating a checkpoint: its lens score on pairs, its intervals and false-alarm rates on the sky of a tile store."""
