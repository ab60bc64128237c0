"""Compare the importance pass with a bare forward pass of the model, and with naive ways to compute the same scores.

    python -m benchmarks importance            # all parts but real: about ten minutes on one thread
    python -m benchmarks importance pass head  # some parts
    make real-models && python -m benchmarks importance real

Parts: pass (all axes, fp32 and bf16), vocab (vocabulary 128256), memory (8 and 64 samples), removal (perplexity without
each layer), head (perplexity from hidden states), real (all axes, of pretrained models).
"""

import copy
import gc
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from benchmarks.harness import alternate, peak_memory, ratio, record
from benchmarks.layer_major import batches, llama
from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint import hf
from minitron_cli.importance.collect import collect
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.layerwise.calibration import Calibration
from minitron_cli.layerwise.config import ObserverOptions
from minitron_cli.model.families import family_of
from minitron_cli.model.lm_head import Head
from minitron_cli.scores.metric import AGGREGATIONS, Activation
from scripts.real_models import MODELS, real_model

LAYERS, HIDDEN, FFN, HEADS, KV_HEADS = 12, 512, 1536, 8, 4
ROUNDS = 9

Rows = list[dict[str, Any]]


def model_of(vocab: int, *, layers: int = LAYERS) -> Any:
    """Llama of random weights in fp32."""
    config = hf.config_from_dict(llama(layers, HIDDEN, FFN, vocab, HEADS, KV_HEADS), "the benchmark")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()


@torch.no_grad()
def bare(model: Any, samples: list[Any]) -> None:
    """Forward passes with logits."""
    for batch in samples:
        model(batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False)


def ours(model: Any, samples: list[Any], *, layer_removal: bool = False, pre_activation: bool = False) -> Any:
    """Scores of minitron, without layer removal unless an option asks for it."""
    options = ObserverOptions(pre_activation, (1,) if layer_removal else ())
    return collect(model, family_of(model.config), Calibration(samples), options)


def every_pass(vocab: int = 8192, rounds: int = ROUNDS, rivals: bool = True) -> Rows:
    """Time of all axes, nine aggregations and Block Importance on 2 x 512 tokens: the verb's defaults, against a bare
    forward pass in the same dtype."""
    model, samples = model_of(vocab), batches(2, 512, vocab, 2)
    small = copy.deepcopy(model).bfloat16()
    functions: dict[str, Callable[[], object]] = {
        "bare fp32": lambda: bare(model, samples),
        "bare bf16": lambda: bare(small, samples),
        "ours fp32": lambda: ours(model, samples),
        "ours bf16": lambda: ours(small, samples),
    }
    if rivals:
        functions |= {
            "two passes, one aggregation": lambda: two_passes(model, samples),
            "store and concatenate": lambda: store_and_concatenate(model, samples),
            "ours fp32, with pre-activations": lambda: ours(model, samples, pre_activation=True),
        }
    seconds = alternate(functions, rounds)
    target = {"ours fp32": 0.96} if vocab == 8192 else {}
    return [
        row(f"{name}, V={vocab}", f"x {beside} forward", ratio(seconds, name, beside), target.get(name))
        for name in functions
        if not name.startswith("bare")
        for beside in ["bare bf16" if "bf16" in name else "bare fp32"]
    ] + (agreements(model, small, samples) if rivals else [])


def real(rounds: int = 5) -> Rows:
    """Time of the verb's defaults on 4 x 512 tokens against a bare forward pass with logits in the same dtype."""
    rows = Rows()
    for name in MODELS:
        parent = open_source_model(real_model(name))
        dtype = parent.dtype_in(Context(Workspace(Path("unused"))))
        model = hf.load_model(parent.path, dtype=dtype)
        samples = batches(4, 512, model.config.vocab_size, 4)
        functions = {"bare": partial(bare, model, samples), "ours": partial(ours, model, samples)}
        found = ratio(alternate(functions, rounds), "ours", "bare")
        rows.append(row(f"{name}, {model.dtype}".replace("torch.", ""), "x bare forward", found))
    return rows


def row(measurement: str, unit: str, value: float, target: float | None = None) -> dict[str, Any]:
    """Row of the table of results."""
    return {
        "measurement": measurement,
        "unit": unit,
        "value": value,
        "target": "" if target is None else target,
    }


