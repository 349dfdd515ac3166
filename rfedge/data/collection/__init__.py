"""Collecting demonstrations into a CALVIN dataset."""
