"""Data of the golden models: scikit-learn's digits, and pictures, signals and text drawn from a seed.

Synthetic values are rounded to a few binary digits, so that compressed archives stay small and read back exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SYNTHETIC = ("drawn from a seed by tools/golden/data.py", "Apache-2.0, as the rest of this project")
DIGITS = (
    "Optical Recognition of Handwritten Digits by E. Alpaydin and C. Kaynak (UCI Machine Learning Repository, "
    "doi 10.24432/C50P49), the test part as distributed with scikit-learn; scaled to [0, 1]",
    "CC BY 4.0",
)


@dataclass(frozen=True)
class Split:
    """Inputs and labels: ``train`` (calibration samples are its first rows) and ``test``, never trained on."""

    train: Array
    train_labels: Array
    test: Array
    test_labels: Array


def digits() -> Split:
    """1,797 handwritten digits, [N, 1, 8, 8] in [0, 1]; the last 397 of a fixed permutation are the test part."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    images = (bunch.images[order] / 16.0).astype(np.float32)[:, None]
    labels = bunch.target[order].astype(np.int64)
    return Split(images[:1400], labels[:1400], images[1400:], labels[1400:])


# -- pictures -----------------------------------------------------------------------------------------------------
SHAPES = ("disc", "square", "triangle", "ring", "cross", "bar")
SIDE = 32


def _coverage(kind: int, centre: Array, radius: float, angle: float) -> Array:
    """Anti-aliased mask [SIDE, SIDE] in [0, 1] of one shape, from its signed distance (pixels, negative inside)."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    y, x = rows - centre[1], columns - centre[0]
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    name = SHAPES[kind]
    if name == "disc":
        distance = np.hypot(u, v) - radius
    elif name == "square":
        distance = np.maximum(np.abs(u), np.abs(v)) - radius * 0.82
    elif name == "triangle":
        distance = np.maximum.reduce([v - radius * 0.5, 0.866 * np.abs(u) - 0.5 * v - radius * 0.5])
    elif name == "ring":
        distance = np.abs(np.hypot(u, v) - radius * 0.75) - radius * 0.25
    elif name == "cross":
        arm = radius * 0.3
        distance = np.minimum(
            np.maximum(np.abs(u) - radius, np.abs(v) - arm), np.maximum(np.abs(v) - radius, np.abs(u) - arm)
        )
    else:
        distance = np.maximum(np.abs(u) - radius, np.abs(v) - radius * 0.35)
    return np.asarray(np.clip(0.5 - distance, 0.0, 1.0))


def _background(rng: np.random.Generator) -> Array:
    """A coloured gradient, [3, SIDE, SIDE]."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    base, slope = rng.uniform(0.1, 0.5, 3), rng.uniform(-0.2, 0.2, (2, 3))
    return np.asarray(
        base[:, None, None] + slope[0][:, None, None] * rows + slope[1][:, None, None] * columns, np.float64
    )


def _finish(image: Array, rng: np.random.Generator) -> Array:
    """Noise, then 4-bit values in [0, 1]."""
    noisy = image + rng.normal(0.0, 0.02, image.shape)
    return (np.round(np.clip(noisy, 0, 1) * 16) / 16).astype(np.float32)


