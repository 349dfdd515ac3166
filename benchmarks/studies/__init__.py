"""One-off measurements."""
