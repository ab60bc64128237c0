"""Work of a calibration that scores every axis."""

from collections.abc import Iterator

from minitron_cli.cost import derive
from minitron_cli.cost.compute import model_size
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.importance.layer_removal import layer_blocks
from minitron_cli.price.work import ITEM_BYTES, Moved, Run, Subject, Work
from minitron_cli.results.importance import ImportanceResult

OBSERVED = 3  # copies of the widest activations in fp32 while their statistics are computed
CHUNKS = 3  # of logits in fp32 while a likelihood is computed


def work(
    model: Subject, config: ImportanceConfig, length: int, *, is_resident: bool = True, processes: int = 1
) -> Work:
    """Work of scoring a model on blocks of `length` tokens."""
    result = ImportanceResult(
        model=model_size(model.shape, length),
        samples=config.samples,
        sequence_length=length,
        removed=config.removal_lengths,
        removal_samples=config.removal_samples,
        removal_positions=config.removal_positions,
    )
    states = config.samples * length * model.shape.sizes["hidden"] * ITEM_BYTES[model.dtype]
    run = model.runs(min(config.batch_size, config.samples), length)
    return Work(
        what=f"{config.samples:,} samples of {length:,} tokens",
        passes=tuple(derive.passes(result)),
        model=run,
        observed=config.observer_options,
        moved={
            "load the model": Moved(starts=1, read=model.weights_bytes),
            "magnitude": Moved(read=model.weights_bytes, weighed=model.shape.parameters()),
        },
        certain={"weights": _weights_bytes(model, config)} if is_resident else {},
        transient={
            "one layer": 0 if is_resident else _layer_bytes(model),
            "activations": run.layer_bytes() + OBSERVED * _widest(run),
            "models without a layer": _removed_bytes(run, config),
            "ends of blocks of layers": max(config.block_distances, default=0) * _state_bytes(run),
            "logits": run.logits_bytes(CHUNKS) if config.removal_lengths else 0,
            "stored activations": 0 if is_resident else min(config.activation_budget, states),
        },
        disk={"scores": _scores_bytes(model)},
        remedies=tuple(_remedies(config, is_resident)),
        weight_remedies=_smaller_weights(config),
        left_out=tuple(_left_out(config)),
        processes=processes,
    )


def _weights_bytes(model: Subject, config: ImportanceConfig) -> int:
    """Bytes of the weights; learned masks train through them in fp32."""
    return ITEM_BYTES["float32"] * model.shape.parameters() if config.learned else model.weights_bytes


def _left_out(config: ImportanceConfig) -> Iterator[str]:
    if config.block_task:
        yield f"{config.block_task} without each block"
    if config.collapse:
        yield "the order of merging"
    if config.learned:
        yield "learned masks"


def _remedies(config: ImportanceConfig, is_resident: bool) -> Iterator[str]:
    if config.batch_size > 1:
        yield "batch_size=1"
    if config.removal_lengths:
        yield "layer_removal=false"
    if is_resident:
        yield from _smaller_weights(config)


def _smaller_weights(config: ImportanceConfig) -> tuple[str, ...]:
    """Settings that need less of the weights in memory; some measurements need all of them at once."""
    needy = [f"{name}=null" for name in ("collapse", "learned", "block_task") if getattr(config, name)]
    return tuple(needy) or ("mode=layer_major",)


def _layer_bytes(model: Subject) -> int:
    """The larger of a decoder layer and the embedding."""
    embedding = model.shape.sizes["vocab"] * model.shape.sizes["hidden"]
    layer = model.shape.parameters("non_embedding") // model.shape.sizes["layer"]
    return max(embedding, layer) * ITEM_BYTES[model.dtype]


def _widest(run: Run) -> int:
    """Bytes of the widest observed activation in fp32."""
    return run.tokens * max(run.shape.sizes.get("ffn", 0), run.shape.sizes["hidden"]) * 4


def _removed_bytes(run: Run, config: ImportanceConfig) -> int:
    """Hidden states of every model without a block, and the inputs of all layers."""
    if not config.removal_lengths:
        return 0
    layers = run.shape.sizes["layer"]
    return (layers + len(layer_blocks(layers, config.removal_lengths))) * _state_bytes(run)


def _state_bytes(run: Run) -> int:
    """Hidden states of a batch between two layers."""
    return run.tokens * run.shape.sizes["hidden"] * ITEM_BYTES[run.dtype]


def _scores_bytes(model: Subject) -> int:
    """Nine ways of aggregation of every neuron, head and channel, in fp32."""
    sizes = model.shape.sizes
    per_layer = sizes.get("ffn", 0) * sizes.get("expert", 1) + sizes["head"]
    return 9 * 4 * (sizes["layer"] * per_layer + sizes["hidden"])
