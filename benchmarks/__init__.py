"""Measurements: how fast, how often it succeeds, and on which machine; every number comes with its conditions."""
