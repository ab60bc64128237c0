"""The distill stage: a teacher, a student and text in, the trained student out."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli import io
from minitron_cli.checkpoint import fingerprint, hf
from minitron_cli.checkpoint.artifact import Artifact
from minitron_cli.data.pack import Blocks
from minitron_cli.data.sources import DataConfig
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.hidden import Norms, StatePair, relation_pairs, state_pairs
from minitron_cli.distill.loop import TrainResult, train
from minitron_cli.distill.objective import check_vocab
from minitron_cli.stages.parent import Parent, open_parent
from minitron_cli.stages.produce import Build, Context, produce
from minitron_cli.stages.tokens import blocks_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STAGE, VERSION = "distill", 1
METRICS, VALIDATION = "metrics.jsonl", "validation.jsonl"


def run(
    context: Context,
    teacher: Parent,
    student: Path,
    data: DataConfig,
    config: DistillConfig,
    *,
    label: str = "distilled",
) -> Artifact:
    """Train the checkpoint at `student` on the teacher's predictions; the result has its shape, names and dtypes."""
    start = open_parent(student, offline=context.offline)
    check_vocab(
        teacher.config, start.config, fingerprint.of_tokenizer(teacher.path), fingerprint.of_tokenizer(start.path)
    )
    train_blocks = blocks_of(context, data, "train", teacher.path)
    validation_blocks = blocks_of(context, data, "validation", teacher.path)
    pairs = _pairs(config, teacher, start)

    def build(work: Build) -> None:
        model = _initial(context, start, config)
        reference = hf.load_model(teacher.path, device=context.device, dtype=context.dtype)
        result = run_loop(context, work, model, reference, train_blocks, validation_blocks, config, pairs)
        if io.is_first_process():
            hf.save_model(model, start.path, work.path)
        work.summary |= {"parameters": start.shape.parameters(), "sizes": dict(start.shape.sizes), **result}

    inputs = {
        "teacher": teacher.fingerprint,
        "student": start.fingerprint,
        "train": train_blocks.fingerprint,
        "validation": validation_blocks.fingerprint,
    }
    return produce(context, stage=STAGE, version=VERSION, config=config, inputs=inputs, build=build, label=label)


def _initial(context: Context, start: Parent, config: DistillConfig) -> "PreTrainedModel":
    if config.init == "random":
        return hf.new_model(start.config, seed=config.seed)
    return hf.load_model(start.path, device=context.device)


def _pairs(config: DistillConfig, teacher: Parent, student: Parent) -> tuple[StatePair, ...]:
    if config.hidden is None:
        return ()
    norms = Norms.of(norm.removesuffix(".weight") for norm in teacher.family.links)
    sizes = teacher.shape.sizes, student.shape.sizes
    return (
        *state_pairs(config.hidden, norms, *(s["layer"] for s in sizes)),
        *relation_pairs(config.hidden, teacher.family, *sizes),
    )


def run_loop(
    context: Context,
    work: Build,
    student: "PreTrainedModel",
    teacher: "PreTrainedModel | None",
    train_blocks: Blocks,
    validation_blocks: Blocks,
    config: DistillConfig,
    pairs: tuple[StatePair, ...] = (),
) -> dict[str, Any]:
    """Train in place, write the curves, and return what belongs in the summary."""
    result = train(
        student,
        teacher,
        train_blocks,
        validation_blocks,
        config,
        work.scratch / "checkpoints",
        resume=work.resume,
        pairs=pairs,
        device=context.device,
    )
    io.write_new(work.path / METRICS, _lines(result.metrics))
    io.write_new(work.path / VALIDATION, _lines(result.validation))
    work.run |= result.throughput
    return {"steps": result.steps, "tokens": result.tokens, **_ends(result)}


def _lines(rows: list[dict[str, float]]) -> bytes:
    return "".join(json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in rows).encode()


def _ends(result: TrainResult) -> dict[str, Any]:
    return {"before": result.validation[0], "after": result.validation[-1]} if result.validation else {}
