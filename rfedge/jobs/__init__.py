"""Work spread over processes or a Ray cluster."""
