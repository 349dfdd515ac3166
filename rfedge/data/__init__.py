"""Demonstrations: the CALVIN format on disk, windows over it, and how to collect one; needs numpy alone."""

from __future__ import annotations

from rfedge.data.calvin import CalvinDataset, Segment
from rfedge.data.frame_cache import FrameCache
from rfedge.data.windows import WindowBatch, WindowIndex, WindowSampler

__all__ = ["CalvinDataset", "FrameCache", "Segment", "WindowBatch", "WindowIndex", "WindowSampler"]
