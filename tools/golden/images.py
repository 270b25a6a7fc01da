"""Image classifiers: a perceptron, a plain, a residual and a depthwise convolutional network."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tools.golden import data
from tools.golden.builder import GraphBuilder
from tools.golden.record import Feed, Golden
from tools.golden.training import classify, folded_batch_norm, seeded, weights_of

Array = NDArray[Any]


def torch_outputs(module: nn.Module, name: str, feed: Feed) -> list[Array]:
    """Run a module of one input and one output on a feed."""
    with torch.no_grad():
        return [module(torch.from_numpy(feed[name])).numpy()]


# -- perceptron ---------------------------------------------------------------------------------------------------
def mlp_digits() -> Golden:
    """Gemm and Relu only; opset 9, IR version 3, every weight listed as a graph input."""
    seed, split = 11, data.digits()
    seeded(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10))
    loss = classify(net, split.train, split.train_labels, epochs=60, rate=3e-3)
    w = weights_of(net)

    g = GraphBuilder(9, "mlp_digits")
    x = g.add("Flatten", g.input("image", np.float32, ["N", 1, 8, 8]), name="flatten", axis=1)
    x = g.add("Relu", g.gemm(x, "fc1", w["1.weight"], w["1.bias"]), name="relu1")
    x = g.add("Relu", g.gemm(x, "fc2", w["3.weight"], w["3.bias"]), name="relu2")
    g.output("logits", g.gemm(x, "fc3", w["5.weight"], w["5.bias"]), np.float32, ["N", 10])
    return Golden(
        name="mlp-digits",
        description="Perceptron of three Gemm for handwritten digits; opset 9, IR 3, weights listed as inputs.",
        source=data.DIGITS,
        model=g.model(weights_as_inputs=True),
        reference=lambda feed: torch_outputs(net, "image", feed),
        calibration={"image": split.train[:64]},
        evaluation={"image": split.test[:200]},
        labels=split.test_labels[:200],
        metric="accuracy",
        seed=seed,
        training={"samples": len(split.train), "epochs": 60, "last_epoch_loss": loss},
    )


# -- plain convolutional network ----------------------------------------------------------------------------------
def cnn_digits() -> Golden:
    """Conv, BatchNormalization left alone, Relu, MaxPool, Dropout, Flatten, Gemm; fixed batch of one."""
    seed, split = 12, data.digits()
    seeded(seed)
    widths = [1, 16, 32, 48]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=after == 16), nn.BatchNorm2d(after), nn.ReLU()]
    layers[6:6] = [nn.MaxPool2d(2)]
    net = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Dropout(0.2), nn.Flatten(), nn.Linear(48 * 4, 10))
    epochs = 12
    loss = classify(net, split.train, split.train_labels, epochs=epochs, rate=5e-3)
    w = weights_of(net)

    g = GraphBuilder(11, "cnn_digits")
    x = g.input("image", np.float32, [1, 1, 8, 8])
    for index, (conv, norm) in enumerate([("0", "1"), ("3", "4"), ("7", "8")], start=1):
        x = g.conv(x, f"conv{index}", w[f"{conv}.weight"], w.get(f"{conv}.bias"))
        parameters = [
            g.weight(f"bn{index}.{key}", w[f"{norm}.{key}"])
            for key in ("weight", "bias", "running_mean", "running_var")
        ]
        x = g.add("BatchNormalization", x, *parameters, name=f"bn{index}", epsilon=1e-5, momentum=0.9)
        x = g.add("Relu", x, name=f"relu{index}")
        if index > 1:
            x = g.add("MaxPool", x, name=f"pool{index}", kernel_shape=[2, 2], strides=[2, 2])
    x = g.add("Dropout", x, name="dropout", ratio=0.2)
    x = g.add("Flatten", x, name="flatten", axis=1)
    g.output("logits", g.gemm(x, "fc", w["13.weight"], w["13.bias"]), np.float32, [1, 10])
    return Golden(
        name="cnn-digits",
        description="Plain CNN for handwritten digits: BatchNormalization not fused, Dropout left in, MaxPool, Gemm.",
        source=data.DIGITS,
        model=g.model(),
        reference=lambda feed: torch_outputs(net, "image", feed),
        calibration={"image": split.train[:64]},
        evaluation={"image": split.test[:200]},
        labels=split.test_labels[:200],
        metric="accuracy",
        seed=seed,
        training={"samples": len(split.train), "epochs": epochs, "last_epoch_loss": loss},
    )


# -- residual network ---------------------------------------------------------------------------------------------
class Residual(nn.Module):
    """Two 3x3 convolutions with BatchNorm beside the identity (or a 1x1 convolution where the shape changes)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shrinks = stride > 1
        if self.shrinks:
            self.short = nn.Conv2d(before, after, 1, stride, bias=False)
            self.short_bn = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (self.short_bn(self.short(x)) if self.shrinks else x))


