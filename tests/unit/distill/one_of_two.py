"""Run under torchrun: train as one of its processes; the first writes the figures and a hash of the weights.

torchrun --nproc-per-node 2 one_of_two.py OUT SCRATCH [STOP_AFTER]
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import torch

from minitron_cli import progress
from minitron_cli.cli import torchrun
from minitron_cli.errors import Interrupted
from tests.unit.distill import small
from tests.unit.distill.test_trainer import FULL, PAIRS


def main() -> None:
    torch.set_num_threads(1)
    rank, out, scratch = int(os.environ["RANK"]), Path(sys.argv[1]), Path(sys.argv[2])
    if len(sys.argv) > 3 and rank == 1:  # a stop that only one of the two gets
        progress.show_on(small.AfterStep(int(sys.argv[3]), lambda: progress.request_stop(signal.SIGTERM)))
    blocks = small.TinyBlocks()
    try:
        student, result = small.run(scratch, FULL, pairs=PAIRS, blocks=blocks)
        weights = b"".join(p.detach().numpy().tobytes() for p in student.parameters())
        figures = {
            "metrics": result.metrics,
            "validation": result.validation,
            "weights": hashlib.sha256(weights).hexdigest(),
        }
    except Interrupted as e:
        figures = {"exit_code": e.exit_code}
    (out / f"{rank}.json").write_text(json.dumps({**figures, "seen": blocks.seen}))
    torchrun.leave()


if __name__ == "__main__":
    main()
