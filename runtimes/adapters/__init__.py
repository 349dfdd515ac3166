"""Robots of other frameworks behind `rfedge.runtimes.robot.Robot`; each module imports its framework when it connects."""
