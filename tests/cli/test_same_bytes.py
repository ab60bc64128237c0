"""A process writes the same bytes whatever it did before."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minitron_cli import demo_teacher
from minitron_cli.artifacts.fingerprint import TOKENIZER_FILES
from tests.tiny import write_tiny

WORDS = "the cat sat on a mat and the dog ran over hills while birds sing in tall trees near old stone walls"
BEFORE = "import torch; torch.set_num_threads(1); torch.set_num_threads({threads}); "  # as writing a model does
PROGRAM = "import sys; from minitron_cli.cli import app; sys.argv[0] = 'minitron'; app.main()"


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one thread adds in one order")
def test_a_training_does_not_depend_on_what_its_process_did_before(tmp_path: Path) -> None:
    """Of a hidden size at which MKL divides a product of the backward pass in two ways."""
    sizes = {"hidden_size": 144, "intermediate_size": 384, "head_dim": 32}
    model = write_tiny(tmp_path / "model", vocab_size=2048, num_attention_heads=6, num_key_value_heads=2, **sizes)
    for file in TOKENIZER_FILES:
        if (source := Path(demo_teacher.__path__[0]) / file).is_file():
            shutil.copy(source, model)
    draw = random.Random(0)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(" ".join(draw.choice(WORDS.split()) for _ in range(40_000)))
    text = ("--data", "a.txt", "--validation", "b.txt", "--sequence-length", "256")
    training = ("steps=2", "batch_size=16", "micro_batch_size=16", "warmup_steps=0", "eval_blocks=2")
    made = []
    for name, before in (("fresh", ""), ("used", BEFORE.format(threads=2))):
        words = ["correct", "model", *text, *training, "--runs-dir", name]
        environment = os.environ | {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
        subprocess.run([sys.executable, "-c", before + PROGRAM, *words], cwd=tmp_path, env=environment, check=True)
        (found,) = (tmp_path / name).glob("*/correct/*/model.safetensors")
        made.append(found.read_bytes())
    assert made[0] == made[1]
