"""A run that stops at a step and goes on later is the uninterrupted run."""

import pytest
import torch

from minitron_cli import progress
from minitron_cli.errors import Interrupted
from tests.unit.distill import small


@pytest.mark.slow
def test_a_run_in_parts_is_the_run_at_once(tmp_path):
    whole, at_once = small.run(tmp_path / "whole")
    for until in (1, 4):
        _, part = small.run(tmp_path / "parts", until=until)
        assert part.steps == until
        assert part.metrics == at_once.metrics[:until], "one schedule, whatever the part"
    last, in_parts = small.run(tmp_path / "parts")
    assert in_parts.metrics == at_once.metrics
    torch.testing.assert_close(small.state(last), small.state(whole), rtol=0, atol=0)


def test_a_part_that_is_done_trains_nothing(tmp_path):
    first, _ = small.run(tmp_path, until=3, held_out=None)
    blocks = small.TinyBlocks()
    again, result = small.run(tmp_path, until=3, blocks=blocks, held_out=None)
    assert (result.steps, blocks.seen) == (3, [])
    torch.testing.assert_close(small.state(again), small.state(first), rtol=0, atol=0)


@pytest.mark.slow
def test_only_a_run_that_was_stopped_says_that_it_continues(tmp_path):
    small.run(tmp_path, until=2)
    display = small.AfterStep()
    progress.show_on(display)
    small.run(tmp_path, until=4)
    assert display.messages == []
    progress.show_on(small.AfterStep(5, lambda: progress.request_stop(15)))
    with pytest.raises(Interrupted):
        small.run(tmp_path)
    progress.request_stop(None)
    progress.show_on(display)
    small.run(tmp_path)
    assert display.messages == ["distill: continuing after step 5 of 6"]


@pytest.mark.slow
def test_what_holds_for_all_parts_is_warned_of_once(tmp_path):
    display = small.AfterStep()
    progress.show_on(display)
    for until in (1, 2):
        small.run(tmp_path, small.configured(warmup_steps=6), until=until)
    assert len(display.warned) == 1
    assert "the learning rate only rises" in display.warned[0]
