"""Everything a training stage does around the loop: load models, write curves, write the trained model."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor

from minitron_cli import io, memory, process_rank, progress
from minitron_cli.artifacts.build import Context, StageBuild
from minitron_cli.checkpoint import hf
from minitron_cli.cost.compute import model_size
from minitron_cli.data.pack import Blocks
from minitron_cli.distill import optimizer_kinds, sharding, trackers, weight_decay
from minitron_cli.distill.config import DistillConfig, MaskRefresh
from minitron_cli.distill.distributed import ProcessGroup, resolve_precision
from minitron_cli.distill.hidden_state_losses import StatePair
from minitron_cli.distill.optimizer_kinds import trained_bytes
from minitron_cli.distill.sharding import RowReader
from minitron_cli.distill.teacher_signals import TeacherSignals
from minitron_cli.distill.trainer import Placement, train
from minitron_cli.errors import InputError, RunFailed
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.model.families import family_of
from minitron_cli.model.runtime_tensors import disk_tensors, runtime_tensor
from minitron_cli.model.shape import Shape
from minitron_cli.results.base import ModelSize
from minitron_cli.results.run_record import ThroughputRecord
from minitron_cli.results.training import METRICS, VALIDATION, MaskResult, TrainingResult, ValidationPoint, Worsening
from minitron_cli.sparse.mask_file import MASKS, MaskWriter, new_mask_file
from minitron_cli.sparse.parameter_masks import ParameterMasks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T", bound=TrainingResult)
REPLICATED = Placement()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModels:
    """A student, its teacher if it has one, and how they are placed in memory."""

    student: "PreTrainedModel"
    teacher: "PreTrainedModel | None" = None
    placement: Placement = REPLICATED
    signals: TeacherSignals | None = None
    """What stands in for the teacher."""
    masks: ParameterMasks | None = None
    """Zeros of the student that are to stay."""


def load(
    context: Context,
    start: SourceModel,
    teacher: SourceModel | None,
    config: DistillConfig,
    signals: TeacherSignals | None = None,
) -> LoadedModels:
    """Load both models; without weights if they are to be sharded, so that no process ever holds a whole model.

    A teacher that `signals` stand in for is not loaded.
    """
    masks = _masks(start, config)
    models = _models(context, start, None if signals else teacher, config, masks.file.weights if masks else 0)
    return replace(models, signals=signals, masks=masks)


def _masks(start: SourceModel, config: DistillConfig) -> ParameterMasks | None:
    """Masks that the training keeps; says if it loses them."""
    masks = ParameterMasks.of(start)
    if masks and config.mask == "none":
        progress.say(f"{config.section}.mask=none: all weights are trained, and the zeros of {start.name} are lost")
        return None
    return masks


def _models(
    context: Context, start: SourceModel, teacher: SourceModel | None, config: DistillConfig, masked: int
) -> LoadedModels:
    group = ProcessGroup(context.device)
    dtype = torch.bfloat16 if resolve_precision(config.precision, group.device) == "bf16" else torch.float32
    trained = start.shape.parameters()
    teacher_bytes = _teacher_bytes(context, teacher, dtype) if teacher else 0
    if not sharding.is_wanted(config, group, trained, teacher_bytes + config.mask_bytes(masked)):
        student_bytes = int(trained * trained_bytes(config.optimizer).device)
        beside = replace(context, device="cpu") if config.teacher_device == "cpu" else context
        teacher_model = _teacher(beside, group, teacher, teacher_bytes, student_bytes) if teacher else None
        return LoadedModels(_student(context, start, config), teacher_model)
    device = str(group.device)
    teacher_model = hf.empty_model(teacher.path, device=device, dtype=dtype) if teacher else None
    teacher_rows = _rows(teacher, DTYPES.get(context.dtype)) if teacher else None
    if config.init == "random":
        return LoadedModels(
            hf.new_model(start.config, seed=config.seed), teacher_model, Placement(True, None, teacher_rows)
        )
    student = hf.empty_model(start.path, device=device, dtype=torch.float32)
    return LoadedModels(student, teacher_model, Placement(True, _rows(start), teacher_rows))


def check(config: DistillConfig) -> None:
    """RecipeError unless every package that the settings need is installed."""
    trackers.check(config.trackers)
    optimizer_kinds.check(config.optimizer, config.section)


def key_inputs(config: DistillConfig, shape: Shape) -> dict[str, str]:
    """What names rules among the inputs of a training on which they have an effect and were others before."""
    positions = {"positions": "of each block"} if config.positions else {}
    return positions | weight_decay.key_inputs(config, shape)


def check_masks(start: SourceModel, config: DistillConfig) -> None:
    """Raise InputError if the settings refresh masks of a model that has none."""
    if isinstance(config.mask, MaskRefresh) and not (start.path / MASKS).is_file():
        raise InputError(
            f"{config.section}.mask: {start.name} has no masks to refresh: run `minitron sparsify` first, or drop it"
        )


def _student(context: Context, start: SourceModel, config: DistillConfig) -> "PreTrainedModel":
    if config.init == "random":
        return hf.new_model(start.config, seed=config.seed)
    return hf.load_model(start.path, device=context.device)


def _teacher_bytes(context: Context, teacher: SourceModel, dtype: torch.dtype) -> int:
    """Peak size of the teacher: as loaded or in the compute precision, whichever is larger."""
    return max(teacher.size_bytes(context.dtype), teacher.shape.parameters() * dtype.itemsize)


def _teacher(
    context: Context, group: ProcessGroup, teacher: SourceModel, size: int, student_bytes: int
) -> "PreTrainedModel":
    """Load the teacher on the student's device or, if both do not fit and all accelerators are free, on several."""
    device = context.device
    is_alone = group.size == 1 and device.startswith("cuda") and torch.cuda.device_count() > 1
    if not is_alone or memory.fits(size, student_bytes, device):
        return hf.load_model(teacher.path, device=device, dtype=context.dtype)
    free = {i: int(memory.available_bytes(f"cuda:{i}") / memory.SPARE) for i in range(torch.cuda.device_count())}
    own = group.device.index or 0
    free[own] = max(0, free[own] - student_bytes)
    return hf.load_model(teacher.path, dtype=context.dtype, device_map=hf.spread(teacher.path, free, context.dtype))


