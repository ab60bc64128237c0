"""Training on stored signals and on a part of the positions, at the level of the loop."""

# N scored token, V vocab, S chosen token

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from minitron_cli.data.batches import batch
from minitron_cli.distill import teaching, training_run
from minitron_cli.distill.distributed import ProcessGroup
from minitron_cli.distill.fused.entropy import entropy, least_sure
from minitron_cli.distill.fused.head_matmul import HeadInput
from minitron_cli.distill.model_pair import ModelPair
from minitron_cli.distill.position_choice import PositionChoice
from minitron_cli.distill.targets import NOTHING, targets
from minitron_cli.model.families import family_of
from minitron_cli.model.lm_head import Head
from minitron_cli.model.shape import Shape
from minitron_cli.signals import shards
from minitron_cli.signals.config import Sampled, TopK
from minitron_cli.signals.encoding import Encoding
from minitron_cli.signals.read_ahead import ReadAhead
from minitron_cli.signals.shards import StoredSignals, Visit
from tests.unit.distill import small
from tests.unit.distill.small import TinyBlocks, configured, run, state

HALF = {"share": 0.5}


@dataclass(frozen=True)
class Signals:
    """What the loop reads of signals."""

    train: StoredSignals
    validation: StoredSignals
    fingerprint: str = "signals"


def stored(directory: Path, kind: Any, epochs: int = 1) -> Signals:
    """Signals of the small teacher for the blocks that `small.run` trains and evaluates on."""
    encoding = Encoding(kind, small.VOCAB)
    teacher = teaching.Teacher(small.teacher(), torch.device("cpu"), "fp32", 3)
    found = []
    for split, blocks, passes in (("train", TinyBlocks(), epochs), ("validation", TinyBlocks(5, seed=1), 1)):
        piece = teaching.Piece(split, 0, tuple(range(len(blocks))), passes)
        path = directory / piece.name
        shards.write(path, teacher.signals(cast("Any", blocks), piece, encoding, lambda n=1, **figures: None))
        found.append(StoredSignals([path], encoding))
    return Signals(*found)


def all_ids() -> TopK:
    return TopK(k=small.VOCAB, allow_small_k=True)


@pytest.mark.parametrize(
    ("low_memory", "positions"),
    [
        (False, HALF),
        *(pytest.param(low_memory, some, marks=pytest.mark.slow) for low_memory, some in [(False, None), (True, HALF)]),
    ],
)
def test_all_ids_train_as_the_live_teacher_does(tmp_path: Path, low_memory: bool, positions: Any) -> None:
    config = configured(low_memory=low_memory, positions=positions)
    _, live = run(None, config)
    _, found = run_on(stored(tmp_path, all_ids()), config)
    for rows in ("metrics", "validation"):
        for ours, theirs in zip(getattr(found, rows), getattr(live, rows), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)  # probabilities are rounded


