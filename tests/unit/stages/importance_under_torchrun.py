"""Run under torchrun: torchrun --nproc-per-node 2 importance_under_torchrun.py PLACE WORKSPACE MODE"""

import sys
from pathlib import Path

import torch

from minitron_cli.cli import torchrun
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.stages import importance
from tests.unit.stages.place import context, data

if __name__ == "__main__":
    torch.set_num_threads(1)
    place, workspace, mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    config = ImportanceConfig(samples=7, batch_size=2, mode=mode, blocks=(2,), layer_removal=True, removal_samples=5)
    importance.run(context(workspace), open_source_model(place / "model"), data(place), config)
    torchrun.leave()
