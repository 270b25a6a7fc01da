"""Transformers: an image encoder, a text encoder with an attention mask, and a decoder language model."""

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
from tools.golden.record import Feed, Golden
from tools.golden.training import classify, fit, seeded, weights_of

Array = NDArray[Any]

LOWEST = float(np.finfo(np.float32).min)  # -3.4e38: what exporters add to, or put in place of, masked scores


class Attention(nn.Module):
    """Multi-head self-attention with separate projections."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(width, width, bias=bias)
        self.value = nn.Linear(width, width, bias=bias)
        self.output = nn.Linear(width, width, bias=bias)

    def split(self, x: Tensor) -> Tensor:
        """[batch, length, width] to [batch, heads, length, width / heads]."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Softmax attention; ``mask`` is added to the scores."""
        scores = q @ k.transpose(-1, -2) / (q.shape[-1] ** 0.5)
        if mask is not None:
            scores = scores + mask
        mixed: Tensor = self.output((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return mixed

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.attend(self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x)), mask)


class EncoderLayer(nn.Module):
    """Attention and a GELU feed-forward part, LayerNorm before (``first``) or after each."""

    def __init__(self, width: int, heads: int, hidden: int, norm_first: bool) -> None:
        super().__init__()
        self.attention = Attention(width, heads, bias=True)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm_first = norm_first

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.norm_first:
            x = x + self.attention(self.norm1(x), mask)
            return torch.add(x, self.down(F.gelu(self.up(self.norm2(x)))))
        x = self.norm1(x + self.attention(x, mask))
        normed: Tensor = self.norm2(x + self.down(F.gelu(self.up(x))))
        return normed


