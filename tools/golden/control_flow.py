"""A classifier with If and Loop: a convolution applied three times, then the quick or the careful head."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tools.golden import data
from tools.golden.builder import GraphBuilder
from tools.golden.record import Feed, Golden
from tools.golden.training import fit, seeded, weights_of

Array = NDArray[Any]

WIDTH, TRIPS = 24, 3


class AdaptiveNet(nn.Module):
    """x <- relu(x + mix(relu(conv(x)))) three times; the careful head has convolutions and sees every step's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTH, 3, padding=1)
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.mix = nn.Conv2d(WIDTH, WIDTH, 1)
        self.quick = nn.Linear(WIDTH, 10)
        self.deep = nn.Conv2d(WIDTH, 48, 3, 2, padding=1)
        self.careful = nn.Linear(48 + WIDTH, 10)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The last state [batch, width, 8, 8] and the mean over steps of its means over pixels [batch, width]."""
        x = F.relu(self.stem(x))
        steps = []
        for _ in range(TRIPS):
            x = F.relu(x + self.mix(F.relu(self.conv(x))))
            steps.append(x.mean((2, 3)))
        return x, torch.stack(steps).mean(0)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the quick and of the careful head."""
        state, summary = self.features(x)
        deep = F.relu(self.deep(state)).mean((2, 3))
        return self.quick(state.mean((2, 3))), self.careful(torch.cat([deep, summary], 1))


def adaptive_digits() -> Golden:
    """Loop with a captured and an own weight and a scan output; If on a scalar bool input with captures; opset 16."""
    seed, split, epochs = 22, data.digits(), 40
    seeded(seed)
    net = AdaptiveNet()
    x, y = torch.from_numpy(split.train), torch.from_numpy(split.train_labels)

    def loss_of(rows: Tensor) -> Tensor:
        quick, careful = net.heads(x[rows])
        return F.cross_entropy(quick, y[rows]) + F.cross_entropy(careful, y[rows])

    loss = fit(net, loss_of, samples=len(x), epochs=epochs, rate=6e-3)

    def reference(feed: Feed) -> list[Array]:
        with torch.no_grad():
            quick, careful = net.heads(torch.from_numpy(feed["image"]))
        return [(careful if feed["careful"] else quick).numpy()]

    half = {count: np.arange(count) % 2 == 0 for count in (64, 200)}  # every other sample takes the careful branch
    return Golden(
        name="adaptive-digits",
        description="Handwritten digits with control flow: a Loop applies one residual convolution three times and "
        "scans out a summary; an If takes the quick or the careful head, as the scalar input 'careful' says.",
        source=data.DIGITS,
        model=_model(weights_of(net)),
        reference=reference,
        calibration={"image": split.train[:64], "careful": half[64]},
        evaluation={"image": split.test[:200], "careful": half[200]},
        labels=split.test_labels[:200],
        metric="accuracy",
        seed=seed,
        training={"samples": len(x), "epochs": epochs, "last_epoch_loss": loss},
    )


def _model(w: dict[str, Array]) -> onnx.ModelProto:
    """The graph, its loop body and its two branches."""
    g = GraphBuilder(16, "adaptive_digits")
    image = g.input("image", np.float32, [1, 1, 8, 8])
    careful = g.input("careful", np.bool_, [])
    state = g.add("Relu", g.conv(image, "stem", w["stem.weight"], w["stem.bias"]), name="stem/relu")

    body = GraphBuilder(16, "step", parent=g)
    body.input("trip", np.int64, [])
    go_on = body.input("go_on", np.bool_, [])
    before = body.input("state_in", np.float32, [1, WIDTH, 8, 8])
    # This convolution's weight is captured from the graph around the body, the next one's stands in the body.
    captured = [g.weight(f"conv.{part}", w[f"conv.{part}"]) for part in ("weight", "bias")]
    y = body.add("Conv", before, *captured, name="step/conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    y = body.conv(body.add("Relu", y, name="step/relu1"), "step/mix", w["mix.weight"], w["mix.bias"])
    after = body.add("Relu", body.add("Add", before, y, name="step/add"), name="step/relu2")
    mean = body.reduce_mean(after, [2, 3], keepdims=False, name="step/mean")
    body.output("go_on_out", body.add("Identity", go_on, name="step/go_on"), np.bool_, [])
    body.output("state_out", after, np.float32, [1, WIDTH, 8, 8])
    body.output("mean_out", mean, np.float32, [1, WIDTH])
    trips, always = g.ints(TRIPS, "trips"), g.weight("always", np.asarray(True))
    state, scanned = g.add_many("Loop", trips, always, state, outputs=2, name="refine", body=body.graph())
    summary = g.reduce_mean(scanned, [0], keepdims=False, name="summary")

    yes = GraphBuilder(16, "careful_head", parent=g)
    deep = yes.add("Relu", yes.conv(state, "deep", w["deep.weight"], w["deep.bias"], stride=2), name="deep/relu")
    deep = yes.add("Flatten", yes.add("GlobalAveragePool", deep, name="deep/pool"), name="deep/flatten", axis=1)
    deep = yes.add("Concat", deep, summary, name="deep/concat", axis=1)
    logits = yes.gemm(deep, "careful_fc", w["careful.weight"], w["careful.bias"])
    yes.output("careful_logits", logits, np.float32, [1, 10])

    no = GraphBuilder(16, "quick_head", parent=g)
    pooled = no.add("Flatten", no.add("GlobalAveragePool", state, name="quick/pool"), name="quick/flatten", axis=1)
    no.output("quick_logits", no.gemm(pooled, "quick_fc", w["quick.weight"], w["quick.bias"]), np.float32, [1, 10])

    logits = g.add("If", careful, name="choose", then_branch=yes.graph(), else_branch=no.graph())
    g.output("logits", logits, np.float32, [1, 10])
    return g.model()
