"""How many samples and positions rank layers by the perplexity without them as all of a calibration text does.

    python scripts/removal_study.py MODEL TEXT --samples 16 --sequence-length 256

Measures the loss of every predicted token without each layer once, sample by sample (an interrupted study continues),
and prints Kendall's tau of subsets against all of it, their standard error and their cost as a Markdown table.
"""

import argparse
import statistics
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import Tensor

from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint import hf
from minitron_cli.data.batches import Batches, calibration_ids
from minitron_cli.data.sources import DataConfig
from minitron_cli.importance.layer_removal import advance_, evenly, layer_blocks, starts
from minitron_cli.inputs.source_model import SourceModel, open_source_model
from minitron_cli.inputs.token_blocks import blocks_of
from minitron_cli.layerwise.calibration_errors import check_samples
from minitron_cli.layerwise.layer_call import LayerCall
from minitron_cli.layerwise.observer import Tokens, decoder_layers, final_norm
from minitron_cli.model.lm_head import Head, head_of

# S sample, T token, V variant: without each layer, and whole

SAMPLES = (1, 2, 4, 8, 16, 32, 64)
POSITIONS = (8, 16, 32, 64, 128, 256)
DRAWS = 20  # subsets of each size over which tau is averaged


def losses(model: Any, parent: SourceModel, head: Head, tokens: Tokens) -> np.ndarray:
    """Loss of each predicted token of one sample without each layer, and of the whole model last, [V, T - 1]."""
    calls: list[LayerCall] = []
    layers = decoder_layers(model, parent.family)
    hooks = [
        layer.register_forward_pre_hook(lambda *seen: calls.append(LayerCall.seen(*seen)), with_kwargs=True)
        for layer in layers
    ]
    output = model.get_decoder()(input_ids=tokens.input_ids_BT, position_ids=tokens.position_ids_BT, use_cache=False)
    for hook in hooks:
        hook.remove()
    variants: dict[Any, Any] = {}
    removed = layer_blocks(len(layers), [1])
    for layer, call in enumerate(calls):
        advance_(variants, removed, layer, call)
    norm, labels_T = model.get_submodule(final_norm(parent.family)), tokens.input_ids_BT[0, 1:]
    ends = [*(norm(variants.pop(block)) for block in removed), output.last_hidden_state]
    return torch.stack([head.nll(end_BTD[0, :-1], labels_T) for end_BTD in ends]).numpy()


def measured(
    context: Context, parent: SourceModel, data: DataConfig, samples: int, dtype: str
) -> tuple[np.ndarray, Tensor]:
    """Losses [S, V, T - 1] of all samples, without measuring those on disk again; starts of their positions [S]."""
    blocks = blocks_of(context, data, "train", parent.path)
    check_samples(samples, blocks, "--samples")
    batches = Batches(blocks, calibration_ids(0, samples, len(blocks)), 1)
    folder = context.workspace.root / f"removal-{parent.fingerprint[:8]}-{blocks.sequence_length}-{dtype}"
    folder.mkdir(parents=True, exist_ok=True)
    model = head = None
    starts_S = []
    for i, batch in enumerate(batches):
        starts_S.append(starts(batch.input_ids_BT))
        path = folder / f"{i}.npy"
        if path.is_file():
            continue
        with torch.inference_mode():
            model = model or hf.load_model(parent.path, dtype=dtype)
            head = head or head_of(model)
            found = losses(model, parent, head, Tokens.of(batch, "cpu"))
        with open(path.with_suffix(".part"), "wb") as file:
            np.save(file, found)
        path.with_suffix(".part").rename(path)
        print(f"sample {i + 1} of {samples}", flush=True)
    return np.stack([np.load(folder / f"{i}.npy") for i in range(samples)]), torch.cat(starts_S)


def at_positions(losses_SVT: np.ndarray, starts_S: Tensor, positions: int) -> np.ndarray:
    """Losses at the positions that the stage takes in each sample, [S, V, positions]."""
    taken_ST = evenly(torch.ones(len(losses_SVT), losses_SVT.shape[2], dtype=torch.bool), positions, starts_S).numpy()
    return np.stack([losses_VT[:, taken_T] for losses_VT, taken_T in zip(losses_SVT, taken_ST, strict=True)])


def table(losses_SVT: np.ndarray, starts_S: Tensor, parent: SourceModel) -> Iterator[str]:
    """Rows of the Markdown table, and one for each number of samples and of positions."""
    samples, variants, positions = losses_SVT.shape
    full_V, length = increase(losses_SVT), positions + 1
    yield "| samples | positions | Kendall's tau: mean, lowest | standard error / spread | cost / all |"
    yield "|---|---|---|---|---|"
    layers = parent.shape.sizes["layer"]
    decoder = parent.shape.flops_per_token(length // 2, with_head=False) / 2 * (layers - 1)  # of all variants together
    head = (parent.shape.flops_per_token(length // 2) - decoder * 2 / (layers - 1)) * variants
    for count in [n for n in SAMPLES if n <= samples]:
        for places in [n for n in POSITIONS if n < length] + [positions]:
            subsets = list(islice(draws(samples, count), DRAWS))
            some_SVN = at_positions(losses_SVT, starts_S, places)
            taus = [float(kendalltau(increase(some_SVN[rows]), full_V).statistic) for rows in subsets]
            errors = [standard_error(some_SVN[rows]) for rows in subsets] if count > 1 else [np.nan]
            share = count * (decoder * length + head * places) / (samples * (decoder * length + head * positions))
            yield (
                f"| {count} | {places} | {statistics.mean(taus):.3f}, {min(taus):.3f} | "
                f"{np.mean(errors) / full_V.std():.3f} | {share:.1%} |"
            )


def draws(samples: int, count: int) -> Iterator[np.ndarray]:
    """Subsets of `count` samples; the first is the one that the stage takes."""
    yield np.arange(count)
    generator = np.random.default_rng(0)
    while True:
        yield generator.choice(samples, count, replace=False)


def increase(losses_SVT: np.ndarray) -> np.ndarray:
    """Increase of the loss without each layer, which ranks as perplexity does, [V - 1]."""
    loss_V = losses_SVT.mean(axis=(0, 2), dtype=np.float64)
    return loss_V[:-1] - loss_V[-1]


def standard_error(losses_SVT: np.ndarray) -> float:
    """Standard error of the increase between samples, averaged over layers."""
    difference_SV = (losses_SVT[:, :-1] - losses_SVT[:, -1:]).mean(axis=2, dtype=np.float64)
    return float(difference_SV.std(axis=0, ddof=1).mean() / len(losses_SVT) ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--workspace", type=Path, default=Path("runs/removal-study"))
    options = parser.parse_args()
    data = DataConfig.model_validate(
        {"sources": [{"kind": "files", "paths": [options.text]}], "sequence_length": options.sequence_length}
    )
    parent = open_source_model(str(options.model))
    found = measured(Context(Workspace(options.workspace)), parent, data, options.samples, options.dtype)
    print(f"{options.model.name}: {options.samples} x {options.sequence_length} tokens, {options.dtype}\n")
    print("\n".join(table(*found, parent)))


if __name__ == "__main__":
    main()
