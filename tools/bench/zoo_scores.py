"""What each sample gives to a task metric of ../shared/zoo, so that two models can be compared sample by sample.

A difference of two means says little where both come from a few hundred samples; the same samples ran through both
models, and the interval of the paired difference is several times narrower than that of either mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qir.runtime.session import OrtRunner

RESAMPLES = 4000


class ZooScores:
    """The metric of one zoo model over its first `samples` evaluation samples (None: all).

    ``better``: 1 where more is better, -1 for a loss in nats. ``output``: the output that it looks at, None the first.
    ``kind`` is None for a model without labels.
    """

    def __init__(self, zoo: Any, name: str, labels: Any, samples: int | None = None) -> None:
        metric = str(zoo.meta(name)["metric"])
        self.name, self._labels = name, labels
        self.kind = next((kind for kind in ("top1", "spearman", "NLL", "most frequent") if kind in metric), None)
        self.better = -1 if self.kind == "NLL" else 1
        self.output = "sentence_embedding" if self.kind == "spearman" else None
        with np.load(Path(zoo.__file__).parent / name / "data.npz") as data:
            self._indices = data["eval_idx"][:samples]
            self._data = {key: data[key] for key in ("sts_score", "targets") if key in data.files}

    def of(self, outputs: Sequence[np.ndarray]) -> np.ndarray:
        """One number a sample, of a rank correlation one a pair of sentences; empty without a metric."""
        if self.kind == "top1":
            hits = (one.reshape(-1).argmax() == label for one, label in zip(outputs, self._labels, strict=True))
            return np.fromiter(hits, dtype=np.float64)
        if self.kind == "most frequent":
            return np.array(
                [_main_class(one) == label for one, label in zip(outputs, self._labels, strict=True)], float
            )
        if self.kind == "spearman":
            both = np.concatenate(outputs)
            pairs = len(both) // 2 * 2
            return np.asarray(np.einsum("ij,ij->i", both[0:pairs:2], both[1:pairs:2]))
        if self.kind == "NLL":
            return np.array([self._loss(one, index) for one, index in zip(outputs, self._indices, strict=True)])
        return np.empty(0)

    def of_model(self, model: str | Path, feeds: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
        """``of`` what the model makes of these feeds."""
        runner = OrtRunner(model)
        wanted = self.output or runner.outputs[0].name
        return self.of([np.asarray(runner.run(feed, [wanted])[wanted]) for feed in feeds])

    def _loss(self, logits: np.ndarray, index: int) -> float:
        targets = self._data["targets"][index]
        rows = logits.reshape(len(targets), -1).astype(np.float64)
        rows -= rows.max(-1, keepdims=True)
        lost = np.log(np.exp(rows).sum(-1)) - rows[np.arange(len(targets)), targets]
        return float(lost[20:].mean() if self.name.startswith("charrnn") else lost.mean())

    def value(self, scores: np.ndarray, chosen: np.ndarray | None = None) -> float:
        """The metric over all samples, or over the chosen ones."""
        chosen = np.arange(len(scores)) if chosen is None else chosen
        if self.kind != "spearman":
            return float(scores[chosen].mean())
        wanted = self._data["sts_score"][self._indices[::2] // 2][: len(scores)]
        return float(np.corrcoef(_ranks(scores[chosen]), _ranks(wanted[chosen]))[0, 1])

    def drop(self, reference: np.ndarray, scores: np.ndarray) -> tuple[float, float, float]:
        """By how much the metric is worse, and the ends of the 95 % bootstrap interval over the same samples."""
        rng = np.random.default_rng(0)
        drops = [
            self.better * (self.value(reference, chosen) - self.value(scores, chosen))
            for chosen in (rng.integers(0, len(scores), len(scores)) for _ in range(RESAMPLES))
        ]
        low, high = np.percentile(drops, [2.5, 97.5])
        return self.better * (self.value(reference) - self.value(scores)), float(low), float(high)


def _main_class(logits: np.ndarray) -> int:
    """Of (1, classes, height, width): the class of most pixels but for the background 0; -1 where all are."""
    counts = np.bincount(logits[0].argmax(0).reshape(-1), minlength=2)
    counts[0] = 0
    return int(counts.argmax()) if counts.max() else -1


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 1 on, ties at their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place])
