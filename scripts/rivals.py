"""Other libraries that prune language models, called as their documentation shows: a model in, a pruned model out.

Installed by `make rivals` into an environment of its own; nothing of the product imports them.
"""

# B batch, T token, D hidden, L layer

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from minitron_cli.checkpoint import hf

NEURON_MULTIPLE = 64
"""Rounding of widths, for all libraries."""


def optipfair_neurons(path: Path, batches_BT: Sequence[Tensor], ffn: int, *, is_data_driven: bool) -> Any:
    """Child of optipfair with `ffn` neurons per layer, by weights alone (PPM) or by weights and activations."""
    import optipfair

    logging.getLogger("optipfair").setLevel(logging.WARNING)
    model = hf.load_model(path, dtype="float32")
    before = model.config.intermediate_size
    return optipfair.prune_model(
        model,
        neuron_selection_method="MAW",  # its name for PPM
        pruning_percentage=100 * (1 - ffn / before),
        expansion_divisor=NEURON_MULTIPLE,
        dataloader=_loader(batches_BT) if is_data_driven else None,
        show_progress=False,
    )


def optipfair_layers(path: Path, batches_BT: Sequence[Tensor], layers: int) -> tuple[int, ...]:
    """Layers that optipfair's importance would remove so that `layers` remain, ascending."""
    from optipfair.pruning.depth import analyze_layer_importance

    model = hf.load_model(path, dtype="float32")
    scores = analyze_layer_importance(model, _loader(batches_BT), show_progress=False)
    return _lowest([scores[i] for i in sorted(scores)], layers)


@torch.inference_mode()
def shortgpt_layers(path: Path, batches_BT: Sequence[Tensor], layers: int) -> tuple[int, ...]:
    """Layers with the lowest Block Influence, 1 - E[cos(input, output)] over tokens (Men et al. 2024, eq. 1)."""
    model, sums = hf.load_model(path, dtype="float32"), None
    inputs_of: list[Tensor] = []

    def seen(_module: Any, args: tuple[Any, ...], output: Any) -> None:
        """Append 1 - cosine of a layer's input and output, summed over tokens."""
        out_BTD = output[0] if isinstance(output, tuple) else output
        inputs_of.append((1 - F.cosine_similarity(args[0].double(), out_BTD.double(), dim=-1)).sum())

    for layer in model.model.layers:
        layer.register_forward_hook(seen)
    for input_ids_BT in batches_BT:
        inputs_of.clear()
        model.model(input_ids=input_ids_BT)
        found_L = torch.stack(inputs_of)
        sums = found_L if sums is None else sums + found_L
    assert sums is not None
    return _lowest(sums.tolist(), layers)


def torch_pruning_width(path: Path, hidden: int) -> Any:
    """Child of Torch-Pruning's example for language models: hidden channels and neurons by grouped magnitude.

    The example prunes heads as well, which it cannot for this number of query heads per key head; they are kept.
    """
    import torch_pruning as tp

    model = hf.load_model(path, dtype="float32")
    model.config.use_cache = False
    kept = [
        module
        for name, module in model.named_modules()
        if name.endswith(("q_proj", "k_proj", "v_proj")) or name == "lm_head"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.BasePruner(
            model,
            example_inputs=torch.arange(1, 17)[None],
            importance=tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean"),
            global_pruning=False,
            output_transform=lambda output: output.logits,
            pruning_ratio=1 - hidden / model.config.hidden_size,
            ignored_layers=kept,
            round_to=NEURON_MULTIPLE,
        )
        for group in pruner.step(interactive=True):
            group.prune()
    model.config.hidden_size = model.get_input_embeddings().weight.shape[1]
    model.config.intermediate_size = model.model.layers[0].mlp.down_proj.in_features
    model.tie_weights()  # pruning gave the head a matrix of its own with the same numbers
    return model


def trl_steps(
    path: Path, student: Any, batches_BT: Sequence[Tensor], micro_batch: int, scratch: Path
) -> Callable[[], None]:
    """A run over the batches of TRL's GKD trainer with the teacher's forward KL on given text, one step each.

    Gradients are accumulated over `micro_batch` sequences at a time."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    rows = Dataset.from_dict({"input_ids": torch.cat(list(batches_BT)).tolist()})
    settings = GKDConfig(
        output_dir=str(scratch),
        lmbda=0.0,  # no generation: the text is given, as it is for the others
        beta=0.0,  # forward KL
        temperature=1.0,
        learning_rate=1e-5,
        max_steps=len(batches_BT),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=len(batches_BT[0]) // micro_batch,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )

    def collate(some: list[dict[str, Any]]) -> dict[str, Tensor]:
        input_ids_BT = torch.tensor([row["input_ids"] for row in some])
        return {"input_ids": input_ids_BT, "attention_mask": torch.ones_like(input_ids_BT), "labels": input_ids_BT}

    trainer = GKDTrainer(
        model=student,
        teacher_model=hf.load_model(path, dtype="float32"),
        args=settings,
        data_collator=collate,
        train_dataset=rows,
        processing_class=hf.load_tokenizer(path),
    )
    return lambda: trainer.train() and None


def versions() -> str:
    """Versions of the libraries, for the page."""
    return ", ".join(f"{name} {version(name)}" for name in ("optipfair", "torch-pruning", "trl", "transformers"))


def timed(make: Callable[[], Any]) -> tuple[Any, float]:
    """Result of a call, and the CPU seconds that it took."""
    started = time.process_time()
    made = make()
    return made, time.process_time() - started


def _loader(batches_BT: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    return [{"input_ids": batch_BT, "attention_mask": torch.ones_like(batch_BT)} for batch_BT in batches_BT]


def _lowest(scores_L: Sequence[float], layers: int) -> tuple[int, ...]:
    """Indices of the layers to remove, ascending, so that `layers` with the highest scores remain."""
    order = sorted(range(len(scores_L)), key=scores_L.__getitem__)
    return tuple(sorted(order[: len(scores_L) - layers]))