def _rows(model: SourceModel, dtype: torch.dtype | None = None) -> RowReader:
    """Reader of rows of a checkpoint's tensors, cast to `dtype` as loading the whole model would."""

    def rows(name: str, like: Tensor, start: int, stop: int) -> Tensor:
        if name in model.checkpoint.tensors:
            found = model.checkpoint.read_rows(name, start, stop)
        else:
            shaped = torch.empty(like.shape, dtype=like.dtype, device="meta")
            found = runtime_tensor(model.family, name, shaped, model.checkpoint.read, torch.device("cpu"))[start:stop]
        return found.to(dtype) if dtype else found

    return rows


def run_loop(
    context: Context,
    work: StageBuild,
    models: LoadedModels,
    train_blocks: Blocks,
    validation_blocks: Blocks,
    config: DistillConfig,
    pairs: tuple[StatePair, ...] = (),
    *,
    name: str,
    kind: type[T],
) -> T:
    """Train the student in place, write the curves, and return a result of `kind`. Trackers know the run by `name`."""
    root = context.workspace.root
    settings = config.model_dump(mode="json")
    with trackers.opened(config.trackers, root / "trackers", root.name, name, settings) as log:
        result = train(
            models.student,
            models.teacher,
            train_blocks,
            validation_blocks,
            config,
            work.scratch / "checkpoints",
            resume=work.resume,
            pairs=pairs,
            device=context.device,
            placement=models.placement,
            masks=models.masks,
            signals=models.signals,
            log=log,
        )
    io.write_new(work.path / METRICS, _lines(result.metrics))
    io.write_new(work.path / VALIDATION, _lines(result.validation))
    work.measured.training = ThroughputRecord.model_validate(result.throughput)
    count = len(validation_blocks) if config.eval_blocks is None else min(config.eval_blocks, len(validation_blocks))
    of_step = {row["step"]: ValidationPoint.of(row) for row in result.validation}
    points, after = list(of_step.values()), of_step.get(result.exported)
    return kind(
        student=_size(models.student, train_blocks),
        teacher=_teacher_size(models, train_blocks),
        uses_teacher=config.needs_teacher,
        steps=result.steps,
        tokens=result.tokens,
        weights_of_step=result.exported,
        before=next(iter(points), None),
        after=after,
        sequence_length=train_blocks.sequence_length,
        validations=len(result.validation),
        validation_tokens=count * validation_blocks.sequence_length,
        signals=models.signals.result.what if models.signals else None,
        mask=_mask_result(models.masks, config) if models.masks else None,
        worse=Worsening.of(points, after, "kl" if config.needs_teacher else "loss") if after else None,
    )


