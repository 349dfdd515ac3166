"""A bundle: manifest, graphs and engines of one policy in one precision."""
