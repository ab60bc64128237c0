"""Refusal of a run that cannot fit into the device's memory, before anything is loaded, and how a price is said."""

import math
from collections.abc import Sequence

import torch

from minitron_cli import memory, process_rank, progress
from minitron_cli.artifacts.build import Context
from minitron_cli.checkpoint import hf
from minitron_cli.data.pack import Blocks
from minitron_cli.device import emulates
from minitron_cli.distill import sharding
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.distributed import resolve_precision
from minitron_cli.errors import EnvironmentFault
from minitron_cli.figures import Figure, memory_size
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.price import estimate, subject, training
from minitron_cli.price.estimate import Place
from minitron_cli.price.work import ITEM_BYTES, LARGER, Work
from minitron_cli.results.price import Price
from minitron_cli.signals.config import TeachConfig
from minitron_cli.sparse.mask_file import MaskFile

LIBRARIES = "libraries"
"""Part of the memory that is held before anything is loaded, which what is free does not include."""
TOKENS = Figure("tokens", "tokens", style="short")
FLOPS = Figure("FLOPs", "FLOP", style="power")
SECONDS = Figure("time", style="duration")
MEMORY = Figure("memory", style="bytes")


def offered(context: Context, stage: str, work: Work) -> Price:
    """Price of a stage's work, said in one line and with `--verbose` by part, unless it is all that was asked for.

    EnvironmentFault if the work cannot fit into memory.
    """
    libraries = _libraries(context, work)
    found = estimate.price(work, Place(context.device, context.workspace.root))
    check(work, found, context.device)
    _remark_if_emulated(work, context.device)
    found = found.model_copy(update={"memory": {**found.memory, LIBRARIES: libraries}}) if libraries else found
    if not context.dry_run:
        progress.say(f"{stage}: {line(found, context.device)}")
        progress.priced(found)
    return found


def _libraries(context: Context, work: Work) -> int:
    """Memory of the libraries, with those of the model if it is about to run; 0 on an accelerator."""
    if context.device != "cpu":
        return 0
    if not context.dry_run:  # imported now rather than a moment later, to be among what is measured
        config = hf.config_from_dict(dict(work.model.config), "the config of the model")
        hf.empty_model_of(config, device="cpu", dtype=torch.float32)
    return memory.resident_bytes()


def offered_training(
    context: Context,
    student: SourceModel,
    teacher: SourceModel | None,
    config: DistillConfig,
    blocks: Blocks,
    held_out_blocks: int,
) -> Price:
    """Price of training a student on blocks, as in `offered`."""
    dtype, processes, device = compute_dtype(config, context.device), process_rank.process_count(), context.device
    taught_by = subject.of_source(teacher, context.dtype) if teacher else None
    is_beside = config.teacher_device == "auto" or device == "cpu"
    teacher_bytes = teacher.shape.parameters() * ITEM_BYTES[dtype] if teacher and is_beside else 0
    trained = student.shape.parameters()
    masked = masks.weights if (masks := MaskFile.beside(student.path)) else 0
    beside = teacher_bytes + config.mask_bytes(masked)
    is_replica = sharding.fits_replicated(device, processes, config.optimizer, trained, beside)
    may_shard = processes > 1 and not config.kept_whole
    work = training.work(
        subject.of_source(student),
        taught_by,
        config,
        blocks.sequence_length,
        held_out_blocks,
        compute_dtype=dtype,
        device=device,
        is_sharded=may_shard and (config.sharding == "full" or (config.sharding == "auto" and not is_replica)),
        may_spread=not is_beside or (processes == 1 and device.startswith("cuda") and torch.cuda.device_count() > 1),
        processes=processes,
        masked=masked,
    )
    return offered(context, config.section, work)


def compute_dtype(config: DistillConfig | TeachConfig, device: str) -> str:
    """Name of the dtype that a training, or a teacher, computes products in."""
    return "bfloat16" if resolve_precision(config.precision, torch.device(device)) == "bf16" else "float32"


def check(work: Work, price: Price, device: str) -> None:
    """Raise EnvironmentFault if what certainly is in memory does not fit; warn if the estimate of all of it does not.

    What processes on one CPU hold counts for each of them.
    """
    together = work.processes if device == "cpu" else 1
    free = memory.available_bytes(device)
    certain, estimate = sum(work.certain.values()) * together, price.memory_bytes * together
    has = f"and {device} has {memory_size(free)} free"
    if certain > free:
        parts = ", ".join(f"{name} {memory_size(size)}" for name, size in work.certain.items())
        remedies = work.weight_remedies
        if work.sharding and device != "cpu":
            remedies = (*remedies, f"--gpus {math.ceil(certain / max(free, 1))} with {work.sharding}")
        raise EnvironmentFault(f"this needs {memory_size(certain)} of memory ({parts}) {has}: {_advice(remedies)}")
    _check_host(work, device)
    if estimate > free:
        progress.warn(f"this may need {memory_size(estimate)} of memory {has}: {_advice(work.remedies)}")


def _check_host(work: Work, device: str) -> None:
    """Raise EnvironmentFault if the host lacks memory for what the processes on its accelerators keep there."""
    needed, free = sum(work.host.values()) * process_rank.process_count_here(), memory.available_bytes("cpu")
    if device != "cpu" and needed > free:
        raise EnvironmentFault(
            f"{' and '.join(work.host)} need {memory_size(needed)} of the host's memory, which has {memory_size(free)} "
            "free: drop one of these settings, or use fewer processes"
        )


def _remark_if_emulated(work: Work, device: str) -> None:
    """Say what is faster, if long work runs in a dtype that the device has no instructions for."""
    if work.passes and not work.is_quick and emulates(getattr(torch, work.model.dtype), device):
        progress.warn_once(
            f"this CPU has no instructions for {work.model.dtype}: --dtype float32 computes with the same weights "
            "several times as fast, in twice the memory"
        )


def _advice(remedies: Sequence[str]) -> str:
    return f"set {', or '.join(remedies)}" if remedies else LARGER


def line(price: Price, device: str) -> str:
    """Price in one line."""
    seconds = price.seconds
    facts = [
        price.what,
        f"models read {TOKENS.text(price.tokens)}" if price.tokens else "",
        FLOPS.text(price.flops) if price.flops else "",
        f"{_time(seconds)} on {device}",
        f"{MEMORY.text(price.memory_bytes)} of memory" if price.memory_bytes else "",
        f"{MEMORY.text(price.disk_bytes)} of disk" if price.disk_bytes else "",
        *(f"without {name}" for name in price.left_out),
    ]
    return ", ".join(filter(None, facts))


def _time(seconds: float | None) -> str:
    """Time in words. Seconds that were not timed beforehand are few."""
    if seconds is None:
        return "seconds"
    return f"about {SECONDS.text(seconds)}" if seconds >= 1 else "under 1 s"
