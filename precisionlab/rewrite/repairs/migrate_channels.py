"""Channels of an activation that int8 leaves few steps, at powers of two that the weights behind take back.

Activations have one int8 scale, and its largest channel takes it; weights have one for each output. So a channel that
is made smaller in front of a product, and its weights larger, costs the others less. That is free where both fold into
constants that are there: the scale and shift of a normalisation, the factor of a GELU, weights and bias of another
product (through ReLU, a transpose, Softmax · V), and on the other side the weights of all products that take it. What
is taken by something else too, as by a residual sum, is computed a second time for the products, where it is a
normalisation or a factor and a shift, and never where it is a product; a Mul of its own is not put in.
Source: M. Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", ICCV 2019, section
4.1; G. Xiao et al., "SmoothQuant", ICML 2023.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from precisionlab.model import Model
from precisionlab.model.repair import Exactness, Repair
from precisionlab.precision import Format, Precision
from precisionlab.rewrite.repairs.base import Proposal, Sight, node_of, refused
from precisionlab.rewrite.repairs.channel_noise import ChannelNoise, Largest, Scales, held_normal, noise_of
from precisionlab.rewrite.repairs.channel_region import ChannelRegion, apply, captured, channel_region
from precisionlab.rewrite.repairs.channel_starts import copied, is_copy, original_name, start_of
from precisionlab.rewrite.repairs.profiles import BlockedError
from precisionlab.rewrite.repairs.scale_text import read_scales, scale_texts

_ALPHAS = (0.5, 0.65, 0.8, 1.0)
_POWERS = (0.25, 0.35, 0.5)
_TRIED = tuple(round(0.3 + step / 20, 2) for step in range(15))
_RANGES: Mapping[str, Largest] = {
    "typical": lambda values: values.typical,
    "largest": lambda values: values.largest,
}
"""How a channel's range is told: by the mean of the samples' largest, which one sample does not rule, or by all."""


@dataclass(frozen=True)
class Group:
    """Channels that are scaled together.

    `product` is the node that they were found at, of `layer`; `taking` the nodes that quantise a value of the region,
    `takers` their layers, `copies` the nodes that are computed a second time.
    """

    product: str
    layer: str
    region: ChannelRegion
    taking: tuple[ir.Node, ...]
    takers: tuple[str, ...]
    copies: tuple[str, ...]

    def repair(self, scales: Scales) -> Repair:
        """The repair with these scales."""
        nodes = sorted(str(node.name) for node in self.region.nodes if node.name != self.product)
        twice = [original_name(name) for name in self.copies]
        conditions = (f"{', '.join(twice)}: computed twice, as more than products take it",) if twice else ()
        return Repair(
            MigrateChannels.name,
            Exactness.BITWISE,
            self.layer,
            (self.product, *nodes),
            scale_texts(scales),
            conditions,
        )


@dataclass(frozen=True)
class Migration:
    """A repair, and the layers whose quantised operands it scales."""

    repair: Repair
    takers: tuple[str, ...]

    @property
    def place(self) -> str:
        """The product that it was found at."""
        return self.repair.nodes[0]


class MigrateChannels:
    """Powers of two of channels, moved from activations into weights."""

    name = "migrate_channels"
    title = "channels' powers of two moved into weights"

    def find(self, sight: Sight) -> Iterator[Proposal]:
        """One for each group of channels, with the scales that the least noise is estimated of."""
        for one in self.choices(sight).get(_least("typical"), ()):
            yield Proposal(one.repair, frozenset(one.takers))

    def choices(self, sight: Sight) -> Mapping[str, tuple[Migration, ...]]:
        """By each rule for scales the repairs of all groups; which is best of a group, evaluations say."""
        if not sight.number_format.is_quantized or sight.channels is None:
            return {}
        groups = groups_of(sight.model, sight.number_format)
        scales = _scales(_noises(sight, groups), sight.number_format)
        return {
            rule: tuple(
                Migration(group.repair(held), group.takers)
                for group, one in zip(groups, own, strict=True)
                if (held := held_normal(group.region, one)).any()
            )
            for rule, own in scales.items()
        }

    def apply(self, graph: ir.Graph, repair: Repair) -> None:
        """Scale channels. Raises PlanError where the graph does not take their scales up as the repair says."""
        product = node_of(graph, repair)
        try:
            copies = [original_name(name) for name in repair.nodes if is_copy(name)]
            if copies:
                copied(graph, product, frozenset(repair.nodes), copies)
            value, profile = start_of(product)
            region = channel_region(value, profile, captured(graph))
        except BlockedError:
            raise refused(repair, f"the channels that {product.name!r} takes cannot be scaled by constants") from None
        if {product.name, *(node.name for node in region.nodes)} != set(repair.nodes):
            raise refused(repair, f"the channels that {product.name!r} takes are not scaled by its nodes")
        try:
            scales = read_scales(repair.scales, region.channels)
        except ValueError as error:
            raise refused(repair, str(error)) from None
        apply(graph, region, scales)


def groups_of(model: Model, number_format: Format = Precision.INT8.number_format) -> tuple[Group, ...]:
    """The groups of channels that fold: of all products that the format applies to, each value in one group alone."""
    taken = {layer.name: layer.blocked if number_format.is_weight_only else layer.quantizable for layer in model.layers}
    layers = {layer.nodes[0]: layer.name for layer in model.layers if taken[layer.name]}
    folded, blocked = _folded(model.onnx.graph, layers, list(layers))
    return (*folded, *_folded_with_copies(model, layers, blocked))


def _folded(graph: ir.Graph, layers: Mapping[str, str], products: Iterable[str]) -> tuple[list[Group], list[str]]:
    """The groups that fold as the graph is, and the products of which the channels do not."""
    nodes, held = {str(node.name): node for node in graph}, captured(graph)
    seen: set[ir.Value] = set()
    found, blocked = [], []
    for name in products:
        try:
            value, profile = start_of(nodes[name])
            if value in seen:
                continue
            region = channel_region(value, profile, held)
        except BlockedError:
            blocked.append(name)
            continue
        if seen.isdisjoint(region.values):
            seen.update(region.values)
            taking = _taking(region, layers)
            copies = tuple(str(node.name) for node in region.nodes if is_copy(str(node.name)))
            takers = tuple(layers[str(node.name)] for node in taking)
            found.append(Group(name, layers[name], region, taking, takers, copies))
    return found, blocked


def _folded_with_copies(model: Model, layers: Mapping[str, str], products: Iterable[str]) -> list[Group]:
    """The same where what they take is computed a second time for them."""
    graph = model.onnx.clone().graph
    nodes = {str(node.name): node for node in graph}
    tried = []
    for name in products:
        try:
            value = copied(graph, nodes[name], frozenset(layers))
        except BlockedError:
            continue
        if value is not None:
            tried.append(name)
    return _folded(graph, layers, tried)[0]


def _scales(noises: Mapping[str, list[ChannelNoise]], number_format: Format) -> Mapping[str, list[Scales]]:
    """By each rule the scales of all groups."""
    typical = noises["typical"]
    if number_format.is_weight_only:
        return {f"activations {alpha}": [noise.by_power(alpha) for noise in typical] for alpha in _POWERS}
    scales = {_least(kind): [_quietest(noise) for noise in noises[kind]] for kind in _RANGES}
    return scales | {f"alpha {alpha}": [noise.scales(alpha) for noise in typical] for alpha in _ALPHAS}


def _noises(sight: Sight, groups: Sequence[Group]) -> Mapping[str, list[ChannelNoise]]:
    """By how ranges are told, the noise of each group."""
    assert sight.channels is not None
    wanted = {
        original_name(str(value.name)): group.region.values[value]
        for group in groups
        for node in group.taking
        for value in node.inputs[:2]
        if value is not None and value in group.region.values
    }
    seen = sight.channels(wanted)
    names = {str(value.name) for group in groups for value in group.region.values}
    values = {name: seen[original_name(name)] for name in names if original_name(name) in seen}
    return {
        kind: [noise_of(group.region, group.taking, values, largest) for group in groups]
        for kind, largest in _RANGES.items()
    }


def _taking(region: ChannelRegion, products: Container[str]) -> tuple[ir.Node, ...]:
    """The products that quantise a value of the region."""
    uses = (use for value in region.values for use in value.uses())
    return tuple(dict.fromkeys(use.node for use in uses if str(use.node.name) in products and use.idx < 2))


def _least(kind: str) -> str:
    return f"least noise, {kind}"


def _quietest(noise: ChannelNoise) -> Scales:
    """The scales of the least noise; none where no rule is better than that by a tenth."""
    nothing = np.zeros(noise.channels, np.int32)
    best = min((noise.scales(alpha) for alpha in _TRIED), key=noise.of)
    return best if noise.of(best) < 0.9 * noise.of(nothing) else nothing
