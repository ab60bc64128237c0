"""Scores of Llama 4's experts, which read tokens times the router's weight, against plain torch, token by token."""

import pytest
import torch
from torch.nn import functional as F

from minitron_cli.scores.metric import Activation
from tests.parity.test_experts import logits_of, watching
from tests.tiny import tiny_model
from tests.unit.importance.calibration import samples, score, split

pytestmark = pytest.mark.conformance
SPARSE, EXPERTS, NEURONS, TOP = (1, 3), 6, 48, 2


def routed(model, batch):
    """Layer -> expert -> sample -> (neurons, norm of the output) of every token that is routed to it."""
    found = {i: [[[] for _ in batch.input_ids_BT] for _ in range(EXPERTS)] for i in SPARSE}

    def record(layer, block):
        def hook(_, args):
            for b, sample in enumerate(args[0].double()):
                for token in sample:
                    logits = block.router.weight.double() @ token
                    for e in logits.topk(TOP).indices.tolist():
                        seen = token * torch.sigmoid(logits[e])
                        first = block.experts.gate_up_proj[e].double().T @ seen
                        neurons = F.silu(first[:NEURONS]) * first[NEURONS:]
                        output = block.experts.down_proj[e].double().T @ neurons
                        found[layer][e][b].append((neurons.abs(), float(output.norm())))

        return hook

    blocks = {i: model.model.layers[i].feed_forward for i in SPARSE}
    handles = [block.register_forward_pre_hook(record(i, block)) for i, block in blocks.items()]
    logits_of(model, batch)
    for handle in handles:
        handle.remove()
    return found


@pytest.fixture(scope="module")
def case():
    model, batch = tiny_model("llama4_text"), samples()
    return score(model, split(batch, [2, 3])), routed(model, batch)


def test_an_expert_is_the_mean_norm_of_what_it_adds(case):
    scores, found = case
    wanted = torch.zeros(4, EXPERTS)
    for i, experts in found.items():
        norms = [[norm for sample in expert for _, norm in sample] for expert in experts]
        assert sum(map(len, norms)) == sum(len(sample) for expert in experts for sample in expert)
        wanted[i] = torch.tensor([sum(seen) / max(len(seen), 1) for seen in norms])
    torch.testing.assert_close(scores.select("expert", Activation()), wanted, rtol=1e-5, atol=1e-7)


def test_neurons_are_scored_over_the_tokens_that_are_routed_to_their_expert(case):
    scores, found = case
    wanted = torch.zeros(4, EXPERTS, NEURONS)
    for i, experts in found.items():
        for e, expert in enumerate(experts):
            means = [torch.stack([neurons for neurons, _ in sample]).mean(0) for sample in expert if sample]
            wanted[i, e] = torch.stack(means).norm(dim=0) if means else 0.0
    torch.testing.assert_close(scores.select("ffn", Activation()), wanted, rtol=1e-4, atol=1e-6)


def test_a_watched_model_computes_what_it_computes_unwatched():
    model, batch = tiny_model("llama4_text"), samples()
    stock = logits_of(model, batch)
    with watching(model, batch):
        assert (logits_of(model, batch) - stock).norm() <= 1e-6 * stock.norm()
    assert torch.equal(logits_of(model, batch), stock)