@torch.no_grad()
def two_passes(model: Any, samples: list[Any]) -> None:
    """Score width in one forward pass and Block Importance in another, each with logits."""
    sums: dict[Any, torch.Tensor] = {}

    def add(name: Any, values: torch.Tensor) -> None:
        sums[name] = sums.get(name, 0) + values

    def see(of_input: bool, module: Any, args: Any, output: Any) -> None:
        add(module, (args[0] if of_input else output).abs().mean(1).square().sum(0))

    handles = []
    for layer in model.model.layers:
        for module, of_input in ((layer.mlp.down_proj, True), (layer.input_layernorm, False)):
            handles.append(module.register_forward_hook(partial(see, of_input)))
    bare(model, samples)
    for handle in handles:
        handle.remove()

    def turn(module: Any, args: Any, output: Any) -> None:
        add(module, F.cosine_similarity(args[0], output, dim=-1).mean())

    handles = [layer.register_forward_hook(turn) for layer in model.model.layers]
    bare(model, samples)
    for handle in handles:
        handle.remove()


@torch.no_grad()
def store_and_concatenate(model: Any, samples: list[Any]) -> None:
    """Keep every activation and reduce them at the end, with all nine aggregations."""
    stored: dict[Any, list[torch.Tensor]] = {}

    def keep(of_input: bool, module: Any, args: Any, output: Any) -> None:
        stored.setdefault(module, []).append(args[0] if of_input else output)

    handles = []
    for layer in model.model.layers:
        for module, of_input in (
            (layer.self_attn.o_proj, True),
            (layer.mlp.down_proj, True),
            (layer.input_layernorm, False),
            (layer.post_attention_layernorm, False),
        ):
            handles.append(module.register_forward_hook(partial(keep, of_input)))
    bare(model, samples)
    for handle in handles:
        handle.remove()
    reduce: dict[str, Callable[..., torch.Tensor]] = {
        "mean": lambda x, dim: x.abs().mean(dim),
        "l2": lambda x, dim: torch.linalg.vector_norm(x, dim=dim),
        "var": lambda x, dim: x.var(dim, correction=0),
    }
    for pieces in stored.values():
        values = torch.cat(pieces)
        for over_tokens in AGGREGATIONS:
            by_sample = reduce[over_tokens](values, 1)
            for over_samples in AGGREGATIONS:
                reduce[over_samples](by_sample, 0)


def agreements(model: Any, small: Any, samples: list[Any]) -> Rows:
    """Spearman's correlation between rankings in bf16 and fp32, over layers and aggregations.

    A hard case: random weights make channels alike, so differences are small. Among 8 heads, one swap of neighbors
    costs 0.024.
    """
    exact, rounded = ours(model, samples), ours(small, samples)
    rows = []
    for axis in ("head", "ffn", "hidden"):
        found = []
        for batch in AGGREGATIONS[:2]:  # over samples; a variance over two samples is rounding error
            for sequence in AGGREGATIONS:
                metric = Activation(batch=batch, sequence=sequence)
                pairs = zip(*(torch.atleast_2d(s.select(axis, metric)) for s in (exact, rounded)), strict=True)
                found += [spearman(a, b) for a, b in pairs]
        rows.append(row(f"rankings of {axis}, bf16 and fp32: median", "Spearman", statistics.median(found), 0.999))
        rows.append(row(f"rankings of {axis}, bf16 and fp32: lowest", "Spearman", min(found)))
    return rows


def spearman(a: torch.Tensor, b: torch.Tensor) -> float:
    """Spearman's rank correlation of two vectors without ties."""
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def memory() -> Rows:
    """Growth of peak memory from 8 to 64 samples, with layer removal."""
    model = model_of(8192, layers=4)
    peaks = {}
    ours(model, batches(8, 256, 8192, 2), layer_removal=True)
    for count in (8, 64):
        gc.collect()
        with peak_memory() as peak:
            ours(model, batches(count, 256, 8192, 2), layer_removal=True)
        peaks[count] = peak.highest
    return [row("peak RssAnon, 64 samples minus 8 samples", "MiB", (peaks[64] - peaks[8]) / 2**20, 8.0)]


