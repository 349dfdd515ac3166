"""Paints wood: a seeded texture of wavy streaks along the grain, with a given mean and spread of colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from rfedge.envs.interface import Float64Array
from rfedge.messages import UInt8Array

TEXTURE_SIZE: Final = 256  # pixels a side
# (cycles along the grain, cycles across it, share of the spread): broad bands, growth rings, fibres
_OCTAVES: Final = ((1.5, 3.0, 0.7), (3.0, 12.0, 0.6), (12.0, 60.0, 0.4))
_WARP_PIXELS: Final = 5.0  # by which broad waves bend the grain


@dataclass(frozen=True, slots=True)
class Wood:
    rgb: tuple[float, float, float]  # mean colour, 0 to 1
    spread: float  # standard deviation of its brightness, on the same scale


def _waves(rng: np.random.Generator, along: float, across: float) -> Float64Array:
    """Return periodic noise (size, size) of unit variance: rows across the grain, columns along it."""
    frequency = np.fft.fftfreq(TEXTURE_SIZE, 1.0 / TEXTURE_SIZE)
    slow = np.exp(-((frequency / along) ** 2))
    fast = np.exp(-(((np.abs(frequency) - across) / (0.6 * across)) ** 2))
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((TEXTURE_SIZE, TEXTURE_SIZE))) * np.outer(fast, slow)).real
    return np.asarray(noise / noise.std(), dtype=np.float64)


def paint_wood(wood: Wood, rng: np.random.Generator) -> UInt8Array:
    """Return RGB (TEXTURE_SIZE, TEXTURE_SIZE, 3); the grain runs along its rows, and it repeats without a seam."""
    waves = np.array([share * _waves(rng, along, across) for along, across, share in _OCTAVES]).sum(axis=0)
    rows, columns = np.indices(waves.shape)
    bent = (rows + _WARP_PIXELS * _waves(rng, 3.0, 2.0)).round().astype(np.int64) % TEXTURE_SIZE
    waves = waves[bent, columns]
    pixels = np.array(wood.rgb) + wood.spread / waves.std() * waves[..., np.newaxis]
    return np.asarray(np.clip(255.0 * pixels, 0.0, 255.0).round(), dtype=np.uint8)
