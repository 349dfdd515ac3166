"""How results are printed: tables, progress, endings."""
