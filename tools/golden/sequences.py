"""Sequence models: a bidirectional LSTM, a GRU over characters, and a denoiser with transposed convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tools.golden import data, text
from tools.golden.builder import GraphBuilder
from tools.golden.images import torch_outputs
from tools.golden.record import Golden
from tools.golden.training import classify, fit, seeded, weights_of

Array = NDArray[Any]


def emit_recurrent(
    g: GraphBuilder, op: str, x: str, w: dict[str, Array], key: str, layer: int, name: str, *, both_ways: bool = False
) -> tuple[str, str]:
    """One layer of torch's LSTM or GRU on a [length, batch, features] value; returns Y and Y_h.

    The gates change places: torch keeps i, f, g, o and r, z, n; ONNX i, o, f, c and z, r, h.
    """
    gates = [0, 3, 1, 2] if op == "LSTM" else [1, 0, 2]
    suffixes = ["", "_reverse"] if both_ways else [""]

    def stacked(part: str) -> Array:
        blocks = [np.split(w[f"{key}.{part}_l{layer}{suffix}"], len(gates)) for suffix in suffixes]
        return np.stack([np.concatenate([block[gate] for gate in gates]) for block in blocks])

    kernel = g.weight(f"{name}.W", stacked("weight_ih"))
    recurrence = g.weight(f"{name}.R", stacked("weight_hh"))
    bias = g.weight(f"{name}.B", np.concatenate([stacked("bias_ih"), stacked("bias_hh")], axis=1))
    attributes: dict[str, Any] = {"hidden_size": w[f"{key}.weight_hh_l{layer}"].shape[1]}
    if both_ways:
        attributes["direction"] = "bidirectional"
    if op == "GRU":
        attributes["linear_before_reset"] = 1
    y, last = g.add_many(op, x, kernel, recurrence, bias, outputs=2, name=name, **attributes)
    return y, last


# -- LSTM ---------------------------------------------------------------------------------------------------------
class GestureNet(nn.Module):
    """Bidirectional LSTM, mean over time, linear."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, hidden, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * hidden, len(data.GESTURES))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(x)[0].mean(1))
        return logits


def lstm_gestures() -> Golden:
    """Bidirectional LSTM on motion traces; opset 10, dynamic batch."""
    seed, epochs, hidden = 18, 15, 48
    seeded(seed)
    traces, labels = data.gestures(2000, seed=9)
    test, test_labels = data.gestures(200, seed=10)
    net = GestureNet(hidden)
    loss = classify(net, traces, labels, epochs=epochs, rate=8e-3)
    w = weights_of(net)

    g = GraphBuilder(10, "lstm_gestures")
    x = g.input("trace", np.float32, ["N", 48, 3])
    x = g.add("Transpose", x, name="time_first", perm=[1, 0, 2])
    y, _ = emit_recurrent(g, "LSTM", x, w, "lstm", 0, "lstm", both_ways=True)  # [time, 2, batch, hidden]
    y = g.add("Transpose", y, name="join/Transpose", perm=[2, 0, 1, 3])
    y = g.reduce_mean(g.reshape(y, [0, 0, -1], name="join/Reshape"), [1], keepdims=False, name="mean")
    g.output("logits", g.gemm(y, "head", w["head.weight"], w["head.bias"]), np.float32, ["N", len(data.GESTURES)])
    return Golden(
        name="lstm-gestures",
        description="Bidirectional LSTM that tells gestures from three-axis motion, mean over time; dynamic batch.",
        source=data.SYNTHETIC,
        model=g.model(),
        reference=lambda feed: torch_outputs(net, "trace", feed),
        calibration={"trace": traces[:64]},
        evaluation={"trace": test},
        labels=test_labels,
        metric="accuracy",
        seed=seed,
        training={"samples": len(traces), "epochs": epochs, "last_epoch_loss": loss},
    )


