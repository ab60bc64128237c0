"""Work of a training run: distillation, or correction of the teacher."""

import math

from minitron_cli.cost import derive
from minitron_cli.cost.compute import model_size
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.fused.token_chunks import CHUNK_BYTES
from minitron_cli.distill.losses.two_pass import TwoPassLoss
from minitron_cli.distill.optimizer_kinds import OptimizerKind, saved_bytes, trained_bytes
from minitron_cli.price.work import ITEM_BYTES, LARGER, Moved, Subject, Work
from minitron_cli.results.training import TrainingResult

FP32 = ITEM_BYTES["float32"]
LOW_MEMORY_BYTES = 20 << 20  # of logits, see `DistillConfig.low_memory`


def work(
    student: Subject,
    teacher: Subject | None,
    config: DistillConfig,
    length: int,
    held_out_blocks: int,
    *,
    compute_dtype: str,
    device: str = "cpu",
    is_sharded: bool = False,
    may_spread: bool = False,
    processes: int = 1,
    masked: int = 0,
) -> Work:
    """Work of training a student on blocks of `length` tokens.

    `compute_dtype` is the name of the dtype that products are computed in, which the teacher's weights have too.
    `masked`: weights of the student's masked tensors, see `distill.masking`.
    `may_spread`: the teacher is not on the student's device, or leaves it if it does not fit there.
    """
    steps = config.total_steps(length)
    result = _result(student, teacher, config, length, held_out_blocks)
    parameters = student.shape.parameters()
    reader = teacher or student
    parts = processes if is_sharded else 1
    masks = config.mask_bytes(masked // parts)
    states, bests = math.ceil(steps / config.save_every), _best_saves(config, steps, held_out_blocks)
    state, best = int(saved_bytes(config.optimizer) * parameters), FP32 * parameters
    return Work(
        what=f"{steps:,} steps of {config.batch_size:,} x {length:,} tokens",
        passes=tuple(derive.passes(result)),
        model=reader.runs(config.micro_batch_size, length, compute_dtype),
        teacher_device="cpu" if teacher and config.teacher_device == "cpu" else "",
        student=student.runs(config.micro_batch_size, length, "float32"),
        training=config,
        moved={
            "load the models": Moved(starts=1, read=student.weights_bytes + (teacher.weights_bytes if teacher else 0)),
            "optimizer": Moved(updates=parameters * steps // parts),
            "checkpoints": Moved(written=(states * state + bests * best) // parts),
            "result": Moved(written=student.weights_bytes),
        },
        certain=held(
            parameters // parts, None if may_spread else teacher, compute_dtype, config.optimizer, parts, device
        )
        | ({"masks": masks} if masks else {}),
        host={} if device == "cpu" else _host(parameters, teacher, config, compute_dtype),
        transient=_transient(student, teacher, config, length, compute_dtype),
        disk={
            "result": student.weights_bytes,
            "checkpoints": min(config.keep_last + 1, states) * state + min(_bests_at_once(config), bests) * best,
        },
        remedies=_remedies(config),
        weight_remedies=_weight_remedies(config, device, has_teacher=teacher is not None and not may_spread)
        if parts == 1
        else (),
        sharding="" if parts > 1 or config.kept_whole else f"{config.section}.sharding=full",
        processes=processes,
    )


def _result(
    student: Subject, teacher: Subject | None, config: DistillConfig, length: int, held_out_blocks: int
) -> TrainingResult:
    """What the run will have taken, with nothing measured yet."""
    steps = config.total_steps(length)
    evaluated = held_out_blocks if config.eval_blocks is None else min(config.eval_blocks, held_out_blocks)
    return TrainingResult(
        student=model_size(student.shape, length),
        teacher=model_size(teacher.shape, length) if teacher else None,
        uses_teacher=config.needs_teacher,
        steps=steps,
        tokens=steps * config.batch_size * length,
        weights_of_step=steps,
        sequence_length=length,
        validations=1 + math.ceil(steps / config.eval_every) if held_out_blocks else 0,
        validation_tokens=evaluated * length,
    )


def _bests_at_once(config: DistillConfig) -> int:
    """Best weights on disk while some are written: these, those before, and those that the newest checkpoint knows if
    there are evaluations between two checkpoints."""
    return 3 if config.eval_every < config.save_every else 2


def _best_saves(config: DistillConfig, steps: int, held_out_blocks: int) -> int:
    """Times that the best weights are written, without moments, at most: after each evaluation if they are exported."""
    return 1 + math.ceil(steps / config.eval_every) if config.export == "best" and held_out_blocks else 0


def held(
    parameters: int,
    teacher: Subject | None,
    compute_dtype: str,
    optimizer: OptimizerKind = "adamw",
    parts: int = 1,
    device: str = "cpu",
) -> dict[str, int]:
    """Memory of one process on its device that no setting of the batches changes."""
    copies = FP32 if optimizer == "adamw_offload" and device == "cpu" else 0  # the weights that the moments update
    moments = trained_bytes(optimizer).on(device) - 2 * FP32 - copies
    trained = {
        "weights": (FP32 + copies) * parameters,
        "gradients": FP32 * parameters,
        "moments": int(moments * parameters),
    }
    return trained | ({"teacher": _teacher_bytes(teacher, compute_dtype) // parts} if teacher else {})


def _host(parameters: int, teacher: Subject | None, config: DistillConfig, compute_dtype: str) -> dict[str, int]:
    """Memory of the host that one process takes for what its accelerator does not hold."""
    optimizer = int(trained_bytes(config.optimizer).host * parameters)
    beside = _teacher_bytes(teacher, compute_dtype) if teacher and config.teacher_device == "cpu" else 0
    parts = {f"optimizer={config.optimizer}": optimizer, "teacher_device=cpu": beside}
    return {name: size for name, size in parts.items() if size}


def _teacher_bytes(teacher: Subject, compute_dtype: str) -> int:
    return teacher.shape.parameters() * ITEM_BYTES[compute_dtype]


def _transient(
    student: Subject, teacher: Subject | None, config: DistillConfig, length: int, compute_dtype: str
) -> dict[str, int]:
    """Logits of one chunk, and the gradient of the head before it is added to that of the steps before."""
    vocab, hidden = student.shape.sizes["vocab"], student.shape.sizes["hidden"]
    tokens = config.micro_batch_size * length
    per_token = vocab * ITEM_BYTES[compute_dtype] * (1 + (teacher is not None and config.needs_teacher))
    return {
        "logits": LOW_MEMORY_BYTES if config.low_memory else min(CHUNK_BYTES, tokens * per_token),
        "gradient of the head": vocab * hidden * FP32,
        "forward pass": student.runs(config.micro_batch_size, length, compute_dtype).layer_bytes(),
    }


def _remedies(config: DistillConfig) -> tuple[str, ...]:
    section = config.section
    smaller_batch = (f"{section}.micro_batch_size=1",) if config.micro_batch_size > 1 else ()
    recompute = () if config.activation_checkpointing else (f"{section}.activation_checkpointing=true",)
    reads_once = all(isinstance(loss, TwoPassLoss) for loss in config.losses)
    logits = (f"{section}.low_memory=true",) if reads_once and not config.low_memory else ()
    return (*smaller_batch, *recompute, *logits)


def _weight_remedies(config: DistillConfig, device: str, *, has_teacher: bool) -> tuple[str, ...]:
    """Settings with which the device holds less of weights, gradients and moments. None goes with sharding.

    On a CPU, which no other processes relieve, they may not be enough. `has_teacher`: the device holds the teacher too.
    """
    if config.sharding == "full":
        return ()
    kinds: tuple[OptimizerKind, ...] = ("adamw_8bit", "adamw_offload")
    taken = trained_bytes(config.optimizer).on(device)
    found = [f"optimizer={kind}" for kind in kinds if trained_bytes(kind).on(device) < taken]
    if has_teacher and device != "cpu":
        found.append("teacher_device=cpu")
    otherwise = [LARGER] if found and device == "cpu" else []
    return (*(f"{config.section}.{setting}" for setting in found), *otherwise)
