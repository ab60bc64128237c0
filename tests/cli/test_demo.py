"""`minitron demo`, on a tiny model in place of the one that ships."""

from pathlib import Path

import pytest

from minitron_cli.cli.demo import NEXT
from minitron_cli.pipeline import DISTILLED, PRUNED
from minitron_cli.results.evaluation import PARENT
from tests.cli.program import Run


@pytest.mark.slow
def test_the_demo_shows_what_each_part_does_and_ends_with_the_commands_for_ones_own_model(run: Run, tiny: Path) -> None:
    small = (
        f"model={tiny / 'model'}",
        f"data.sources=[{{kind: files, paths: [{tiny / 'text.jsonl'}]}}]",
        "data.validation=[]",
        "data.sequence_length=16",
        "importance={samples: 6, batch_size: 2}",
        "search=null",
        "prune={shape: {ffn: 64}, repair: least_squares, repair_samples: 8}",
        "distill={steps: 2, batch_size: 2, warmup_steps: 0, eval_blocks: 2}",
        "evaluate={blocks: 2}",
    )
    result = run("demo", *small)
    assert result.exit_code == 0, result.stderr
    lines = result.stderr.splitlines()
    metrics = next(i for i, line in enumerate(lines) if line.startswith("Metrics"))
    labels = [word for word in lines[metrics + 1].split() if word not in ("metric", "items")]
    assert labels == [PARENT, "without-repair", PRUNED, DISTILLED, "random-init"]
    assert [line.strip() for line in lines[-len(NEXT) :]] == list(NEXT)
    quiet = run("demo", *small, "--quiet")
    assert quiet.exit_code == 0
    assert NEXT[0] not in quiet.stderr