def resnet_shapes() -> Golden:
    """Residual network with BatchNorm already folded, as exporters leave it; dynamic batch."""
    seed = 13
    seeded(seed)
    images, labels = data.shapes(2400, seed=1)
    test, test_labels = data.shapes(120, seed=2)
    plan = [("layer1", 16, 16, 1), ("layer2", 16, 32, 2), ("layer3", 32, 64, 2)]
    blocks = [Residual(before, after, stride) for _, before, after, stride in plan]
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 6),
    )
    epochs = 8
    loss = classify(net, images, labels, epochs=epochs, rate=5e-3)
    w = weights_of(net)

    g = GraphBuilder(13, "resnet_shapes")
    x = g.input("image", np.float32, ["N", 3, 32, 32])
    x = g.add("Relu", g.conv(x, "/conv1", *folded_batch_norm(w, "0", "1")), name="/relu1")
    for index, (name, _, _, stride) in enumerate(plan, start=3):
        y = g.conv(x, f"/{name}/conv1", *folded_batch_norm(w, f"{index}.conv1", f"{index}.bn1"), stride=stride)
        y = g.add("Relu", y, name=f"/{name}/relu1")
        y = g.conv(y, f"/{name}/conv2", *folded_batch_norm(w, f"{index}.conv2", f"{index}.bn2"))
        if stride > 1:
            weight, bias = folded_batch_norm(w, f"{index}.short", f"{index}.short_bn")
            x = g.conv(x, f"/{name}/shortcut", weight, bias, stride=stride)
        x = g.add("Relu", g.add("Add", y, x, name=f"/{name}/add"), name=f"/{name}/relu2")
    x = g.add("Flatten", g.add("GlobalAveragePool", x, name="/pool"), name="/flatten", axis=1)
    g.output("logits", g.gemm(x, "/fc", w["8.weight"], w["8.bias"]), np.float32, ["N", 6])
    return Golden(
        name="resnet-shapes",
        description="Residual CNN for coloured shapes: skip connections, strided shortcuts, dynamic batch.",
        source=data.SYNTHETIC,
        model=g.model(),
        reference=lambda feed: torch_outputs(net, "image", feed),
        calibration={"image": images[:32]},
        evaluation={"image": test},
        labels=test_labels,
        metric="accuracy",
        seed=seed,
        training={"samples": len(images), "epochs": epochs, "last_epoch_loss": loss},
    )


