"""Engines of a bundle on an NVIDIA GPU. Read `runner.py` first; `opening.py` finds the engines, `cuda_driver.py` is CUDA."""