def _teacher_size(models: LoadedModels, blocks: Blocks) -> ModelSize | None:
    if models.signals:
        return models.signals.result.teacher
    return None if models.teacher is None else _size(models.teacher, blocks)


def _mask_result(masks: ParameterMasks, config: DistillConfig) -> MaskResult:
    kind: Literal["frozen", "refreshed"] = "refreshed" if isinstance(config.mask, MaskRefresh) else "frozen"
    return MaskResult(
        kind=kind, patterns=masks.file.patterns, tensors=len(masks.file.specs), sparsity=masks.file.sparsity()
    )


def warn_if_worse(result: TrainingResult, section: str) -> None:
    """Warn if a training made its objective worse on held-out text."""
    if result.worse:
        progress.warn(f"{section}: {result.worse}: lower {section}.learning_rate")


def check_not_worse(result: TrainingResult, section: str) -> None:
    """RunFailed if a training made its objective worse on held-out text, or nothing was held out to tell."""
    if result.after is None:
        raise RunFailed(f"{section}: no held-out text tells whether the training made it worse: hold out some")
    if result.worse:
        raise RunFailed(f"{section}: {result.worse}: lower {section}.learning_rate, or train without --fail-if-worse")


def _size(model: "PreTrainedModel", blocks: Blocks) -> ModelSize:
    return model_size(Shape.of(family_of(model.config), model.config), blocks.sequence_length)


def _lines(rows: list[dict[str, float]]) -> bytes:
    return "".join(json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in rows).encode()


def write(work: StageBuild, start: SourceModel, models: LoadedModels, config: DistillConfig) -> None:
    """Write the trained model with the tensor names and dtypes of `start`, and its masks if it has any.

    All processes gather, the first writes.
    """
    tensors = _stored(start, models.student)
    if not process_rank.is_first_process():
        for _ in tensors:
            pass
        return
    if models.masks is None:
        hf.save_like(start.checkpoint, work.path, tensors)
        return
    with new_mask_file(work.path / MASKS, models.masks.file.specs) as file:
        masked = _masked(models.masks, isinstance(config.mask, MaskRefresh), tensors, file)
        hf.save_like(start.checkpoint, work.path, masked)


def _masked(
    masks: ParameterMasks, is_refreshed: bool, tensors: Iterable[tuple[str, Tensor]], file: MaskWriter
) -> Iterator[tuple[str, Tensor]]:
    """The same tensors; the mask of each is written on the way. RunFailed if a lost weight is not zero."""
    for name, tensor in tensors:
        if name in masks.file:
            kept = masks.of_part(name, tensor.abs()).cpu() if is_refreshed else masks.file.read(name)
            if tensor.cpu()[~kept].count_nonzero():
                raise RunFailed(f"pruned weights of {name} are not zero, so the model is not written: train it again")
            file.put(name, kept)
        yield name, tensor


def _stored(start: SourceModel, model: "PreTrainedModel") -> Iterator[tuple[str, Tensor]]:
    """Every tensor by its name on disk, one parameter at a time."""
    copies = {original: copy for copy, original in start.family.tied.items()} if start.shape.is_tied else {}
    for name, tensor in sharding.parameters(model):
        yield from disk_tensors(start.family, name, tensor)
        if name in copies:
            yield copies[name], tensor  # some checkpoints store a tied head
