"""Schemas of committed records, and figures quoted from others."""
