"""The commands of `rfedge bench`."""
