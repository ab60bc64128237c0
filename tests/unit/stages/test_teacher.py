"""What is said of the training of a teacher before it starts."""

from pathlib import Path

import pytest

from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.data.sources import DataConfig, TextFiles
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.losses.cross_entropy import CrossEntropy
from minitron_cli.errors import DryRunStop
from minitron_cli.stages import teacher
from minitron_cli.stages.teacher import TeacherConfig

SIZES = {"vocab_size": 300, "hidden": 16, "ffn": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 8}


def test_a_dry_run_prices_the_training_of_the_teacher(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text " * 100)
    training = DistillConfig(
        tokens=4096, batch_size=4, micro_batch_size=4, losses=(CrossEntropy(),), eval_every=2, eval_blocks=3
    )
    data = DataConfig(sources=[TextFiles(paths=[str(tmp_path / "text.txt")])], sequence_length=256)
    with pytest.raises(DryRunStop) as stop:
        teacher.run(
            Context(Workspace(tmp_path / "runs"), dry_run=True), data, TeacherConfig(**SIZES, training=training)
        )
    price = stop.value.price
    assert price is not None
    assert price.what == "4 steps of 4 x 256 tokens"
    assert price.tokens == 4096 + 3 * 3 * 256  # the held-out blocks before, after two steps and at the end
    embedding, layer = 2 * 300 * 16, 16 * (2 * 16 + 2 * 8) + 3 * 16 * 32 + 2 * 16
    assert price.memory["weights"] == 4 * (embedding + 2 * layer + 16)
    assert price.left_out == ("training the tokenizer",)
