"""Everything Ray: streaming actors and training workers. No model mathematics."""
