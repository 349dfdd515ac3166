"""Vision-language pre-training on frames of demonstrations."""
