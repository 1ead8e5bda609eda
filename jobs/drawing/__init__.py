"""Pictures: colours, figures of a run, overviews."""
