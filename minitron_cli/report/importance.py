"""Importance of channels and layers, and how much of it the pruned model keeps."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.figures import Figure
from minitron_cli.report.text import channel_title, ranges
from minitron_cli.report.view import ImportanceMap, LayerBars, Line, Lines, Plot, Section, Table
from minitron_cli.results.base import Sizes
from minitron_cli.results.importance import ImportanceResult
from minitron_cli.scores.layer_score import layer_score
from minitron_cli.scores.metric import Activation

if TYPE_CHECKING:
    from minitron_cli.scores.scores import Scores

# L layer, E expert, F neuron, C channel, K kept

KEPT = Figure("importance kept", style="share")
LAYER = Figure("layer", style="count")


@dataclass(frozen=True)
class Importance:
    """Measured importance, and what pruning kept of it."""

    axes: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Axis -> importance [L, C], or [C] if all layers share the channels. Higher is more important."""
    kept: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Axis -> kept indices: [K], or [L, K] if layers differ."""
    layers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Layer score -> values [L]."""
    dropped: tuple[int, ...] = ()
    """Layers that were removed."""

    @classmethod
    def of(cls, scored: Artifact, plan: Mapping[str, Sequence[Any]] | None = None) -> "Importance":
        """Scores of an importance artifact, and the indices of each axis that a pruning plan keeps of them."""
        from minitron_cli.scores.scores import Scores

        scores, sizes = Scores.load(scored.path), scored.result(ImportanceResult).model.sizes
        kept = {axis: np.asarray(indices) for axis, indices in (plan or {}).items()}
        layers = kept.get("layer", np.arange(sizes["layer"])).tolist()
        if "expert" in sizes and kept.keys() & {"expert", "ffn"}:
            kept["ffn"] = _neurons_of_all_experts(kept, sizes)
        axes = ("hidden", "head", *["expert"] * scores.has_experts, "ffn")
        dropped = tuple(layer for layer in range(sizes["layer"]) if layer not in layers)
        return cls({axis: scores.by_layer(axis).numpy() for axis in axes}, kept, layer_scores(scores), dropped)


def _neurons_of_all_experts(kept: Mapping[str, np.ndarray], sizes: Sizes) -> np.ndarray:
    """[L, K]: neurons that are kept in any expert, numbered through all experts of the layer."""
    shape_LEF = sizes["layer"], sizes["expert"], sizes["ffn"]
    expert_LK = kept.get("expert", np.broadcast_to(np.arange(shape_LEF[1]), shape_LEF[:2]))[:, :, None]
    neuron_LEK = kept.get("ffn", np.broadcast_to(np.arange(shape_LEF[2]), shape_LEF))
    neuron_LEK = np.take_along_axis(neuron_LEK, expert_LK, axis=1)
    return (expert_LK * shape_LEF[2] + neuron_LEK).reshape(shape_LEF[0], -1)


def layer_scores(scores: "Scores") -> dict[str, list[float]]:
    """Layer score -> values [L], of those with one value per layer."""
    return {score.kind: values.tolist() for score, values in scores.of_single_layers()}


def layer_table(layers: Mapping[str, Sequence[float]]) -> Table:
    """Scores of every layer."""
    numbers = [str(i) for i in range(max(map(len, layers.values()), default=0))]
    return Table.of_columns("Layers", (LAYER, numbers), *((layer_score(name).figure, x) for name, x in layers.items()))


def channels_section(found: Importance) -> Section:
    """Section on the importance of channels."""
    plots = [_axis_plot(i, axis, found) for i, axis in enumerate(found.axes)]
    text = f"Importance of each channel ({Activation().figure.title}); brighter cells are more important."
    if found.kept:
        text += " Channels beyond the red line, or with a red cross, were pruned; blank rows are dropped layers."
    title = "Kept channels" if found.kept else "Importance"
    return Section("importance", title, text, plots=(*plots, *_kept_plot(found)))


def _axis_plot(number: int, axis: str, found: Importance) -> Plot:
    scores = found.axes[axis]
    channels = scores.shape[-1]
    kept = np.asarray(found.kept.get(axis, np.broadcast_to(np.arange(channels), scores.shape)))
    caption = f"{channels:,} {channel_title(axis)}"
    if axis in found.kept:
        caption = f"{kept.shape[-1]:,} of {caption} kept"
    caption += ", shared by all layers." if scores.ndim == 1 else " in each layer."
    return Plot(f"importance-{number}", ImportanceMap(scores, kept, found.dropped), caption)


def _kept_plot(found: Importance) -> Iterator[Plot]:
    """Share of each layer's importance that is kept, of axes whose channels are layers' own."""
    axes = [axis for axis, scores in found.axes.items() if scores.ndim == 2 and np.ndim(found.kept.get(axis, ())) == 2]
    shares = [_kept_share(found.axes[axis], found.kept[axis], found.dropped) for axis in axes]
    lines = tuple(Line(list(enumerate(share_L.tolist())), i) for i, share_L in enumerate(shares))
    legend = tuple((i, channel_title(axis)) for i, axis in enumerate(axes))
    if lines:
        caption = "Share of each layer's total importance that is kept."
        yield Plot("importance-kept", Lines(lines, LAYER, KEPT), caption, legend)


def _kept_share(score_LC: np.ndarray, kept_LK: np.ndarray, dropped: tuple[int, ...]) -> np.ndarray:
    kept_L = np.take_along_axis(score_LC, kept_LK.astype(int), axis=1).sum(axis=1)
    total_L = score_LC.sum(axis=1)
    share_L = np.divide(kept_L, total_L, out=np.ones(len(score_LC)), where=total_L > 0)
    share_L[list(dropped)] = np.nan
    return share_L


def layers_section(found: Importance) -> Section:
    """Section on the scores of layers."""
    plots = [
        Plot(f"layers-{i}", LayerBars(values, layer_score(name).figure, found.dropped), layer_score(name).caption)
        for i, (name, values) in enumerate(found.layers.items())
        if layer_score(name).ranks  # the others repeat a ranking on another scale
    ]
    plural = "s" if len(found.dropped) > 1 else ""
    dropped = f"Dropped: layer{plural} {ranges(found.dropped)}, in red." if found.dropped else "All layers were kept."
    text = f"How much the model depends on each layer; layers with low bars matter least. {dropped}"
    return Section("layers", "Layers", text, plots=tuple(plots))
