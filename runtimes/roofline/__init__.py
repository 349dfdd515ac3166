"""Cost of a policy (parameters, operations, bytes, stage by stage) and its predicted time on each known device.

Needs no torch, so that it also runs on the robot. Read `report.py` first.
"""
