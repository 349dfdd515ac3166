"""The libraries that run graphs, behind one runner."""
