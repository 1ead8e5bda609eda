"""Stamps from noise: the room of `surveybridge generate`."""
