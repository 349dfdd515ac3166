"""Latency and load."""