def shapes(count: int, seed: int) -> tuple[Array, Array]:
    """One shape a picture: images [count, 3, 32, 32] in [0, 1] and the index of the shape in SHAPES."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(SHAPES), count)
    images = np.empty((count, 3, SIDE, SIDE), np.float32)
    for index, kind in enumerate(labels):
        radius = rng.uniform(4.5, 11.0)
        centre = rng.uniform(radius, SIDE - radius, 2)
        contrast = rng.uniform(0.2, 0.6, 3)
        mask = _coverage(int(kind), centre, radius, rng.uniform(0, 2 * np.pi))
        images[index] = _finish(_background(rng) + contrast[:, None, None] * mask, rng)
    return images, labels.astype(np.int64)


MAX_OBJECTS = 3


def scenes(count: int, seed: int) -> tuple[Array, Array]:
    """Pictures with one to three discs, squares or triangles, and their boxes.

    Returns images [count, 3, 32, 32] and labels [count, 3, 5] of (class, x0, y0, x1, y1) in pixels; unused rows are -1.
    """
    rng = np.random.default_rng(seed)
    images = np.empty((count, 3, SIDE, SIDE), np.float32)
    labels = np.full((count, MAX_OBJECTS, 5), -1.0, np.float32)
    for index in range(count):
        image, placed = _background(rng), 0
        occupied = np.zeros((SIDE, SIDE), bool)
        for _ in range(int(rng.integers(1, MAX_OBJECTS + 1))):
            kind, radius = int(rng.integers(0, 3)), rng.uniform(3.5, 8.0)
            centre = rng.uniform(radius + 0.5, SIDE - radius - 0.5, 2)
            angle = rng.uniform(0, 2 * np.pi) if kind == 1 else 0.0
            mask = _coverage(kind, centre, radius, angle)
            inside = mask > 0.5
            if (inside & occupied).any():
                continue
            occupied |= np.hypot(*(np.mgrid[0:SIDE, 0:SIDE] + 0.5 - centre[::-1, None, None])) < radius + 2
            colour = rng.uniform(0.5, 1.0, 3)
            image = image * (1 - mask) + colour[:, None, None] * mask
            rows, columns = np.nonzero(inside)
            labels[index, placed] = (kind, columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            placed += 1
        images[index] = _finish(image, rng)
    return images, labels


# -- signals ------------------------------------------------------------------------------------------------------
SOUNDS = ("tone", "rising", "falling", "warble", "pulses", "hiss")


def spectrograms(count: int, seed: int) -> tuple[Array, Array]:
    """Log power spectra [count, 1, 32 frames, 32 bins] of short synthetic sounds, and the index in SOUNDS."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(SOUNDS), count)
    window, hop, frames = 64, 32, 32
    time = np.arange(hop * (frames - 1) + window)
    cut = np.arange(frames)[:, None] * hop + np.arange(window)
    out = np.empty((count, 1, frames, window // 2), np.float32)
    for index, kind in enumerate(labels):
        name = SOUNDS[kind]
        low, high = np.sort(rng.uniform(0.03, 0.45, 2) + np.array([0.0, 0.02]))
        progress = time / time[-1]
        frequency = {
            "rising": low + (high - low) * progress,
            "falling": high - (high - low) * progress,
            "warble": low + 0.05 + 0.04 * np.sin(2 * np.pi * rng.uniform(3, 8) * progress),
        }.get(name, np.full(time.shape, low))
        wave = np.sin(2 * np.pi * np.cumsum(frequency) + rng.uniform(0, 6.28))
        if name == "pulses":
            wave = wave * (np.sin(2 * np.pi * rng.uniform(4, 9) * progress) > 0.3)
        if name == "hiss":
            wave = rng.normal(0, 1.0, time.shape)
        wave = wave * rng.uniform(0.2, 1.0) + rng.normal(0, rng.uniform(0.02, 0.25), time.shape)
        spectrum = np.abs(np.fft.rfft(wave[cut] * np.hanning(window), axis=1)[:, 1:]) ** 2
        out[index, 0] = np.round(np.log(spectrum + 1e-2) * 4) / 4
    return out, labels.astype(np.int64)


GESTURES = ("circle", "eight", "shake", "left", "right", "double-tap")


def gestures(count: int, seed: int) -> tuple[Array, Array]:
    """Three-axis motion traces [count, 48 steps, 3 axes], and the index in GESTURES."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(GESTURES), count)
    phase = np.linspace(0, 1, 48)
    out = np.empty((count, 48, 3), np.float32)
    for index, kind in enumerate(labels):
        name, turn = GESTURES[kind], 2 * np.pi * rng.uniform(0.8, 1.2)
        angle = turn * phase + rng.uniform(0, 2 * np.pi)
        bump = np.exp(-(((phase - rng.uniform(0.35, 0.65)) / 0.12) ** 2))
        trace = np.zeros((48, 3))
        if name == "circle":
            trace[:, 0], trace[:, 1] = np.cos(angle), np.sin(angle)
        elif name == "eight":
            trace[:, 0], trace[:, 1] = np.cos(angle), np.sin(2 * angle)
        elif name == "shake":
            trace[:, 0] = np.sin(2 * np.pi * rng.uniform(4, 7) * phase)
        elif name in ("left", "right"):
            trace[:, 0] = bump * (1 if name == "right" else -1) * np.gradient(bump) / 0.1
        else:
            first = rng.uniform(0.15, 0.4)
            for start in (first, first + rng.uniform(0.2, 0.35)):
                trace[:, 2] += np.exp(-(((phase - start) / 0.03) ** 2))
        tilt = np.linalg.qr(np.eye(3) + rng.normal(0, 0.12, (3, 3)))[0]
        trace = trace @ (tilt * np.sign(np.diag(tilt))) * rng.uniform(0.6, 1.6) + rng.normal(0, 0.45, trace.shape)
        out[index] = np.round(trace * 16) / 16
    return out, labels.astype(np.int64)


def noisy_waves(count: int, length: int, seed: int) -> tuple[Array, Array]:
    """Sums of one to three decaying sines with white noise, and without: two arrays [count, 1, length]."""
    rng = np.random.default_rng(seed)
    time = np.arange(length)
    clean = np.zeros((count, 1, length))
    for index in range(count):
        for _ in range(int(rng.integers(1, 4))):
            decay = np.exp(-time / rng.uniform(40, 400))
            clean[index, 0] += (
                rng.uniform(0.3, 1.0)
                * decay
                * np.sin(2 * np.pi * rng.uniform(0.01, 0.12) * time + rng.uniform(0, 6.28))
            )
    noisy = clean + rng.normal(0, 0.3, clean.shape)
    return (np.round(noisy * 128) / 128).astype(np.float32), (np.round(clean * 128) / 128).astype(np.float32)
