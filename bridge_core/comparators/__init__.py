"""Rivals of the bridge from AS-Bridge's tables: image translation by adversarial networks, and anomaly detectors.

Nothing else in `bridge_core` imports this package. Every method is written from its paper; what is ours, because the
method was made for label maps or needs weights that are not at hand, is said where it is done.
"""
