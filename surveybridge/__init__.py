"""SurveyBridge: probabilistic translation between sky surveys."""

from __future__ import annotations

from surveybridge.version import __version__

__all__ = ["__version__"]
