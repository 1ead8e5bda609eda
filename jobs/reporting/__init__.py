"""The parts of a run's report: one module a section, and the page that puts them together."""
