"""Everything that needs Ray: streaming actors and training workers. There is no model mathematics here."""
