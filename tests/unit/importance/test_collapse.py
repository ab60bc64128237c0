"""LaCo's merges (Yang et al. 2024), against models of transformers that are merged by its formula."""

import copy

import pytest
import torch
from torch import nn

from minitron_cli.importance.collapse import collapse_order, free_runs
from minitron_cli.model.families import FAMILIES
from tests.tiny import tiny_model
from tests.unit.importance.calibration import samples, split

BATCHES = split(samples(3), [2, 1])
LAYERS = 6


def remember(_name, compute):
    return compute()


@torch.no_grad()
def collapsed(model, runs):
    """The model with each run of layers merged into its first, theta + sum (theta_k - theta)."""
    made = copy.deepcopy(model)
    for run in runs:
        states = [model.model.layers[i].state_dict() for i in run]
        summed = {k: own + sum(other[k] - own for other in states[1:]) for k, own in states[0].items()}
        made.model.layers[run[0]].load_state_dict(summed)
    dropped = {i for run in runs for i in run[1:]}
    made.model.layers = nn.ModuleList(layer for i, layer in enumerate(made.model.layers) if i not in dropped)
    made.config.num_hidden_layers = LAYERS - len(dropped)
    return made


@torch.no_grad()
def similarity(model, other):
    cosines = []
    for batch in BATCHES:
        inputs = {"input_ids": batch.input_ids_BT, "position_ids": batch.position_ids_BT, "use_cache": False}
        hidden = [each.model(**inputs).last_hidden_state.double() for each in (model, other)]
        dot = (hidden[0] * hidden[1]).sum(-1)
        cosines.append((dot / hidden[0].norm(dim=-1) / hidden[1].norm(dim=-1)).flatten())
    return float(torch.cat(cosines).mean())


def best_merges(model, following):
    """Runs in the order in which each keeps the last hidden states most similar, by trying all."""
    chosen = []
    while free := [r for r in runs_of(following) if not any(set(r) & set(c) for c in chosen)]:
        chosen.append(max(free, key=lambda run: similarity(model, collapsed(model, [*chosen, run]))))
    return chosen


def runs_of(following):
    return [range(i, i + following + 1) for i in range(LAYERS - following)]


@pytest.mark.slow
@pytest.mark.parametrize("following", [2, 1])
def test_the_most_similar_merge_comes_first_and_the_next_beside_it(following):
    model = tiny_model("llama", num_hidden_layers=LAYERS, vocab_size=64)
    with torch.no_grad():  # near each other, as the layers of a trained model are
        for i, layer in enumerate(model.model.layers):
            for parameter, first in zip(layer.parameters(), model.model.layers[0].parameters(), strict=True):
                parameter.copy_(first + (0.05 + 0.02 * i) * (parameter - first))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    order = [i for run in best_merges(model, following) for i in run[1:]]
    scores = collapse_order(model, FAMILIES["llama"], BATCHES, following, remember)
    expected = [float(order.index(i) + 1) if i in order else float(len(order) + 1) for i in range(LAYERS)]
    assert scores.tolist() == expected
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_was_found_before_a_kill_is_not_tried_again():
    model, kept = tiny_model("llama"), {}

    def keep(name, compute):
        if name not in kept:
            kept[name] = compute()
        return kept[name]

    first = collapse_order(model, FAMILIES["llama"], BATCHES, 1, keep)
    assert sorted(kept) == [f"merge-{i}" for i in range(len(kept))]
    kept["merge-0"] = {"first": 2, "similarity": 1.0}
    again = collapse_order(model, FAMILIES["llama"], BATCHES, 1, keep)
    assert again[3] == 1
    assert first.shape == again.shape == (4,)


def test_runs_do_not_overlap():
    assert free_runs(6, 2, []) == [range(0, 3), range(1, 4), range(2, 5), range(3, 6)]
    assert free_runs(6, 2, [range(0, 3)]) == [range(3, 6)]
    assert free_runs(6, 2, [range(1, 4)]) == []
