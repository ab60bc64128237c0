"""Documents packed into one block do not see each other, in the student or in the teacher.

In every registered family but those with convolutions or scans, which carry a document into the next whatever its
positions say, as they do in training with transformers (docs/families.md). There only later documents are unseen.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from minitron_cli.checkpoint import hf
from minitron_cli.data.batches import Batch
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.distributed import ProcessGroup
from minitron_cli.distill.losses.cross_entropy import CrossEntropy
from minitron_cli.distill.losses.forward_kl import ForwardKL
from minitron_cli.distill.model_pair import ModelPair
from minitron_cli.distill.targets import targets
from tests.quick import CARRYING, case_of, without
from tests.tiny import write_tiny

LENGTHS = 7, 1, 10, 4  # of the documents
POSITIONS_T = torch.cat([torch.arange(length) for length in LENGTHS])
THIRD = slice(8, 18)  # longer than the tiny models' sliding windows


@pytest.fixture(scope="module", params=[case_of(name) for name in without(*CARRYING)])
def models(request, tmp_path_factory) -> ModelPair:
    return pair_of(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=[case_of(name) for name in sorted(CARRYING)])
def carrying(request, tmp_path_factory) -> ModelPair:
    return pair_of(request.param, tmp_path_factory.mktemp(request.param))


def pair_of(model_type: str, directory: Path) -> ModelPair:
    """A student and a teacher of one family, as the training loop loads and runs them."""
    student, teacher = (hf.load_model(write_tiny(directory / str(seed), model_type, seed=seed)) for seed in (0, 1))
    config = DistillConfig(steps=1, losses=(ForwardKL(), CrossEntropy()), precision="fp32")
    return ModelPair(student, teacher, config, (), ProcessGroup("cpu"), "fp32")


def measured(models: ModelPair, tokens_BT: Tensor, positions_T: Tensor) -> list[Tensor]:
    """Both losses of the third document, both held-out figures, and every gradient."""
    loss_mask_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    loss_mask_BT[:, THIRD] = True
    batch = Batch(tokens_BT, positions_T.expand_as(tokens_BT), tuple(range(len(tokens_BT))), loss_mask_BT)
    target = targets(batch)
    models.student.train().zero_grad()
    torch.manual_seed(0)  # Phi MoE draws experts while it is trained
    losses = models.losses(batch, target, len(target.labels_N), 0.0)
    losses.total.backward()
    gradients = [p.grad.clone() for p in models.trained().values() if p.grad is not None]
    models.student.eval()
    return [losses.figures_F, models.evaluate(batch, target), *gradients]


def among_others(tokens_BT: Tensor) -> Tensor:
    """The third document beside other documents, each of whose tokens is another one."""
    changed_BT = (tokens_BT + 1 + torch.arange(tokens_BT.shape[1])) % 64
    changed_BT[:, THIRD] = tokens_BT[:, THIRD]
    return changed_BT


def test_losses_and_gradients_of_a_document_do_not_depend_on_those_beside_it(models):
    tokens_BT = torch.randint(64, (2, sum(LENGTHS)), generator=torch.Generator().manual_seed(0))
    here, there = (measured(models, tokens, POSITIONS_T) for tokens in (tokens_BT, among_others(tokens_BT)))
    torch.testing.assert_close(here, there, atol=2e-5, rtol=1e-4)  # experts sum other numbers of rows at once


def test_without_restarting_positions_the_same_documents_do_see_each_other(models):
    """What the test above could not see if it looked in the wrong place."""
    tokens_BT = torch.randint(64, (2, sum(LENGTHS)), generator=torch.Generator().manual_seed(0))
    run_on_T = torch.arange(sum(LENGTHS))
    here, there = (measured(models, tokens, run_on_T) for tokens in (tokens_BT, among_others(tokens_BT)))
    for figures, other_figures in zip(here[:2], there[:2], strict=True):
        assert ((figures - other_figures).abs() > 1e-3).all()


def test_a_convolution_or_scan_sees_the_documents_before_and_none_after(carrying):
    tokens_BT = torch.randint(64, (2, sum(LENGTHS)), generator=torch.Generator().manual_seed(0))
    earlier_BT, later_BT = tokens_BT.clone(), tokens_BT.clone()
    earlier_BT[:, : THIRD.start] = among_others(tokens_BT)[:, : THIRD.start]
    later_BT[:, THIRD.stop :] = among_others(tokens_BT)[:, THIRD.stop :]
    here, after_others, before_others = (measured(carrying, t, POSITIONS_T) for t in (tokens_BT, earlier_BT, later_BT))
    torch.testing.assert_close(here, before_others, atol=2e-5, rtol=1e-4)
    for figures, other_figures in zip(here[:2], after_others[:2], strict=True):
        assert ((figures - other_figures).abs() > 1e-4).all()
