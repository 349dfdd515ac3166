"""A bundle: manifest, graphs and engines of one policy in one precision."""

from rfedge.bundle.artifact import Bundle, Manifest, load_bundle

__all__ = ["Bundle", "Manifest", "load_bundle"]
