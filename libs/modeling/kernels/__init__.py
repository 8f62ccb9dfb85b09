"""Fast forms of plain functions; each file holds the plain function, the fast one, and the rule that chooses."""
