"""Compare a student's step on stored signals with its cross-entropy step, and signals on disk with their prediction.

    python -m benchmarks signals step
    python -m benchmarks signals disk --model DIRECTORY --text FILE

step: a whole optimizer step of the same student with the same fused head, in CPU seconds of one thread. Signals are
decoded within the step, where the training loop decodes those of the next step on other threads. disk: signals of a
pretrained teacher, whose size is predicted from the number of ids of a position: of all, and of a few of the blocks.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.distill import LAYERS, STEP_VOCAB, STUDENT_HIDDEN, TEACHER_HIDDEN, model_of
from benchmarks.harness import alternate, ratio, record
from benchmarks.layer_major import batches
from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.data.batches import evenly_spaced
from minitron_cli.data.sources import DataConfig, TextFiles
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.distributed import ProcessGroup
from minitron_cli.distill.losses.cross_entropy import CrossEntropy
from minitron_cli.distill.losses.forward_kl import ForwardKL
from minitron_cli.distill.model_pair import ModelPair
from minitron_cli.distill.optimizer import Optimizer
from minitron_cli.distill.targets import targets
from minitron_cli.distill.teacher_signals import TeacherSignals
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.signals import shards
from minitron_cli.signals.config import Sampled, SignalKind, TeachConfig, TopK
from minitron_cli.signals.encoding import Encoding
from minitron_cli.signals.shards import StoredSignals, Visit
from minitron_cli.stages import teach

SEQUENCES, LENGTH = 2, 256
SPREAD = 4.0  # of random logits: with it 50 draws have about as many different ids as on prose
SAMPLE = 8  # blocks that a size is predicted from
Rows = list[dict[str, Any]]


class Step:
    """One optimizer step of a student, on the text, on a live teacher, or on stored signals."""

    def __init__(self, *, losses: tuple[Any, ...], is_live: bool = False, stored: StoredSignals | None = None) -> None:
        config = DistillConfig(steps=1, losses=losses)
        teacher = model_of(TEACHER_HIDDEN) if is_live else None
        self.models = ModelPair(model_of(STUDENT_HIDDEN), teacher, config, (), ProcessGroup("cpu"), "fp32")
        self.models.student.train()
        self.optimizer = Optimizer(self.models.trained(), config)
        self.batch = batches(SEQUENCES, LENGTH, STEP_VOCAB, SEQUENCES)[0]
        self.stored = stored

    def __call__(self) -> None:
        target = targets(self.batch)
        losses = self.models.losses(self.batch, target, len(target.labels_N), 0.0, self.signals())
        losses.total.backward()
        self.optimizer.clip_()
        self.optimizer.step_(1e-5)

    def signals(self) -> Any:
        """Signals of the batch, decoded; None without any."""
        return self.stored.rows([Visit(i, 0) for i in self.batch.sample_ids]) if self.stored else None


def stored(kind: SignalKind, directory: Path) -> StoredSignals:
    """Signals of random logits for the blocks of a step."""
    encoding, path = Encoding(kind, STEP_VOCAB), directory / shards.file_name(kind.kind, 0)
    generator = torch.Generator().manual_seed(0)
    made = {
        i: encoding.encoded(
            [torch.randn(LENGTH - 1, STEP_VOCAB, generator=generator) * SPREAD], i, np.arange(LENGTH - 1)
        )
        for i in range(SEQUENCES)
    }
    shards.write(path, made)
    return StoredSignals([path], encoding)


def step(rounds: int, directory: Path) -> Rows:
    """A step each, and the decoding alone."""
    drawn, most = stored(Sampled(), directory), stored(TopK(), directory)
    ways = {
        "cross-entropy": Step(losses=(CrossEntropy(),)),
        "50 draws": Step(losses=(ForwardKL(),), stored=drawn),
        "top 128": Step(losses=(ForwardKL(),), stored=most),
        "live teacher": Step(losses=(ForwardKL(),), is_live=True),
    }
    decoding = {f"decoding of {name}": ways[name].signals for name in ("50 draws", "top 128")}
    seconds = alternate(ways | decoding, rounds)
    aims = {"50 draws": 1.02, "decoding of 50 draws": 0.03}
    return [
        {
            "step": name,
            "CPU seconds": statistics.median(seconds[name]),
            "x cross-entropy": ratio(seconds, name, "cross-entropy"),
            "target": aims.get(name, ""),
        }
        for name in seconds
    ]


def disk(model: Path, text: Path, tokens: int, directory: Path) -> Rows:
    """Bytes of each position, and those predicted from the ids of the first blocks."""
    data = DataConfig(sources=(TextFiles(paths=(str(text),)),), sequence_length=LENGTH, validation_fraction=0.1)
    found = []
    for kind in (Sampled(), TopK()):
        config = TeachConfig(signals=kind, tokens=tokens, eval_blocks=1)
        signals = TeacherSignals.of(
            teach.run(Context(Workspace(directory / kind.kind)), open_source_model(model), data, config)
        )
        encoding, made = signals.train.encoding, signals.result
        blocks = signals.train.blocks
        some = signals.train.rows([Visit(blocks[i], 0) for i in evenly_spaced(len(blocks), SAMPLE)])
        tables = encoding.block_bytes() * made.train.blocks / made.train.positions
        ids_of_some = float((some.weights_NK > 0).sum()) / some.tokens
        predicted = encoding.token_bytes(made.ids_per_position) + tables
        entropy = some.entropy_N.mean().item() if some.entropy_N is not None else ""
        found.append(
            {
                "signals": str(kind),
                "vocabulary": made.vocab,
                "positions": made.train.positions,
                "ids": made.ids_per_position,
                "entropy": entropy,
                "bytes": made.position_bytes,
                "predicted": predicted,
                "ratio": made.position_bytes / predicted,
                f"of {SAMPLE} blocks": encoding.token_bytes(ids_of_some) + tables,
            }
        )
    return found


def main(arguments: list[str]) -> None:
    """Run the parts and record the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks signals", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", choices=["step", "disk"], default="step")
    parser.add_argument("--model", type=Path, help="pretrained teacher, for disk")
    parser.add_argument("--text", type=Path, help="text that it reads, for disk")
    parser.add_argument("--tokens", type=int, default=16_384, help="tokens that it reads")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    if options.part == "disk" and not (options.model and options.text):
        parser.error("disk needs --model and --text")
    with tempfile.TemporaryDirectory() as temporary:
        at = Path(temporary)
        if options.part == "disk":
            rows = disk(options.model, options.text, options.tokens, at)
            record("signals-disk", f"Bytes of a position: {options.model.name} on prose", rows)
            return
        torch.set_num_threads(1)
        note = (
            f"{LAYERS} layers of hidden size {STUDENT_HIDDEN}, vocabulary {STEP_VOCAB}, {SEQUENCES} x {LENGTH} tokens."
        )
        record("signals-step", "A student's step on stored signals", step(options.rounds, at), [note])


if __name__ == "__main__":
    main(sys.argv[1:])