# -- depthwise network --------------------------------------------------------------------------------------------
class Inverted(nn.Module):
    """MobileNetV3's block: expand, depthwise, squeeze-and-excite, project, add where the shapes allow it."""

    def __init__(self, before: int, middle: int, after: int, stride: int, hard_swish: bool) -> None:
        super().__init__()
        self.expand = nn.Conv2d(before, middle, 1, bias=False)
        self.expand_bn = nn.BatchNorm2d(middle)
        self.depthwise = nn.Conv2d(middle, middle, 3, stride, padding=1, groups=middle, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(middle)
        self.squeeze = nn.Conv2d(middle, middle // 4, 1)
        self.excite = nn.Conv2d(middle // 4, middle, 1)
        self.project = nn.Conv2d(middle, after, 1, bias=False)
        self.project_bn = nn.BatchNorm2d(after)
        self.adds = before == after and stride == 1
        self.hard_swish = hard_swish
        # Channels that start a hundredfold apart stay apart: hard on per-tensor activations and on folded weights.
        with torch.no_grad():
            for norm in (self.expand_bn, self.depthwise_bn):
                norm.weight.copy_(torch.exp(torch.empty(middle).uniform_(math.log(0.05), math.log(5.0))))

    def forward(self, x: Tensor) -> Tensor:
        act = F.hardswish if self.hard_swish else F.relu
        y = act(self.expand_bn(self.expand(x)))
        y = act(self.depthwise_bn(self.depthwise(y)))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        y = self.project_bn(self.project(y * gate))
        result: Tensor = x + y if self.adds else y
        return result


def mobile_sounds() -> Golden:
    """Depthwise convolutions, unequal channels, HardSwish written out, HardSigmoid gates; opset 12."""
    seed = 14
    seeded(seed)
    images, labels = data.spectrograms(3000, seed=3)
    test, test_labels = data.spectrograms(120, seed=4)
    plan = [(12, 36, 16, 2, False), (16, 48, 16, 1, False), (16, 64, 24, 2, True), (24, 96, 24, 1, True)]
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.Hardswish(),
        *[Inverted(*row) for row in plan],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 6),
    )
    epochs = 10
    loss = classify(net, images, labels, epochs=epochs, rate=5e-3)
    w = weights_of(net)

    g = GraphBuilder(12, "mobile_sounds")
    three, six, zero = g.floats(3.0, "three"), g.floats(6.0, "six"), g.floats(0.0, "zero")

    def hard_swish(value: str, name: str) -> str:
        clipped = g.add("Clip", g.add("Add", value, three, name=f"{name}/Add"), zero, six, name=f"{name}/Clip")
        return g.add("Div", g.add("Mul", value, clipped, name=f"{name}/Mul"), six, name=f"{name}/Div")

    x = g.input("spectrogram", np.float32, ["N", 1, 32, 32])
    x = hard_swish(g.conv(x, "/stem/conv", *folded_batch_norm(w, "0", "1")), "/stem/act")
    for index, (before, middle, after, stride, swish) in enumerate(plan, start=3):
        at = f"/block{index - 2}"

        def act(value: str, name: str, swish: bool = swish) -> str:
            return hard_swish(value, name) if swish else g.add("Relu", value, name=name)

        y = act(g.conv(x, f"{at}/expand", *folded_batch_norm(w, f"{index}.expand", f"{index}.expand_bn")), f"{at}/act1")
        kernel, bias = folded_batch_norm(w, f"{index}.depthwise", f"{index}.depthwise_bn")
        y = act(g.conv(y, f"{at}/depthwise", kernel, bias, stride=stride, group=middle), f"{at}/act2")
        gate = g.add("GlobalAveragePool", y, name=f"{at}/se/pool")
        gate = g.conv(gate, f"{at}/se/squeeze", w[f"{index}.squeeze.weight"], w[f"{index}.squeeze.bias"])
        gate = g.add("Relu", gate, name=f"{at}/se/relu")
        gate = g.conv(gate, f"{at}/se/excite", w[f"{index}.excite.weight"], w[f"{index}.excite.bias"])
        gate = g.add("HardSigmoid", gate, name=f"{at}/se/gate", alpha=1 / 6, beta=0.5)
        y = g.add("Mul", gate, y, name=f"{at}/se/scale")
        y = g.conv(y, f"{at}/project", *folded_batch_norm(w, f"{index}.project", f"{index}.project_bn"))
        x = g.add("Add", x, y, name=f"{at}/add") if before == after and stride == 1 else y
    x = g.reduce_mean(x, [2, 3], keepdims=False, name="/pool")
    g.output("logits", g.gemm(x, "/fc", w["9.weight"], w["9.bias"]), np.float32, ["N", 6])
    return Golden(
        name="mobile-sounds",
        description="Depthwise CNN for sound spectrograms: channels of unequal range, HardSwish written out, "
        "squeeze-and-excite with HardSigmoid, dynamic batch.",
        source=data.SYNTHETIC,
        model=g.model(),
        reference=lambda feed: torch_outputs(net, "spectrogram", feed),
        calibration={"spectrogram": images[:32]},
        evaluation={"spectrogram": test},
        labels=test_labels,
        metric="accuracy",
        seed=seed,
        training={"samples": len(images), "epochs": epochs, "last_epoch_loss": loss},
    )
