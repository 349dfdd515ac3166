"""The commands of `rfedge demos`."""
