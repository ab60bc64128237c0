"""Tokens that do not count: importance against loops over those that do, on activations of whole forwards."""

import dataclasses
import itertools

import pytest
import torch
from torch.nn import functional as F

from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.errors import DataError
from minitron_cli.importance.layer_major import collect_by_layer
from minitron_cli.layerwise.runner import StoredWeights
from minitron_cli.model.families import family_of
from tests.parity.test_importance import aggregate, captured, forward, without_layer
from tests.tiny import tiny_model
from tests.unit.importance.calibration import SAMPLES, TOKENS, calibrated, samples, score

HOW = ("mean", "l2", "var")
COUNTS = torch.rand(SAMPLES, TOKENS, generator=torch.Generator().manual_seed(3)) < 0.4
COUNTS[2] = False  # of one sample nothing counts: it is no sample


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def batches():
    whole = dataclasses.replace(samples(), loss_mask_BT=COUNTS)
    parts = zip(*(t.split([2, 1, 2]) for t in (whole.input_ids_BT, whole.position_ids_BT, COUNTS)), strict=True)
    return [dataclasses.replace(whole, input_ids_BT=i, position_ids_BT=p, loss_mask_BT=c) for i, p, c in parts]


@pytest.fixture(scope="module")
def scores(model, batches):
    return score(model, batches)


def channel_scores(activations, batch_how, sequence_how):
    pairs = zip(activations, COUNTS, strict=True)
    samples = [[token for token, counts in zip(sample, c, strict=True) if counts] for sample, c in pairs if c.any()]
    assert len(samples) == SAMPLES - 1
    return [
        aggregate([aggregate([token[c] for token in sample], sequence_how) for sample in samples], batch_how)
        for c in range(len(samples[0][0]))
    ]


@pytest.mark.parametrize("sequence", HOW)
@pytest.mark.parametrize("batch", HOW)
def test_only_tokens_that_count_are_scored(model, batches, scores, batch, sequence):
    activations = captured(model, batches)
    for axis in ("head", "ffn"):
        expected = torch.tensor([channel_scores(activations[axis][i], batch, sequence) for i in range(4)])
        torch.testing.assert_close(scores.activation(axis, batch, sequence), expected, rtol=1e-4, atol=1e-7)
    by_norm = torch.tensor([channel_scores(a, batch, sequence) for a in activations["hidden"].values()])
    torch.testing.assert_close(scores.activation("hidden", batch, sequence), by_norm.sum(0), rtol=1e-4, atol=1e-7)


@torch.no_grad()
def residual_states(model):
    """What enters each layer, and the final norm."""
    states = []

    def keep(_, args, kwargs):
        states.append((args[0] if args else kwargs["hidden_states"]).double())

    watched = [*model.model.layers, model.model.norm]
    hooks = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in watched]
    forward(model, samples())
    for hook in hooks:
        hook.remove()
    return states


def test_layers_are_judged_by_the_tokens_that_count(model, scores):
    cosines = [F.cosine_similarity(a, b, dim=-1)[COUNTS].mean() for a, b in itertools.pairwise(residual_states(model))]
    found = scores.layers("block_importance").double()
    torch.testing.assert_close(found, 1 - torch.stack(cosines), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def mean_nll(model):
    whole = samples()
    logits = forward(model, whole).logits[:, :-1].double()
    losses = F.cross_entropy(logits.flatten(0, 1), whole.input_ids_BT[:, 1:].flatten(), reduction="none").view(
        SAMPLES, -1
    )
    return losses[COUNTS[:, 1:] & (whole.position_ids_BT[:, 1:] > 0)].mean()


def test_perplexity_is_that_of_the_tokens_that_count(model, scores):
    expected = torch.stack([mean_nll(without_layer(model, i)) for i in range(4)])
    torch.testing.assert_close(scores.layers("nll"), expected, rtol=1e-5, atol=1e-5)
    assert scores.parent_nll == pytest.approx(float(mean_nll(model)), rel=1e-5)


def test_one_layer_at_a_time_gives_the_same(model, batches, scores, tmp_path):
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "scratch").mkdir()
    empty, family = hf.empty_model(tmp_path / "model"), family_of(model.config)
    weights = StoredWeights(empty, family, Checkpoint.open(tmp_path / "model").read, "cpu")
    run = calibrated(batches, scratch=tmp_path / "scratch", activation_budget=4000)
    found = collect_by_layer(empty, family, weights, *run)
    for name, tensor in scores.by_name.items():
        torch.testing.assert_close(found.by_name[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_every_token_counting_is_as_good_as_no_mask(model):
    whole = samples()
    masked = dataclasses.replace(whole, loss_mask_BT=torch.ones_like(COUNTS))
    found, expected = score(model, [masked]), score(model, [whole])
    for name, tensor in expected.by_name.items():
        torch.testing.assert_close(found.by_name[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_text_in_which_nothing_counts_is_refused(model):
    nothing = dataclasses.replace(samples(), loss_mask_BT=torch.zeros_like(COUNTS))
    with pytest.raises(DataError, match="no token of the calibration blocks is scored: raise"):
        score(model, [nothing])