# -- shared pieces of the graphs ----------------------------------------------------------------------------------
def emit_attention(
    g: GraphBuilder, x: str, w: dict[str, Array], key: str, name: str, heads: int, mask: str | None
) -> str:
    """Attention with constant Reshape and Transpose, scores divided by sqrt(head width), then the mask added."""
    width = w[f"{key}.query.weight"].shape[0]
    parts = {}
    for part, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
        y = g.linear(x, f"{name}/{part}", w[f"{key}.{part}.weight"], w[f"{key}.{part}.bias"])
        y = g.reshape(y, [0, 0, heads, width // heads], name=f"{name}/{part}/Reshape")
        parts[part] = g.add("Transpose", y, name=f"{name}/{part}/Transpose", perm=order)
    scores = g.add("MatMul", parts["query"], parts["key"], name=f"{name}/scores")
    scores = g.add("Div", scores, g.floats((width // heads) ** 0.5, "root"), name=f"{name}/scale")
    if mask is not None:
        scores = g.add("Add", scores, mask, name=f"{name}/mask")
    weights = g.add("Softmax", scores, name=f"{name}/softmax", axis=-1)
    y = g.add("MatMul", weights, parts["value"], name=f"{name}/mix")
    y = g.add("Transpose", y, name=f"{name}/Transpose", perm=[0, 2, 1, 3])
    y = g.reshape(y, [0, 0, width], name=f"{name}/Reshape")
    return g.linear(y, f"{name}/output", w[f"{key}.output.weight"], w[f"{key}.output.bias"])


def emit_layer_norm(g: GraphBuilder, x: str, w: dict[str, Array], key: str, name: str) -> str:
    """LayerNormalization where the opset has it (17), else the eight nodes of its definition."""
    scale, shift = g.weight(f"{name}.weight", w[f"{key}.weight"]), g.weight(f"{name}.bias", w[f"{key}.bias"])
    if g.opset >= 17:
        return g.add("LayerNormalization", x, scale, shift, name=name, axis=-1, epsilon=1e-5)
    centred = g.add("Sub", x, g.reduce_mean(x, [-1], True, name=f"{name}/mean"), name=f"{name}/Sub")
    square = g.add("Pow", centred, g.floats(2.0, "two"), name=f"{name}/Pow")
    variance = g.add("Add", g.reduce_mean(square, [-1], True, name=f"{name}/variance"), g.floats(1e-5, "epsilon"))
    y = g.add("Div", centred, g.add("Sqrt", variance, name=f"{name}/Sqrt"), name=f"{name}/Div")
    return g.add("Add", g.add("Mul", y, scale, name=f"{name}/Mul"), shift, name=f"{name}/Add")


def emit_gelu(g: GraphBuilder, x: str, name: str) -> str:
    """Gelu where the opset has it (20), else x/sqrt(2) -> Erf -> +1 -> *x -> *0.5, as torch's exporter writes it."""
    if g.opset >= 20:
        return g.add("Gelu", x, name=name)
    y = g.add("Erf", g.add("Div", x, g.floats(2**0.5, "root_two"), name=f"{name}/Div"), name=f"{name}/Erf")
    y = g.add("Mul", x, g.add("Add", y, g.floats(1.0, "one"), name=f"{name}/Add"), name=f"{name}/Mul")
    return g.add("Mul", y, g.floats(0.5, "half"), name=f"{name}/Mul_half")


def emit_feed_forward(g: GraphBuilder, x: str, w: dict[str, Array], key: str, name: str) -> str:
    """Linear, GELU, linear."""
    y = emit_gelu(g, g.linear(x, f"{name}/up", w[f"{key}.up.weight"], w[f"{key}.up.bias"]), f"{name}/gelu")
    return g.linear(y, f"{name}/down", w[f"{key}.down.weight"], w[f"{key}.down.bias"])


# -- image encoder ------------------------------------------------------------------------------------------------
class VisionTransformer(nn.Module):
    """Patches of 2x2, a class token, learned positions, two layers with LayerNorm first."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 17, width) * 0.02)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, hidden, norm_first=True) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


def vit_digits() -> Golden:
    """LayerNormalization and Gelu as single ops; opset 21."""
    seed, split = 15, data.digits()
    seeded(seed)
    width, heads, hidden = 48, 4, 96
    net = VisionTransformer(width, heads, hidden)
    epochs = 40
    loss = classify(net, split.train, split.train_labels, epochs=epochs, rate=3e-3, decay=0.05)
    w = weights_of(net)

    g = GraphBuilder(21, "vit_digits")
    x = g.input("image", np.float32, [1, 1, 8, 8])
    patches = [g.weight("patch.weight", w["patch.weight"]), g.weight("patch.bias", w["patch.bias"])]
    x = g.add("Conv", x, *patches, name="patch", kernel_shape=[2, 2], strides=[2, 2])
    x = g.add("Transpose", g.reshape(x, [0, width, -1], name="patch/Reshape"), name="patch/Transpose", perm=[0, 2, 1])
    x = g.add("Concat", g.weight("token", w["token"]), x, name="token/Concat", axis=1)
    x = g.add("Add", x, g.weight("position", w["position"]), name="position/Add")
    for index in range(2):
        key = f"layers.{index}"
        y = emit_layer_norm(g, x, w, f"{key}.norm1", f"{key}/norm1")
        x = g.add("Add", x, emit_attention(g, y, w, f"{key}.attention", f"{key}/attention", heads, None))
        y = emit_layer_norm(g, x, w, f"{key}.norm2", f"{key}/norm2")
        x = g.add("Add", x, emit_feed_forward(g, y, w, key, f"{key}/ffn"))
    x = emit_layer_norm(g, x, w, "norm", "norm")
    x = g.add("Gather", x, g.ints(0, "zero"), name="token/Gather", axis=1)
    g.output("logits", g.gemm(x, "head", w["head.weight"], w["head.bias"]), np.float32, [1, 10])
    return Golden(
        name="vit-digits",
        description="Vision transformer for handwritten digits: native LayerNormalization and Gelu, fixed batch.",
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


# -- text encoder -------------------------------------------------------------------------------------------------
class TextEncoder(nn.Module):
    """BERT in small: embeddings and learned positions, two layers with LayerNorm last, a pooled first token."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.words = nn.Embedding(len(text.WORDS), width)
        self.positions = nn.Embedding(text.STATEMENTS_LENGTH, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, hidden, norm_first=False) for _ in range(2))
        self.pool = nn.Linear(width, width)
        self.head = nn.Linear(width, len(text.MOODS))

    def forward(self, ids: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        mask = (1.0 - attention[:, None, None, :].float()) * LOWEST
        x = self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]])
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(torch.tanh(self.pool(x[:, 0]))), x


def encoder_moods() -> Golden:
    """LayerNorm and GELU written out, a padding mask times -3.4e38, dynamic batch and length; opset 13."""
    seed, epochs = 16, 6
    seeded(seed)
    ids, attention, labels = text.statements(12000, seed=5)
    test, test_attention, test_labels = text.statements(160, seed=6)
    heads = 4
    net = TextEncoder(48, heads, 96)
    x, m, y = torch.from_numpy(ids), torch.from_numpy(attention), torch.from_numpy(labels)
    loss = fit(
        net,
        lambda rows: F.cross_entropy(net(x[rows], m[rows])[0], y[rows]),
        samples=len(ids),
        epochs=epochs,
        rate=2e-3,
    )
    w = weights_of(net)

    g = GraphBuilder(13, "encoder_moods")
    tokens = g.input("input_ids", np.int64, ["batch", "length"])
    mask = g.input("attention_mask", np.int64, ["batch", "length"])
    mask = g.unsqueeze(mask, [1, 2], name="mask/Unsqueeze")
    mask = g.add("Sub", g.floats(1.0, "one"), g.add("Cast", mask, name="mask/Cast", to=1), name="mask/Sub")
    mask = g.add("Mul", mask, g.floats(LOWEST, "lowest"), name="mask/Mul")
    length = g.add(
        "Gather", g.add("Shape", tokens, name="positions/Shape"), g.ints([1], "one"), name="positions/Gather"
    )
    words = g.add("Gather", g.weight("words.weight", w["words.weight"]), tokens, name="words/Gather")
    table = g.weight("positions.weight", w["positions.weight"])
    positions = g.add("Slice", table, g.ints([0]), length, g.ints([0]), name="positions/Slice")
    value = g.add("Add", words, positions, name="embed/Add")
    value = emit_layer_norm(g, value, w, "norm", "embed/norm")
    for index in range(2):
        key = f"layers.{index}"
        mixed = emit_attention(g, value, w, f"{key}.attention", f"{key}/attention", heads, mask)
        value = emit_layer_norm(g, g.add("Add", value, mixed), w, f"{key}.norm1", f"{key}/norm1")
        mixed = emit_feed_forward(g, value, w, key, f"{key}/ffn")
        value = emit_layer_norm(g, g.add("Add", value, mixed), w, f"{key}.norm2", f"{key}/norm2")
    first = g.add("Gather", value, g.ints(0, "zero"), name="pool/Gather", axis=1)
    pooled = g.add("Tanh", g.gemm(first, "pool", w["pool.weight"], w["pool.bias"]), name="pool/Tanh")
    g.output("logits", g.gemm(pooled, "head", w["head.weight"], w["head.bias"]), np.float32, ["batch", 4])
    g.output("hidden", value, np.float32, ["batch", "length", 48])

    def reference(feed: Feed) -> list[Array]:
        with torch.no_grad():
            results = net(torch.from_numpy(feed["input_ids"]), torch.from_numpy(feed["attention_mask"]))
        return [item.numpy() for item in results]

    return Golden(
        name="encoder-moods",
        description="Text encoder that sums up the moods in a few statements: decomposed LayerNorm and "
        "GELU, padding mask of -3.4e38, dynamic batch and length, two outputs.",
        source=data.SYNTHETIC,
        model=g.model(),
        reference=reference,
        calibration={"input_ids": ids[:64], "attention_mask": attention[:64]},
        evaluation={"input_ids": test, "attention_mask": test_attention},
        labels=test_labels,
        metric="accuracy",
        seed=seed,
        training={"samples": len(ids), "epochs": epochs, "last_epoch_loss": loss},
    )


# -- decoder language model ---------------------------------------------------------------------------------------
class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-5) * weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * self.weight


class DecoderLayer(nn.Module):
    """Rotary attention and a SwiGLU feed-forward part, RMSNorm before each."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads, bias=False)
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        a, y = self.attention, self.norm1(x)
        q, k = (
            part * cos + torch.cat([-part.chunk(2, -1)[1], part.chunk(2, -1)[0]], -1) * sin
            for part in (a.split(a.query(y)), a.split(a.key(y)))
        )
        x = x + a.attend(q, k, a.split(a.value(y)), mask)
        y = self.norm2(x)
        return torch.add(x, self.down(F.silu(self.gate(y)) * self.up(y)))


class Decoder(nn.Module):
    """LLaMA in small; the embedding is the head's weight too."""

    def __init__(self, width: int, heads: int, hidden: int, longest: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(text.ALPHABET), width)
        nn.init.normal_(self.embed.weight, std=0.1)
        self.layers = nn.ModuleList(DecoderLayer(width, heads, hidden) for _ in range(2))
        self.norm = RMSNorm(width)
        half = width // heads // 2
        angles = torch.arange(longest)[:, None] * 100.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angles.cos().repeat(1, 2))
        self.register_buffer("sin", angles.sin().repeat(1, 2))

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        mask = torch.full((length, length), LOWEST).triu(1)
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, self.get_buffer("cos")[:length], self.get_buffer("sin")[:length], mask)
        return F.linear(self.norm(x), self.embed.weight)


