"""What a policy costs (parameters, operations, bytes, stage by stage) and what each known device would make of it.

Needs no torch, so that it also runs on the robot. Read `report.py` first.
"""
