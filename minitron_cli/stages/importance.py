"""The importance stage: a model and text in, scores of every axis out."""

from collections.abc import Iterator

from minitron_cli import io, progress
from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.artifact import Artifact
from minitron_cli.data.batches import Batch, batch, sample_ids
from minitron_cli.data.pack import Blocks
from minitron_cli.data.sources import DataConfig
from minitron_cli.errors import DataError
from minitron_cli.importance.baselines import magnitude
from minitron_cli.importance.collect import collect
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.importance.layer_major import collect_by_layer
from minitron_cli.importance.memory import fits
from minitron_cli.importance.removal import cuts_of
from minitron_cli.stages.parent import Parent
from minitron_cli.stages.produce import Build, Context, produce
from minitron_cli.stages.tokens import blocks_of
from minitron_cli.trim.scores import Scores

STAGE, VERSION = "importance", 1


def run(context: Context, parent: Parent, data: DataConfig, config: ImportanceConfig) -> Artifact:
    """Score heads, neurons, hidden channels and layers of `parent` in one pass over calibration samples."""
    cuts_of(parent.shape.sizes["layer"], config.blocks)  # refuse what cannot be removed before anything is read
    blocks = blocks_of(context, data, "train", parent.path)
    if config.samples > len(blocks):
        raise DataError(
            f"{config.samples} calibration samples of {blocks.sequence_length} tokens are more than the data's "
            f"{len(blocks)}: lower importance.samples or data.sequence_length, or add text"
        )

    def build(work: Build) -> None:
        io.make_dirs(work.scratch)
        scores = _calibrate(context, parent, work, blocks, config) | magnitude(parent.checkpoint.read, parent.shape)
        scores.save(work.path)
        work.summary |= {
            "sizes": dict(parent.shape.sizes),
            "parameters": parent.shape.parameters(),
            "samples": config.samples,
            "tokens": config.samples * blocks.sequence_length,
            "parent_loss": scores.parent_nll,
        }

    inputs = {"model": parent.fingerprint, "data": blocks.fingerprint, "dtype": context.dtype}
    return produce(context, stage=STAGE, version=VERSION, config=config, inputs=inputs, build=build)


def _calibrate(context: Context, parent: Parent, work: Build, blocks: Blocks, config: ImportanceConfig) -> Scores:
    if _is_resident(context, parent, config):
        return collect(
            hf.load_model(parent.path, device=context.device, dtype=context.dtype),
            parent.family,
            _batches(blocks, config),
            layer_removal=config.layer_removal,
            blocks=config.blocks,
            samples=config.samples,
            scratch=work.scratch,
            resume=work.resume,
        )
    return collect_by_layer(
        hf.empty_model(parent.path, device=context.device, dtype=context.dtype),
        parent.family,
        list(_batches(blocks, config)),
        parent.checkpoint.read,
        device=context.device,
        layer_removal=config.layer_removal,
        blocks=config.blocks,
        activation_budget=config.activation_budget,
        scratch=work.scratch,
        resume=work.resume,
    )


def _is_resident(context: Context, parent: Parent, config: ImportanceConfig) -> bool:
    if config.mode != "auto":
        return config.mode == "resident"
    stored = {"float32": 4, "bfloat16": 2, "float16": 2}.get(context.dtype)
    model_bytes = parent.shape.parameters() * stored if stored else parent.checkpoint.size_bytes
    is_resident = fits(model_bytes, config.activation_budget, context.device)
    if not is_resident:
        progress.say(f"{parent.name} does not fit in memory ({model_bytes / 1e9:.1f} GB): one layer at a time is held")
    return is_resident


def _batches(blocks: Blocks, config: ImportanceConfig) -> Iterator[Batch]:
    ids = sample_ids(config.seed, 0, config.samples, len(blocks))
    for start in range(0, len(ids), config.batch_size):
        yield batch(blocks, ids[start : start + config.batch_size])
