"""A small anchor-free detector with SiLU, a feature pyramid over two scales and three outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tools.golden import data
from tools.golden.builder import GraphBuilder
from tools.golden.record import Feed, Golden
from tools.golden.training import fit, folded_batch_norm, seeded, weights_of

Array = NDArray[Any]

CLASSES = 3
STRIDES = (4, 8)
CELLS = [(data.SIDE // stride) ** 2 for stride in STRIDES]


def cell_centres() -> tuple[Array, Array]:
    """Centre (x, y) in pixels, [cells, 2], and stride, [cells, 1], of every cell of both scales, in output order."""
    centres, strides = [], []
    for stride in STRIDES:
        rows, columns = np.mgrid[0 : data.SIDE : stride, 0 : data.SIDE : stride] + stride / 2
        centres.append(np.stack([columns.ravel(), rows.ravel()], axis=1))
        strides.append(np.full((len(centres[-1]), 1), stride))
    return np.concatenate(centres).astype(np.float32), np.concatenate(strides).astype(np.float32)


class ConvUnit(nn.Module):
    """Convolution, BatchNorm, SiLU."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x)))


class Detector(nn.Module):
    """Strides 2, 4, 8; the coarse map is resized and joined to the fine one; one shared head shape per scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvUnit(3, 16, 3, 2)
        self.stage1, self.mix1 = ConvUnit(16, 32, 3, 2), ConvUnit(32, 32, 3)
        self.stage2, self.mix2 = ConvUnit(32, 48, 3, 2), ConvUnit(48, 48, 3)
        self.lateral = ConvUnit(48, 32, 1)
        self.fuse = ConvUnit(64, 32, 3)
        self.head_fine = nn.Conv2d(32, 4 + 1 + CLASSES, 1)
        self.head_coarse = nn.Conv2d(48, 4 + 1 + CLASSES, 1)
        centres, strides = cell_centres()
        self.register_buffer("centres", torch.from_numpy(centres), persistent=False)
        self.register_buffer("strides", torch.from_numpy(strides), persistent=False)
        with torch.no_grad():
            for head in (self.head_fine, self.head_coarse):
                bias = head.bias
                assert bias is not None
                bias[4:] = -2.0

    def raw(self, x: Tensor) -> Tensor:
        """[batch, cells, 4 + 1 + classes] before any decoding."""
        fine = self.mix1(self.stage1(self.stem(x)))
        coarse = self.mix2(self.stage2(fine))
        up = F.interpolate(self.lateral(coarse), scale_factor=2.0, mode="nearest")
        fine = self.fuse(torch.cat([up, fine], 1))
        maps = [self.head_fine(fine), self.head_coarse(coarse)]
        return torch.cat([item.flatten(2) for item in maps], 2).transpose(1, 2)

    def boxes(self, raw: Tensor) -> Tensor:
        """Corners in pixels: a centre within 1.5 cells of the cell's own, a size as a power of e times the stride."""
        centres, strides = self.get_buffer("centres"), self.get_buffer("strides")
        middle = centres + (raw[..., 0:2].sigmoid() * 3 - 1.5) * strides
        half = raw[..., 2:4].clamp(-4, 3).exp() * strides
        return torch.cat([middle - half, middle + half], -1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raw = self.raw(x)
        objectness = raw[..., 4:5].sigmoid()
        return objectness * raw[..., 5:].sigmoid(), self.boxes(raw), objectness


def targets(labels: Array) -> tuple[Tensor, Tensor, Tensor]:
    """Which cells must answer: mask [n, cells], class [n, cells], box [n, cells, 4].

    A cell is responsible for an object if its centre lies within one stride of the object's, at the scale that suits
    the object's size; where two objects claim a cell the smaller one, listed last here, has it.
    """
    centres, strides = cell_centres()
    mask = np.zeros((len(labels), len(centres)), np.float32)
    kinds = np.zeros((len(labels), len(centres)), np.int64)
    boxes = np.zeros((len(labels), len(centres), 4), np.float32)
    for index, rows in enumerate(labels):
        area = (rows[:, 3] - rows[:, 1]) * (rows[:, 4] - rows[:, 2])
        for row in rows[np.argsort(-area)]:
            if row[0] < 0:
                continue
            middle = np.array([row[1] + row[3], row[2] + row[4]]) / 2
            stride = STRIDES[0] if max(row[3] - row[1], row[4] - row[2]) < 10 else STRIDES[1]
            near = (np.abs(centres - middle).max(axis=1) < 0.75 * stride) & (strides[:, 0] == stride)
            mask[index, near], kinds[index, near], boxes[index, near] = 1, int(row[0]), row[1:]
    return torch.from_numpy(mask), torch.from_numpy(kinds), torch.from_numpy(boxes)


def overlap_loss(boxes: Tensor, wanted: Tensor) -> Tensor:
    """1 - generalised IoU (Rezatofighi et al. 2019) of pairs of boxes, [n, 4] each; returns [n]."""
    low, high = torch.maximum(boxes[:, :2], wanted[:, :2]), torch.minimum(boxes[:, 2:], wanted[:, 2:])
    common = (high - low).clamp(min=0).prod(1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (wanted[:, 2:] - wanted[:, :2]).prod(1) - common
    hull = torch.maximum(boxes[:, 2:], wanted[:, 2:]) - torch.minimum(boxes[:, :2], wanted[:, :2])
    area = hull.prod(1)
    return 1 - common / union + (area - union) / area


def detector_shapes() -> Golden:
    """SiLU, Resize, Concat, Sigmoid, Exp, Clip and three outputs; opset 11, fixed batch of one."""
    seed, epochs = 21, 16
    seeded(seed)
    images, labels = data.scenes(3000, seed=15)
    test, test_labels = data.scenes(120, seed=16)
    net = Detector()
    x = torch.from_numpy(images)
    mask, kinds, boxes = targets(labels)

    def loss_of(rows: Tensor) -> Tensor:
        raw, on = net.raw(x[rows]), mask[rows] > 0
        objects = F.binary_cross_entropy_with_logits(raw[..., 4], mask[rows], reduction="sum")
        one_hot = F.one_hot(kinds[rows][on], CLASSES).float()
        classes = F.binary_cross_entropy_with_logits(raw[..., 5:][on], one_hot, reduction="sum")
        places = overlap_loss(net.boxes(raw)[on], boxes[rows][on]).sum()
        return (objects + classes + 2 * places) / on.sum()

    loss = fit(net, loss_of, samples=len(x), epochs=epochs, batch=32, rate=4e-3)
    model = _graph(weights_of(net)).model()

    def reference(feed: Feed) -> list[Array]:
        with torch.no_grad():
            return [item.numpy() for item in net(torch.from_numpy(feed["image"]))]

    return Golden(
        name="detector-shapes",
        description="Anchor-free detector of discs, squares and triangles: SiLU, two scales joined by Resize and "
        "Concat, boxes decoded in the graph, outputs scores, boxes (pixels) and objectness; fixed batch of one.",
        source=data.SYNTHETIC,
        model=model,
        reference=reference,
        calibration={"image": images[:32]},
        evaluation={"image": test},
        labels=test_labels,
        metric="detection-f1",
        seed=seed,
        training={"samples": len(images), "epochs": epochs, "last_epoch_loss": loss},
    )


def _graph(w: dict[str, Array]) -> GraphBuilder:
    """The detector's graph from its weights, BatchNorm folded."""
    g = GraphBuilder(11, "detector_shapes")

    def unit(value: str, name: str, stride: int = 1) -> str:
        value = g.conv(value, f"{name}.conv", *folded_batch_norm(w, f"{name}.conv", f"{name}.norm"), stride=stride)
        return g.add("Mul", value, g.add("Sigmoid", value, name=f"{name}.sigmoid"), name=f"{name}.silu")

    fine = unit(unit(unit(g.input("image", np.float32, [1, 3, 32, 32]), "stem", 2), "stage1", 2), "mix1")
    coarse = unit(unit(fine, "stage2", 2), "mix2")
    up = g.add(
        "Resize",
        unit(coarse, "lateral"),
        g.floats([], "roi"),
        g.floats([1, 1, 2, 2], "scales"),
        name="upsample",
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    fine = unit(g.add("Concat", up, fine, name="pyramid", axis=1), "fuse")
    channels = 5 + CLASSES
    maps = []
    for name, value, cells in (("head_fine", fine, CELLS[0]), ("head_coarse", coarse, CELLS[1])):
        value = g.conv(value, name, w[f"{name}.weight"], w[f"{name}.bias"])
        maps.append(g.reshape(value, [1, channels, cells], name=f"{name}.flat"))
    joined = g.add("Concat", *maps, name="heads", axis=2)
    joined = g.add("Transpose", joined, name="cells_first", perm=[0, 2, 1])
    place, size, objectness, kinds = g.add_many(
        "Split", joined, outputs=4, name="parts", axis=2, split=[2, 2, 1, CLASSES]
    )
    centres, strides = cell_centres()
    stride = g.weight("strides", strides[None])
    place = g.add("Mul", g.add("Sigmoid", place, name="place.sigmoid"), g.floats(3.0, "three"), name="place.scale")
    place = g.add("Mul", g.add("Sub", place, g.floats(1.5, "offset"), name="place.shift"), stride, name="place.pixels")
    place = g.add("Add", place, g.weight("centres", centres[None]), name="middle")
    half = g.add(
        "Exp", g.add("Clip", size, g.floats(-4.0, "low"), g.floats(3.0, "high"), name="size.clip"), name="size.exp"
    )
    half = g.add("Mul", half, stride, name="half")
    corners = g.add("Sub", place, half, name="corner0"), g.add("Add", place, half, name="corner1")
    boxes = g.add("Concat", *corners, name="corners", axis=2)
    objectness = g.add("Sigmoid", objectness, name="objectness.sigmoid")
    scores = g.add("Mul", objectness, g.add("Sigmoid", kinds, name="classes.sigmoid"), name="scores.product")
    total = sum(CELLS)
    g.output("scores", scores, np.float32, [1, total, CLASSES])
    g.output("boxes", boxes, np.float32, [1, total, 4])
    g.output("objectness", objectness, np.float32, [1, total, 1])
    return g
