"""What the golden models are for, as numbers: one function per task metric, computed from outputs and labels.

A model's ``golden.toml`` names its metric (``[task] metric``); ``score`` computes it from the outputs of any version of
the model, float or quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qir.errors import OptionError, suggest

Array = NDArray[Any]
Outputs = Sequence[Sequence[Array]]  # per sample, the model's outputs in order


def accuracy(outputs: Outputs, labels: Array) -> float:
    """Share of samples whose largest logit (first output, last axis) is the label's; in [0, 1]."""
    predicted = np.concatenate([sample[0] for sample in outputs]).argmax(axis=-1)
    return float((predicted == labels).mean())


def next_token_loss(outputs: Outputs, labels: Array) -> float:
    """Mean cross entropy in nats of the next token; logits [1, length, vocabulary], labels [samples, length]."""
    logits = np.concatenate([sample[0] for sample in outputs]).astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return float(-np.take_along_axis(log_probability, labels[..., None], axis=-1).mean())


def signal_to_noise(outputs: Outputs, labels: Array) -> float:
    """10 log10(sum clean^2 / sum (output - clean)^2) in dB over all samples."""
    produced = np.concatenate([sample[0] for sample in outputs]).astype(np.float64)
    return float(10 * np.log10((labels.astype(np.float64) ** 2).sum() / ((produced - labels) ** 2).sum()))


def detection_f1(outputs: Outputs, labels: Array, *, threshold: float = 0.5, overlap: float = 0.5) -> float:
    """F1 of detections: right class and intersection over union of at least ``overlap``, each true box found once.

    Outputs per sample: scores [1, cells, classes] in [0, 1] and boxes [1, cells, 4] as (x0, y0, x1, y1). Labels
    [samples, objects, 5] as (class, x0, y0, x1, y1), class -1 where there is none. Boxes of one class that overlap by
    more than ``overlap`` are reduced to the one with the highest score.
    """
    found = wanted = matched = 0
    for (scores, boxes, *_), truth in zip(outputs, labels, strict=True):
        truth = truth[truth[:, 0] >= 0]
        wanted += len(truth)
        free = np.ones(len(truth), bool)
        kinds = scores[0].argmax(axis=-1)
        best = scores[0].max(axis=-1)
        kept: list[int] = []
        for cell in np.argsort(-best, kind="stable"):
            if best[cell] < threshold:
                break
            rivals = [other for other in kept if kinds[other] == kinds[cell]]
            if rivals and (_overlaps(boxes[0, cell], boxes[0, rivals]) > overlap).any():
                continue
            kept.append(int(cell))
            usable = free & (truth[:, 0] == kinds[cell]) & (_overlaps(boxes[0, cell], truth[:, 1:]) >= overlap)
            if usable.any():
                free[np.flatnonzero(usable)[0]] = False
                matched += 1
        found += len(kept)
    return 2 * matched / max(found + wanted, 1)


def _overlaps(box: Array, others: Array) -> Array:
    """Intersection over union of one box [4] with others [n, 4]."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.clip(high - low, 0, None).prod(axis=-1)
    area = np.prod(box[2:] - box[:2]) + (others[:, 2:] - others[:, :2]).prod(axis=-1) - common
    return np.asarray(common / np.maximum(area, 1e-9))


_METRICS: dict[str, Callable[[Outputs, Array], float]] = {
    "accuracy": accuracy,
    "next-token-loss": next_token_loss,
    "signal-to-noise-db": signal_to_noise,
    "detection-f1": detection_f1,
}


def score(metric: str, outputs: Outputs, labels: Array) -> float:
    """The task metric called ``metric`` in golden.toml. Higher is better, except for next-token-loss.

    Raises OptionError for a name that is not in the table.
    """
    if metric not in _METRICS:
        raise OptionError(f"unknown task metric {metric!r}{suggest(metric, _METRICS)}; there are {', '.join(_METRICS)}")
    return _METRICS[metric](outputs, labels)
