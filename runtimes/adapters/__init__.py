"""Robots of other frameworks behind `rfedge.runtimes.control.robot.Robot`; their libraries are imported on connecting."""