def removal(vocab: int = 16384, rounds: int = 5) -> Rows:
    """Time of the perplexity without each of 12 layers, on two batches of 1 x 512 tokens. The head costs 2.67 layers.

    Ours also scores all other axes; the naive way only computes the losses.
    """
    model, samples = model_of(vocab), batches(2, 512, vocab, 1)
    functions = {
        "bare": lambda: bare(model, samples),
        "naive": lambda: naive_removal(model, samples),
        "ours": lambda: ours(model, samples, layer_removal=True),
    }
    seconds = alternate(functions, rounds)
    seconds["naive change"] = [n + b for n, b in zip(seconds["naive"], seconds["bare"], strict=True)]
    error = (ours(model, samples, layer_removal=True).layers("nll") - naive_removal(model, samples)).abs().max()
    return [
        row("perplexity without each layer: naive over ours", "times faster", ratio(seconds, "naive", "ours"), 1.55),
        row(
            "the same, the naive way also with the loss of the whole model",
            "times faster",
            ratio(seconds, "naive change", "ours"),
        ),
        row("ours against one bare forward pass", "x bare", ratio(seconds, "ours", "bare")),
        row("largest difference between the losses", "nats", float(error), 1e-5),
    ]


@torch.no_grad()
def naive_removal(model: Any, samples: list[Any]) -> torch.Tensor:
    """Losses [L] without each layer, from a whole forward pass with logits for each."""
    layers, losses = model.model.layers, []
    for i in range(len(layers)):
        model.model.layers = torch.nn.ModuleList([layer for j, layer in enumerate(layers) if j != i])
        model.config.num_hidden_layers -= 1
        total = torch.zeros(0, dtype=torch.float64)
        for batch in samples:
            ids = batch.input_ids_BT
            logits = model(ids, position_ids=batch.position_ids_BT, use_cache=False).logits
            losses_N = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            total = torch.cat([total, losses_N.double()])
        losses.append(total.mean())
        model.model.layers = layers
        model.config.num_hidden_layers += 1
    return torch.stack(losses)


def head(vocab: int = 128256, tokens: int = 1024, rounds: int = 5) -> Rows:
    """Time and memory of the loss of 1024 hidden states, against the product that makes the logits."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, HIDDEN, generator=generator)
    weight = torch.randn(vocab, HIDDEN, generator=generator) / HIDDEN**0.5
    labels = torch.randint(0, vocab, (tokens,), generator=generator)
    functions = {
        "bare": lambda: F.linear(hidden, weight),
        "ours": lambda: Head(weight).nll(hidden, labels),
        "materialized": lambda: F.cross_entropy(F.linear(hidden, weight), labels, reduction="none"),
    }
    seconds = alternate(functions, rounds)
    gc.collect()
    with peak_memory() as peak:
        Head(weight).nll(hidden, labels)
    return [
        row(f"perplexity head, V={vocab}: ours", "x F.linear", ratio(seconds, "ours", "bare"), 1.0),
        row("materialized logits and cross-entropy", "x F.linear", ratio(seconds, "materialized", "bare")),
        row("extra memory of ours", "MiB", peak.grown / 2**20, 16.0),
    ]


PARTS: dict[str, Callable[[], Rows]] = {
    "pass": every_pass,
    "vocab": lambda: every_pass(128256, rounds=5, rivals=False),
    "memory": memory,
    "removal": removal,
    "head": head,
    "real": real,
}
NEEDS_MODELS = "real"
"""Part that only runs when it is named, since it needs `make real-models`."""


def main(parts: list[str]) -> None:
    """Run the parts, or all, and record the results."""
    torch.set_num_threads(1)
    for part in parts or [name for name in PARTS if name != NEEDS_MODELS]:
        print(f"{part} ...", file=sys.stderr, flush=True)
        load = os.getloadavg()[0]
        rows = PARTS[part]()
        llama = f"Llama, {LAYERS} layers, d {HIDDEN}, ffn {FFN}, {HEADS}/{KV_HEADS} heads. "
        notes = [
            f"{'' if part == NEEDS_MODELS else llama}CPU time, one thread; medians "
            f"of ratios of neighboring calls. Load of the {os.cpu_count()} cores: {load:.1f} before, "
            f"{os.getloadavg()[0]:.1f} after.",
        ]
        record(f"importance-{part}", f"Importance: {part}", rows, notes)
