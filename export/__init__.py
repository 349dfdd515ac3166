"""Checkpoint -> bundle: trace, calibrate, quantize, prove, package. `pipeline.py` is the file to read first."""
