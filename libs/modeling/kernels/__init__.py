"""Fast forms of plain functions, each beside its plain form."""
