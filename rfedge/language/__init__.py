"""Instructions and their tokens."""
