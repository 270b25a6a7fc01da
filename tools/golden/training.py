"""One training loop for all golden models: AdamW, one-cycle learning rate, one thread, everything seeded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[Any]


def seeded(seed: int) -> None:
    """Make what follows repeatable: one thread (sums in one order), deterministic kernels, a fixed seed."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)


def fit(
    module: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    *,
    samples: int,
    epochs: int,
    batch: int = 64,
    rate: float = 3e-3,
    decay: float = 0.01,
) -> float:
    """Train in place and leave the module in evaluation mode; returns the last epoch's mean loss.

    ``loss_of`` gets the indices of a batch among ``samples`` training samples.
    """
    optimiser = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=decay)
    steps = epochs * (samples // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=steps)
    module.train()
    mean = 0.0
    for _ in range(epochs):
        order = torch.randperm(samples)
        losses = []
        for start in range(0, samples - batch + 1, batch):
            optimiser.zero_grad()
            loss = loss_of(order[start : start + batch])
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        mean = float(np.mean(losses))
    module.eval()
    return mean


def classify(module: nn.Module, inputs: Array, labels: Array, *, epochs: int, **options: float) -> float:
    """Train a classifier whose call takes the inputs and gives logits; returns the last epoch's mean cross entropy."""
    x, y = torch.from_numpy(inputs), torch.from_numpy(labels)
    batch = int(options.pop("batch", 64))
    return fit(
        module,
        lambda rows: nn.functional.cross_entropy(module(x[rows]), y[rows]),
        samples=len(x),
        epochs=epochs,
        batch=batch,
        **options,
    )


def weights_of(module: nn.Module) -> dict[str, Array]:
    """All parameters and buffers by name, as numpy arrays."""
    return {name: value.detach().numpy().copy() for name, value in module.state_dict().items()}


def folded_batch_norm(weights: dict[str, Array], conv: str, norm: str, epsilon: float = 1e-5) -> tuple[Array, Array]:
    """Weight and bias of a bias-free convolution with the BatchNorm behind it folded in."""
    scale = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"] + epsilon)
    kernel = weights[f"{conv}.weight"]
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    return (kernel * scale.reshape(-1, *[1] * (kernel.ndim - 1))).astype(np.float32), bias.astype(np.float32)
