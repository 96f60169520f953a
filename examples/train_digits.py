"""Train the bundled example: a small digit classifier that is right in FP32 and collapses in FP16.

The images are scikit-learn's ``load_digits`` (8x8 pixels, 0..16), brought to the range of a 12-bit sensor
(0..4095). The model standardises each image inside the graph, with the mean and the variance written out
in plain operators as an exported LayerNorm has them. The squares reach 1e7, FP16 ends at 65504: the
variance becomes infinite, each standardised image zero, and every image gets the same logits. Nothing is
NaN on the way out, which is what makes such a fault hard to see.

Writes the model, 64 labelled samples of the test set and a description of both::

    python examples/train_digits.py                  # into calib_data/ beside this folder
    python examples/train_digits.py --out /tmp/digits

Needs torch and scikit-learn, as nothing else in the project does. The results are committed, so only
somebody who wants to change the example has to run this. The same seed gives the same files on the same
machine and the same package versions; another CPU may differ in the last bits of the weights.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from torch import nn

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

OPSET = 17
IR_VERSION = 8  # the one that goes with opset 17; every onnxruntime and TensorRT in use reads it
CLASSES = 10
SAMPLES = 64
SENSOR_MAX = 4095.0  # 12 bits
DIGITS_MAX = 16.0
NORM_EPS = 1e-5  # what LayerNorm has by default
BN_EPS = 1e-5


@dataclass(frozen=True)
class Unit:
    """Conv, BatchNormalization and an activation: what the network is built of.

    ``add`` names an earlier unit whose output is added behind the BatchNormalization, ahead of the
    activation, as in a residual block.
    """

    name: str
    inputs: int
    outputs: int
    kernel: int
    act: str
    stride: int = 1
    groups: int = 1
    add: str = ""


# One list describes the network; forward() and build_onnx() both walk it, so they cannot drift apart.
UNITS = (
    Unit("stem", 1, 16, 3, "Relu"),
    Unit("block1/depthwise", 16, 16, 3, "HardSwish", groups=16),
    Unit("block1/pointwise", 16, 32, 1, "Relu"),
    Unit("block2/depthwise", 32, 32, 3, "Clip", groups=32),
    Unit("block2/pointwise", 32, 32, 1, "Relu", add="block1/pointwise"),
    Unit("block3/depthwise", 32, 32, 3, "Clip", stride=2, groups=32),
    Unit("block3/pointwise", 32, 48, 1, "Relu"),
)


def load_data() -> tuple[Floats, Ints, Floats, Ints]:
    """Give the training images and labels, then those of the test set (every third image).

    Images are float32 (n, 1, 8, 8) holding whole numbers in 0..4095, labels int64 (n,).
    """
    digits: Any = load_digits()
    counts = np.rint(digits.images * (SENSOR_MAX / DIGITS_MAX))  # a sensor counts in whole steps
    images: Floats = counts.astype(np.float32)[:, None]
    labels: Ints = digits.target.astype(np.int64)
    test = np.arange(len(labels)) % 3 == 0
    return images[~test], labels[~test], images[test], labels[test]


def build_net() -> nn.ModuleDict:
    """Give the untrained network: ``conv`` and ``bn`` for each unit (same order as UNITS), and ``head``."""
    convs = [
        nn.Conv2d(u.inputs, u.outputs, u.kernel, u.stride, u.kernel // 2, groups=u.groups, bias=False) for u in UNITS
    ]
    norms = [nn.BatchNorm2d(u.outputs, eps=BN_EPS) for u in UNITS]
    head = nn.Linear(UNITS[-1].outputs, CLASSES)
    return nn.ModuleDict({"conv": nn.ModuleList(convs), "bn": nn.ModuleList(norms), "head": head})


def forward(net: nn.ModuleDict, image: torch.Tensor) -> torch.Tensor:
    """Run the network: float32 (n, 1, 8, 8) sensor counts to float32 (n, 10) logits."""
    center = image - image.mean((1, 2, 3), keepdim=True)
    x = center / (center.pow(2).mean((1, 2, 3), keepdim=True) + NORM_EPS).sqrt()
    acts = {"Relu": F.relu, "HardSwish": F.hardswish, "Clip": F.relu6}
    done: dict[str, torch.Tensor] = {}
    layers: Any = net  # ModuleDict's values are typed as plain modules, which cannot be zipped over
    for unit, conv, norm in zip(UNITS, layers["conv"], layers["bn"], strict=True):
        x = norm(conv(x))
        if unit.add:
            x = x + done[unit.add]
        x = done[unit.name] = acts[unit.act](x)
    logits: torch.Tensor = layers["head"](x.mean((2, 3)))
    return logits


def shift(images: torch.Tensor) -> torch.Tensor:
    """Move every image by -1, 0 or +1 pixels each way, zeros coming in: float32 (n, 1, 8, 8), same out."""
    count = len(images)
    padded = F.pad(images, (1, 1, 1, 1))
    moves = torch.randint(0, 3, (count, 2))
    rows = moves[:, :1] + torch.arange(8)  # (n, 8)
    cols = moves[:, 1:] + torch.arange(8)
    index = torch.arange(count)[:, None, None]
    moved: torch.Tensor = padded[index, 0, rows[:, :, None], cols[:, None, :]]
    return moved[:, None]


def train(images: Floats, labels: Ints, seed: int, epochs: int, batch: int = 64) -> nn.ModuleDict:
    """Train on float32 (n, 1, 8, 8) images and int64 (n,) labels; give the network in evaluation mode."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # the order of the sums, and so the last bits, depends on the threads
    net = build_net()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    steps = len(x) // batch
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=epochs * steps)
    net.train()
    for _ in range(epochs):
        # The rest that does not fill a batch waits for another epoch's order: BatchNormalization's
        # statistics of a handful of images would be noise.
        order = torch.randperm(len(x))
        for start in range(0, steps * batch, batch):
            chosen = order[start : start + batch]
            loss = F.cross_entropy(forward(net, shift(x[chosen])), y[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            torch.autograd.backward(loss)  # loss.backward() is untyped in torch 2.13
            optimizer.step()
            schedule.step()
    net.eval()
    return net


class Graph:
    """Collects nodes and initializers; a node's output is named after the node."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        """Add a float32 initializer and give its name."""
        array = np.ascontiguousarray(np.asarray(value, dtype=np.float32))
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, name: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        """Add a node and give the name of its one output (``<name>_out`` unless told)."""
        output = output or f"{name}_out"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output


def build_onnx(net: nn.ModuleDict) -> onnx.ModelProto:
    """Write the trained network as ONNX, BatchNormalization kept as nodes of its own.

    Input ``image`` float32 (N, 1, 8, 8), output ``logits`` float32 (N, 10). Written by hand rather than
    exported: names a reader can follow, no exporter's leftovers, and no folding of BatchNormalization.
    """
    state: dict[str, Floats] = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    g = Graph()

    axes = [1, 2, 3]
    mean = g.node("ReduceMean", "/norm/mean", ["image"], axes=axes, keepdims=1)
    center = g.node("Sub", "/norm/center", ["image", mean])
    square = g.node("Pow", "/norm/square", [center, g.constant("norm.two", 2.0)])  # up to 1e7: the fault
    variance = g.node("ReduceMean", "/norm/variance", [square], axes=axes, keepdims=1)
    stable = g.node("Add", "/norm/add_eps", [variance, g.constant("norm.eps", NORM_EPS)])
    std = g.node("Sqrt", "/norm/std", [stable])
    x = g.node("Div", "/norm/div", [center, std])

    done: dict[str, str] = {}
    for i, unit in enumerate(UNITS):
        weight = g.constant(f"{unit.name}.weight".replace("/", "."), state[f"conv.{i}.weight"])
        x = g.node(
            "Conv",
            f"/{unit.name}/conv",
            [x, weight],
            kernel_shape=[unit.kernel] * 2,
            strides=[unit.stride] * 2,
            pads=[unit.kernel // 2] * 4,
            group=unit.groups,
        )
        parts = [
            g.constant(f"{unit.name}.bn.{part}".replace("/", "."), state[f"bn.{i}.{part}"])
            for part in ("weight", "bias", "running_mean", "running_var")
        ]
        x = g.node("BatchNormalization", f"/{unit.name}/bn", [x, *parts], epsilon=BN_EPS)
        if unit.add:
            x = g.node("Add", f"/{unit.name}/add", [x, done[unit.add]])
        bounds: list[str] = []
        if unit.act == "Clip":
            low, high = (f"{unit.name}.{end}".replace("/", ".") for end in ("min", "max"))
            bounds = [g.constant(low, 0.0), g.constant(high, 6.0)]
        x = done[unit.name] = g.node(unit.act, f"/{unit.name}/{unit.act.lower()}", [x, *bounds])

    pooled = g.node("GlobalAveragePool", "/head/pool", [x])
    flat = g.node("Flatten", "/head/flatten", [pooled], axis=1)
    head = [g.constant(f"head.{part}", state[f"head.{part}"]) for part in ("weight", "bias")]
    g.node("Gemm", "/head/gemm", [flat, *head], output="logits", transB=1)

    graph = helper.make_graph(
        g.nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        g.initializers,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="precisionlab examples/train_digits.py",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def choose_samples(labels: Ints, seed: int, count: int = SAMPLES) -> Ints:
    """Choose ``count`` indices into the int64 (n,) labels, as even over the classes as they go.

    The order is shuffled, so any first part of the samples has several classes in it too.
    """
    rng = np.random.default_rng(seed)
    each = np.full(CLASSES, count // CLASSES)
    each[rng.permutation(CLASSES)[: count % CLASSES]] += 1
    chosen = [rng.choice(np.flatnonzero(labels == c), n, replace=False) for c, n in enumerate(each)]
    picked: Ints = rng.permutation(np.concatenate(chosen))
    return picked


DATASET = """\
# Written by examples/train_digits.py.
# The digits are scikit-learn's copy of the test set of "Optical Recognition of Handwritten Digits"
# (E. Alpaydin, C. Kaynak; UCI Machine Learning Repository, CC BY 4.0), scaled from 0..16 to 0..4095.
name = "digits"
description = "Handwritten digits, 8x8, as a 12-bit sensor gives them; the variance overflows FP16"
model = "digits.onnx"

[inputs.image]
dtype = "float32"

[labels]
file = "labels.csv"
metric = "accuracy"
output = "logits"
"""


def write_dataset(folder: Path, images: Floats, labels: Ints) -> None:
    """Write one .npz a sample (key ``image``, float32 (1, 1, 8, 8)), labels.csv and dataset.toml."""
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["sample", "label"])
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = f"{i:04d}.npz"
            np.savez(folder / name, image=image[None])
            table.writerow([name, int(label)])
    (folder / "dataset.toml").write_text(DATASET, encoding="utf-8")


def main() -> None:
    """Train, write everything, and say how good the network is on the test set."""
    default = Path(__file__).resolve().parent.parent / "calib_data"
    parser = argparse.ArgumentParser(description="Train the bundled digits example and write its data set.")
    parser.add_argument("--out", type=Path, default=default, help="folder to write to (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=60)
    args = parser.parse_args()

    train_images, train_labels, test_images, test_labels = load_data()
    net = train(train_images, train_labels, args.seed, args.epochs)
    with torch.no_grad():
        logits: Floats = forward(net, torch.from_numpy(test_images)).numpy()
    right = int((logits.argmax(1) == test_labels).sum())
    print(f"test accuracy {right / len(test_labels):.4f} ({right} of {len(test_labels)})")

    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "digits.onnx"
    path.write_bytes(build_onnx(net).SerializeToString(deterministic=True))
    chosen = choose_samples(test_labels, args.seed)
    write_dataset(args.out, test_images[chosen], test_labels[chosen])
    print(f"{path}: {path.stat().st_size} bytes, and {len(chosen)} samples beside it")


if __name__ == "__main__":
    main()