def decoder_stories() -> Golden:
    """RMSNorm, rotary positions, SwiGLU, causal mask from Range and Where, tied embedding; opset 18."""
    seed, epochs, length, longest = 17, 6, 64, 128
    width, heads, hidden = 64, 4, 128
    seeded(seed)
    windows = text.character_windows(4000, length, seed=7)
    test = text.character_windows(48, length, seed=8)
    net = Decoder(width, heads, hidden, longest)
    x = torch.from_numpy(windows)
    loss = fit(
        net,
        lambda rows: F.cross_entropy(net(x[rows, :-1]).flatten(0, 1), x[rows, 1:].flatten()),
        samples=len(x),
        epochs=epochs,
        batch=32,
        rate=4e-3,
    )
    g = _decoder_graph(weights_of(net), width, heads)
    return Golden(
        name="decoder-stories",
        description="Decoder language model over characters: RMSNorm, rotary positions, SwiGLU, causal mask, tied "
        "embedding and head, dynamic batch and length (at most 128).",
        source=data.SYNTHETIC,
        model=g.model(),
        reference=lambda feed: torch_outputs(net, "input_ids", feed),
        calibration={"input_ids": windows[:64, :-1]},
        evaluation={"input_ids": test[:, :-1]},
        labels=test[:, 1:],
        metric="next-token-loss",
        seed=seed,
        training={"samples": len(windows), "epochs": epochs, "last_epoch_loss": loss},
    )


