"""Report on this machine, what of it rfedge can use, and which precisions are possible here: `rfedge doctor`.

No probe imports torch and none raises: a fact that cannot be had is a reason in words. Read `examination.py` first.
"""
