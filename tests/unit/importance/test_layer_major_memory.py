"""How much memory the layer-major pass takes, of a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import layer_major

STATUS = Path("/proc/self/status")
BUDGET = 1_000_000
LAYERS, HIDDEN, FFN, VOCAB = 16, 1024, 4096, 16000

# glibc keeps freed blocks for reuse, 20 to 55 MB of them from run to run; this gives each back to the system at once.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}

MEASURE = """
import json, sys
from pathlib import Path
import torch
from benchmarks.layer_major import batches, measure
from benchmarks.harness import anonymous_bytes
torch.set_num_threads(1)
directory, vocab, budget = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
print(json.dumps(measure(directory, batches(8, 64, vocab, 1), budget, layer_removal=True)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="macOS does not tell anonymous memory apart")
def test_one_layer_the_embedding_and_the_budget_are_all_that_is_held(tmp_path):
    size = layer_major.write_random(tmp_path, layer_major.llama(LAYERS, HIDDEN, FFN, VOCAB, 8, 4))
    assert size > 500e6
    arguments = [str(tmp_path), str(VOCAB), str(BUDGET)]
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", MEASURE, *arguments]
    run = subprocess.run(command, cwd=root, env={**os.environ, **GIVE_BACK}, capture_output=True, check=True)
    found = json.loads(run.stdout)
    layer = 2 * (HIDDEN * HIDDEN * 3 + HIDDEN * FFN * 3)
    embedding = 2 * VOCAB * HIDDEN
    grown = (found["peak RssAnon GB"] - found["before GB"]) * 1e9
    held = layer + embedding + BUDGET + 16e6  # the last is for libraries and one batch's activations
    assert grown < held < size / 2
