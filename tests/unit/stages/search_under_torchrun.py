"""Run under torchrun: search as one of its processes, and leave what this one trained and what came of it.

torchrun --nproc-per-node 2 search_under_torchrun.py PLACE SCORES OUT
"""

import json
import os
import sys
from pathlib import Path

import torch

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.cli import torchrun
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.stages import search
from tests.unit.stages.place import context, data
from tests.unit.stages.test_search import config


def main() -> None:
    torch.set_num_threads(1)
    place, scores, out = map(Path, sys.argv[1:])
    parent, trained, original = open_source_model(place / "model"), [], search.train

    def train(*arguments, until, **options):
        trained.append((arguments[5].name, until))
        return original(*arguments, until=until, **options)

    search.train = train
    found = search.run(context(out), parent, Artifact.open(scores), data(place), config(parent))
    record = {"files": found.manifest.files, "trained": trained}
    Path(f"{out}-{os.environ['RANK']}.json").write_text(json.dumps(record))
    torchrun.leave()


if __name__ == "__main__":
    main()
