"""Robots of other frameworks behind `rfedge.runtimes.control.robot.Robot`; each module imports its framework when it connects."""
