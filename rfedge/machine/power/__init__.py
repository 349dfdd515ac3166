"""Memory, power and temperature beside a control loop or a benchmark. Read `sampler.py` first.

Nothing here needs a GPU or a board: what a machine does not tell is reported as such, with the reason, and never as 0.
"""
