"""What pruning kept, as a picture: the parameters of each layer and of the embeddings, before and after."""

from collections.abc import Sequence

from minitron_cli.figures import Figure
from minitron_cli.report.view import KeptBar, KeptBars, Legend, Plot
from minitron_cli.results.prune import Parts

EMBEDDINGS, MIXER, FFN = 0, 1, 2
LEGEND: Legend = ((EMBEDDINGS, "embeddings and head"), (MIXER, "attention"), (FFN, "FFN"))
PARAMETERS = Figure("parameters", style="short")


def kept_plot(parent: Parts, child: Parts, kept_layers: Sequence[int]) -> Plot:
    """Picture of a pruning. `kept_layers`: the parent's number of each layer of the child."""
    places = {layer: i for i, layer in enumerate(kept_layers)}
    bars: list[tuple[KeptBar, ...]] = [(KeptBar(EMBEDDINGS, parent.embeddings, child.embeddings),)]
    for layer, (mixer, ffn) in enumerate(zip(parent.mixer, parent.ffn, strict=True)):
        place = places.get(layer)
        after = (0, 0) if place is None else (child.mixer[place], child.ffn[place])
        bars.append((KeptBar(MIXER, mixer, after[0]), KeptBar(FFN, ffn, after[1])))
    caption = "Each bar is as long as the parent's parameters; what was pruned is red."
    return Plot("kept", KeptBars(tuple(bars), PARAMETERS), caption, LEGEND)