def _decoder_graph(w: dict[str, Array], width: int, heads: int) -> GraphBuilder:
    """The decoder's graph from its weights."""
    g = GraphBuilder(18, "decoder_stories")
    head_width = width // heads
    epsilon, one = g.floats(1e-5, "epsilon"), g.ints(1, "one")

    def norm(x: str, name: str) -> str:
        square = g.reduce_mean(g.add("Mul", x, x, name=f"{name}/square"), [-1], True, name=f"{name}/mean")
        root = g.add("Sqrt", g.add("Add", square, epsilon, name=f"{name}/Add"), name=f"{name}/Sqrt")
        y = g.add("Mul", x, g.add("Reciprocal", root, name=f"{name}/Reciprocal"), name=f"{name}/Mul")
        return g.add("Mul", g.weight(f"{name}.weight", w[f"{name}.weight"]), y, name=f"{name}/scale")

    tokens = g.input("input_ids", np.int64, ["batch", "length"])
    shape = g.add("Shape", tokens, name="shape")
    batch = g.add("Gather", shape, g.ints([0], "first"), name="shape/batch")
    length = g.add("Gather", shape, one, name="shape/length")
    positions = g.add("Range", g.ints(0, "zero"), length, one, name="positions")
    split_shape = g.add("Concat", batch, g.ints([-1, heads, head_width]), name="split_shape", axis=0)
    visible = g.add("LessOrEqual", g.unsqueeze(positions, [0]), g.unsqueeze(positions, [1]), name="mask/visible")
    mask = g.add("Where", visible, g.floats(0.0, "zero_f"), g.floats(LOWEST, "lowest"), name="mask/Where")
    cos = g.add("Gather", g.weight("rotary.cos", w["cos"]), positions, name="rotary/cos")
    sin = g.add("Gather", g.weight("rotary.sin", w["sin"]), positions, name="rotary/sin")

    def rotate(x: str, name: str) -> str:
        low, high = g.add_many("Split", x, outputs=2, name=f"{name}/Split", axis=-1, num_outputs=2)
        turned = g.add("Concat", g.add("Neg", high, name=f"{name}/Neg"), low, name=f"{name}/Concat", axis=-1)
        straight = g.add("Mul", x, cos, name=f"{name}/Mul_cos")
        return g.add("Add", straight, g.add("Mul", turned, sin, name=f"{name}/Mul_sin"), name=f"{name}/Add")

    x = g.add("Gather", g.weight("embed.weight", w["embed.weight"]), tokens, name="embed/Gather")
    for index in range(2):
        key = f"layers.{index}"
        y = norm(x, f"{key}.norm1")
        parts = {}
        for part in ("query", "key", "value"):
            z = g.linear(y, f"{key}.attention.{part}", w[f"{key}.attention.{part}.weight"])
            z = g.add("Reshape", z, split_shape, name=f"{key}/{part}/Reshape")
            z = g.add("Transpose", z, name=f"{key}/{part}/Transpose", perm=[0, 2, 1, 3])
            parts[part] = z if part == "value" else rotate(z, f"{key}/{part}/rotary")
        turned = g.add("Transpose", parts["key"], name=f"{key}/key/Transpose", perm=[0, 1, 3, 2])
        scores = g.add("MatMul", parts["query"], turned, name=f"{key}/scores")
        scores = g.add("Mul", scores, g.floats(head_width**-0.5, "scale"), name=f"{key}/scale")
        scores = g.add("Softmax", g.add("Add", scores, mask, name=f"{key}/mask"), name=f"{key}/softmax", axis=-1)
        z = g.add("MatMul", scores, parts["value"], name=f"{key}/mix")
        z = g.add("Transpose", z, name=f"{key}/mix/Transpose", perm=[0, 2, 1, 3])
        z = g.reshape(z, [0, 0, width], name=f"{key}/mix/Reshape")
        x = g.add("Add", x, g.linear(z, f"{key}.attention.output", w[f"{key}.attention.output.weight"]))
        y = norm(x, f"{key}.norm2")
        gate = g.linear(y, f"{key}.gate", w[f"{key}.gate.weight"])
        gate = g.add("Mul", gate, g.add("Sigmoid", gate, name=f"{key}/Sigmoid"), name=f"{key}/silu")
        y = g.add("Mul", gate, g.linear(y, f"{key}.up", w[f"{key}.up.weight"]), name=f"{key}/glu")
        x = g.add("Add", x, g.linear(y, f"{key}.down", w[f"{key}.down.weight"]))
    head = g.add("Transpose", "embed.weight", name="head/Transpose", perm=[1, 0])
    logits = g.add("MatMul", norm(x, "norm"), head, name="head/MatMul")
    g.output("logits", logits, np.float32, ["batch", "length", len(text.ALPHABET)])
    return g
