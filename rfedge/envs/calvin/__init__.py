"""The CALVIN benchmark's own simulator, in a process of its own."""
