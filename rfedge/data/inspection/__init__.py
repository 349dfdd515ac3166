"""Checks of a dataset before anybody trains on it."""
