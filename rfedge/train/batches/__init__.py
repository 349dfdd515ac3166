"""From frames to batches: windows, features, tokens, augmentation, words."""