def test_a_teacher_in_bf16_keeps_its_rotary_frequencies() -> None:
    """In bf16, as its weights are, they would turn late positions by another angle."""
    model, precise = small.teacher(), small.teacher()
    teaching.Teacher(model, torch.device("cpu"), "bf16", 3)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for (name, ours), theirs in zip(model.named_buffers(), precise.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


def run_on(signals: Signals, config: Any, scratch: Path | None = None, **options: Any) -> Any:
    """A run that has signals and no teacher."""
    student, blocks, held_out = small.student(), TinyBlocks(), TinyBlocks(5, seed=1)
    result = small.train(student, None, blocks, held_out, config, scratch, signals=cast("Any", signals), **options)
    return student, result


@pytest.mark.slow
def test_a_run_on_signals_resumes_to_the_last_bit(tmp_path: Path) -> None:
    """Over three passes of two draws each, with processes of another batch: a step reads what its number says."""
    signals, config = stored(tmp_path, Sampled(draws=9), epochs=2), configured(positions=HALF)
    whole, result = run_on(signals, config)
    run_on(signals, config, tmp_path / "run", until=4)
    resumed, again = run_on(signals, config, tmp_path / "run")
    assert result.metrics == again.metrics
    assert all(torch.equal(p, state(resumed)[name]) for name, p in state(whole).items())
    other = configured(positions=None, micro_batch_size=1)
    _, one = run_on(signals, other)
    _, four = run_on(signals, configured(positions=None, micro_batch_size=4))
    for ours, theirs in zip(one.metrics, four.metrics, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_which_positions_are_chosen_does_not_depend_on_micro_batches() -> None:
    runs = [run(None, configured(positions={"share": 0.3}, micro_batch_size=size)) for size in (4, 1)]
    for whole, parts in zip(*(result.metrics for _, result in runs), strict=True):
        assert whole == pytest.approx(parts, rel=1e-4)


def test_a_training_on_some_positions_has_a_key_of_its_own() -> None:
    shape = Shape.of(family_of(small.student().config), small.student().config)
    assert training_run.key_inputs(configured(positions=HALF), shape) == {"positions": "of each block"}
    assert training_run.key_inputs(configured(), shape) == {}


def test_another_pass_reads_other_draws(tmp_path: Path) -> None:
    signals = stored(tmp_path, Sampled(draws=9), epochs=2)
    asked: list[int] = []
    rows = signals.train.rows

    class Watched:
        def rows(self, visits: Any) -> Any:
            asked.extend(visit.epoch for visit in visits)
            return rows(visits)

    run_on(Signals(cast("Any", Watched()), signals.validation), configured())
    assert asked == sorted(asked)
    assert [asked.count(epoch) for epoch in (0, 1, 2)] == [10, 10, 4]  # 6 steps of 4 over 10 blocks


def test_a_process_without_a_part_of_its_own_takes_part_with_nothing(tmp_path: Path) -> None:
    models = ModelPair(small.student(), None, configured(positions=HALF), (), ProcessGroup("cpu"), "fp32")
    rows = stored(tmp_path, Sampled(draws=9)).train.rows([Visit(0, 0)]).part(slice(0))
    part = batch(cast("Any", TinyBlocks()), [0])
    assert models.losses(part, NOTHING, 1, 0.0, rows).total == 0
    assert models.evaluate(part, NOTHING, rows).tolist() == [0, 0]


def test_signals_that_were_requested_are_those_that_come(tmp_path: Path) -> None:
    signals = stored(tmp_path, Sampled(draws=9)).train
    ahead, visits = ReadAhead(signals), [[Visit(i, 0), Visit(i + 1, 0)] for i in range(6)]
    ahead.request(visits)
    for each in reversed(visits):
        assert torch.equal(ahead.rows(each).ids_NK, signals.rows(each).ids_NK)
    assert torch.equal(ahead.rows(visits[0]).ids_NK, signals.rows(visits[0]).ids_NK)  # and those that were not
    ahead.close()


def test_entropy_is_that_of_the_softmax() -> None:
    hidden_ND, head = (
        torch.randn(700, 8, generator=torch.Generator().manual_seed(0)),
        Head(torch.randn(3000, 8), None, 9.0),
    )
    wanted = torch.distributions.Categorical(logits=head.logits(hidden_ND)).entropy()
    found = entropy(HeadInput(hidden_ND, head))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    chosen = least_sure(HeadInput(hidden_ND, head), [700], [140])
    assert chosen.tolist() == sorted(wanted.topk(140).indices.tolist())
    both = [*wanted[:300].topk(10).indices.tolist(), *(300 + wanted[300:].topk(20).indices).tolist()]
    assert least_sure(HeadInput(hidden_ND, head), [300, 400], [10, 20]).tolist() == sorted(both)


def test_losses_are_means_over_the_least_sure_positions() -> None:
    """Value and gradient of a batch by autograd over full logits of the chosen positions alone."""
    config = configured(positions=HALF)
    student, teacher, blocks = small.student(), small.teacher(), TinyBlocks()
    models = ModelPair(student, teacher, config, (), ProcessGroup("cpu"), "fp32")
    part = batch(cast("Any", blocks), [0, 1, 2])
    target = targets(part)
    block_N = (target.rows_N // small.LENGTH).numpy()
    counts = PositionChoice(**HALF).counts(target.in_blocks(small.LENGTH))
    assert counts == [-(-n // 2) for n in np.bincount(block_N)]
    count = sum(counts)
    found = models.losses(part, target, count, 0.0)
    (grad,) = torch.autograd.grad(found.total, [student.lm_head.weight])

    def logits(model: Any) -> Any:
        output = model(input_ids=part.input_ids_BT, position_ids=part.position_ids_BT, use_cache=False)
        return output.logits.flatten(0, 1)[target.rows_N]

    own_NV, its_NV = logits(student), logits(teacher).detach()
    own_N = torch.distributions.Categorical(logits=own_NV.detach()).entropy()
    order_N = np.argsort(-own_N.numpy(), kind="stable")
    chosen_S = np.concatenate([order_N[block_N[order_N] == i][:n] for i, n in enumerate(counts)])
    log_q_SV, log_p_SV = (x_NV[chosen_S].log_softmax(-1) for x_NV in (own_NV, its_NV))
    wanted = F.kl_div(log_q_SV, log_p_SV, log_target=True, reduction="batchmean")
    torch.testing.assert_close(found.total, wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(grad, torch.autograd.grad(wanted, [student.lm_head.weight])[0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("positions", "share", "count"), [(10, 0.2, 2), (11, 0.2, 3), (1, 0.2, 1), (0, 0.2, 0), (7, 1.0, 7), (30, 0.1, 3)]
)
def test_a_share_of_positions_is_rounded_up(positions: int, share: float, count: int) -> None:
    assert PositionChoice(share=share).count(positions) == count