# -- GRU ----------------------------------------------------------------------------------------------------------
class WordNet(nn.Module):
    """Embedding, two GRU layers, linear on the last state."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(text.ALPHABET), width)
        self.gru = nn.GRU(width, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, len(text.LANGUAGES))

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.gru(self.embed(ids))[1][-1])
        return logits


def gru_words() -> Golden:
    """Two GRU layers over characters; opset 14, dynamic batch and length, samples of differing lengths."""
    seed, epochs = 19, 12
    seeded(seed)
    train, labels = text.words(2000, seed=11)
    test, test_labels = text.words(200, seed=12)
    net = WordNet(24, 48)
    # Training batches are padded in front with spaces, which real samples never have: the last state is the word's.
    longest = max(len(word) for word in train)
    padded = np.stack([np.concatenate([np.full(longest - len(word), 1), word]) for word in train])
    both, both_labels = torch.from_numpy(padded), torch.from_numpy(labels)
    lengths = torch.tensor([len(word) for word in train])

    def loss_of(rows: Tensor) -> Tensor:
        x = both[rows][:, longest - int(lengths[rows].max()) :]
        return F.cross_entropy(net(x), both_labels[rows])

    loss = fit(net, loss_of, samples=len(train), epochs=epochs, batch=32, rate=6e-3)
    w = weights_of(net)

    g = GraphBuilder(14, "gru_words")
    ids = g.input("char_ids", np.int64, ["batch", "length"])
    x = g.add("Gather", g.weight("embed.weight", w["embed.weight"]), ids, name="/embed/Gather")
    x = g.add("Transpose", x, name="/gru/Transpose", perm=[1, 0, 2])
    y, _ = emit_recurrent(g, "GRU", x, w, "gru", 0, "/gru/layer0")
    y = g.squeeze(y, [1], name="/gru/Squeeze")
    _, last = emit_recurrent(g, "GRU", y, w, "gru", 1, "/gru/layer1")
    last = g.squeeze(last, [0], name="/gru/last")
    logits = g.gemm(last, "/head", w["head.weight"], w["head.bias"])
    g.output("logits", logits, np.float32, ["batch", len(text.LANGUAGES)])
    return Golden(
        name="gru-words",
        description="Two GRU layers that guess the (invented) language of a word from its characters; dynamic batch "
        "and length, samples of differing lengths.",
        source=data.SYNTHETIC,
        model=g.model(),
        reference=lambda feed: torch_outputs(net, "char_ids", feed),
        calibration={f"char_ids/{index:06d}": word[None] for index, word in enumerate(train[:64])},
        evaluation={f"char_ids/{index:06d}": word[None] for index, word in enumerate(test)},
        labels=test_labels,
        metric="accuracy",
        seed=seed,
        training={"samples": len(train), "epochs": epochs, "last_epoch_loss": loss},
    )


# -- denoiser -----------------------------------------------------------------------------------------------------
class Denoiser(nn.Module):
    """A U-shaped network over time: strided convolutions, InstanceNorm, LeakyReLU, PReLU, transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, 16, 9, padding=4)
        self.down1, self.norm1 = nn.Conv1d(16, 32, 5, 2, padding=2), nn.InstanceNorm1d(32, affine=True)
        self.down2, self.norm2 = nn.Conv1d(32, 48, 5, 2, padding=2), nn.InstanceNorm1d(48, affine=True)
        self.up1, self.act1 = nn.ConvTranspose1d(48, 32, 4, 2, padding=1), nn.PReLU(32)
        self.up2, self.act2 = nn.ConvTranspose1d(64, 16, 4, 2, padding=1), nn.PReLU(16)
        self.last = nn.Conv1d(32, 1, 9, padding=4)

    def forward(self, x: Tensor) -> Tensor:
        a = F.leaky_relu(self.stem(x), 0.1)
        b = F.leaky_relu(self.norm1(self.down1(a)), 0.1)
        c = F.leaky_relu(self.norm2(self.down2(b)), 0.1)
        d = torch.cat([self.act1(self.up1(c)), b], 1)
        e = torch.cat([self.act2(self.up2(d)), a], 1)
        clean: Tensor = self.last(e)
        return clean


def denoiser_waves() -> Golden:
    """ConvTranspose, InstanceNormalization, LeakyRelu, PRelu and Concat in one dimension; opset 17, dynamic length."""
    seed, epochs, length = 20, 10, 192
    seeded(seed)
    noisy, clean = data.noisy_waves(1500, length, seed=13)
    test, test_clean = data.noisy_waves(64, length, seed=14)
    net = Denoiser()
    x, y = torch.from_numpy(noisy), torch.from_numpy(clean)
    loss = fit(net, lambda rows: F.mse_loss(net(x[rows]), y[rows]), samples=len(x), epochs=epochs, batch=32, rate=4e-3)
    w = weights_of(net)

    g = GraphBuilder(17, "denoiser_waves")
    value = g.input("noisy", np.float32, ["N", 1, "T"])
    a = g.add("LeakyRelu", g.conv(value, "stem", w["stem.weight"], w["stem.bias"]), name="stem/act", alpha=0.1)

    def down(value: str, index: int) -> str:
        value = g.conv(value, f"down{index}", w[f"down{index}.weight"], w[f"down{index}.bias"], stride=2)
        scale = [g.weight(f"norm{index}.{part}", w[f"norm{index}.{part}"]) for part in ("weight", "bias")]
        value = g.add("InstanceNormalization", value, *scale, name=f"norm{index}", epsilon=1e-5)
        return g.add("LeakyRelu", value, name=f"down{index}/act", alpha=0.1)

    def up(value: str, beside: str, index: int) -> str:
        weights = [g.weight(f"up{index}.{part}", w[f"up{index}.{part}"]) for part in ("weight", "bias")]
        value = g.add("ConvTranspose", value, *weights, name=f"up{index}", kernel_shape=[4], strides=[2], pads=[1, 1])
        slope = g.weight(f"up{index}.slope", w[f"act{index}.weight"][:, None])
        return g.add("Concat", g.add("PRelu", value, slope, name=f"up{index}/act"), beside, name=f"join{index}", axis=1)

    b = down(a, 1)
    value = up(up(down(b, 2), b, 1), a, 2)
    g.output("clean", g.conv(value, "last", w["last.weight"], w["last.bias"]), np.float32, ["N", 1, "T"])
    calibration = {f"noisy/{index:06d}": noisy[index : index + 1, :, : 128 + 32 * (index % 3)] for index in range(48)}
    return Golden(
        name="denoiser-waves",
        description="U-shaped 1-D network that removes noise from waves: ConvTranspose, InstanceNormalization, "
        "LeakyRelu, PRelu, Concat; dynamic batch and length (a multiple of 4), calibration samples of three lengths.",
        source=data.SYNTHETIC,
        model=g.model(),
        reference=lambda feed: torch_outputs(net, "noisy", feed),
        calibration=calibration,
        evaluation={"noisy": test},
        labels=test_clean,
        metric="signal-to-noise-db",
        seed=seed,
        training={"samples": len(x), "epochs": epochs, "last_epoch_loss": loss},
    )
