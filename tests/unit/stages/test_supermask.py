"""The supermask stage: every criterion beside its bars, on one dense training that tickets share."""

import math
from collections import Counter

import pytest
import torch

from minitron_cli import api
from minitron_cli.cli import tables
from minitron_cli.errors import Interrupted
from minitron_cli.evaluate.perplexity import perplexity
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.inputs.token_blocks import blocks_of
from minitron_cli.results.ticket import SupermaskResult
from minitron_cli.stages import supermask, ticket
from minitron_cli.ticket.config import SupermaskConfig, TicketConfig
from tests.unit.stages.place import context, data, write_place
from tests.unit.stages.test_ticket import TRAINING


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    write_place(root, num_hidden_layers=1)
    return root


def made(place, root, **config):
    settings = SupermaskConfig(**{"training": TRAINING} | config)
    return supermask.run(context(root), open_source_model(place / "model"), data(place), settings)


@pytest.fixture(scope="module")
def study(place, tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    return root, made(place, root)


@pytest.mark.slow
def test_every_criterion_is_beside_the_bars(study):
    _, artifact = study
    result = artifact.result(SupermaskResult)
    density = {row.criterion: row.density for row in result.rows}
    assert list(density)[:2] == ["trained", "none"]
    assert len(density) == 7
    for criterion in ("large_final", "magnitude_increase", "random", "edge_popup"):
        assert density[criterion] == pytest.approx(0.5, abs=1e-3)
    assert density["large_final_same_sign"] <= 0.5
    assert result.uniform == math.log(300)
    assert result.unigram < result.uniform
    (table,) = tables.tables(artifact)
    assert len(table.rows) == 9


def test_the_unigram_loss_is_that_of_counted_tokens(place, tmp_path):
    train, held_out = (blocks_of(context(tmp_path), data(place), s, place / "model") for s in ("train", "validation"))
    counts = Counter(t for i in range(len(train)) for t in train.tokens(i).tolist())
    total = sum(counts.values()) + 300
    losses = [
        -math.log((counts[token] + 1) / total)
        for token, position in zip(held_out.tokens(0)[1:].tolist(), held_out.positions(0)[1:].tolist(), strict=True)
        if position
    ]
    assert supermask.unigram_loss(train, held_out, 300, 1) == pytest.approx(sum(losses) / len(losses))


@pytest.mark.slow
def test_without_a_mask_the_loss_is_that_of_the_initial_weights(place, study):
    root, artifact = study
    (first,) = (root / "ticket_start").glob("step-0-seed-0-*")
    model = supermask.hf.load_model(first)
    held_out = blocks_of(context(root), data(place), "validation", place / "model")
    expected = perplexity(model, held_out, max_blocks=2).loss_nats
    (row,) = (row for row in artifact.result(SupermaskResult).rows if row.criterion == "none")
    assert row.loss == pytest.approx(expected)


@pytest.mark.slow
def test_a_supermask_sets_kept_weights_and_zeros_and_nothing_else(place, study):
    root, _ = study
    (first,) = (root / "ticket_start").glob("step-0-seed-0-*")
    source = open_source_model(first)
    kept = {name: torch.rand(m.shape) > 0.5 for name, m in supermask.masks.all_kept(source.shape).items()}
    model = supermask.hf.load_model(first)
    supermask.put_(model, source, kept, signed_constant=True)
    for name, p in model.named_parameters():
        weight = source.checkpoint.read(name)
        expected = weight.sign() * weight.std() * kept[name] if name in kept else weight
        assert torch.equal(p, expected), name


@pytest.mark.slow
def test_tickets_share_the_dense_training(place, study):
    root, _ = study
    before = sorted(path.name for path in (root / "ticket_round").iterdir() if path.is_dir())
    here, model = context(root, is_between=True), open_source_model(place / "model")
    texts = ticket.texts(context(root), model, data(place))
    for given in ({}, {"rate": 0.5}, {"scope": "layer"}):
        config = TicketConfig(training=TRAINING, **given)
        pricing = ticket.Pricing(here, model, config.training, *texts, 1)
        ticket.Tickets(here, model, *texts, config, pricing).dense(0)
    assert sorted(path.name for path in (root / "ticket_round").iterdir() if path.is_dir()) == before


@pytest.mark.slow
def test_learned_scores_lower_the_loss_and_a_kill_keeps_what_is_measured(place, tmp_path, monkeypatch):
    training = TRAINING | {"steps": 60}
    config = {"criteria": ("random", "edge_popup"), "training": training, "popup_rate": 0.1}
    real, calls = supermask.popup.learned_masks, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise Interrupted("stopped")
        return real(*arguments)

    monkeypatch.setattr(supermask.popup, "learned_masks", killed)
    with pytest.raises(Interrupted):
        made(place, tmp_path, **config)
    monkeypatch.setattr(supermask.supermask, "mask", None)  # the random mask is not measured again
    found = {row.criterion: row.loss for row in made(place, tmp_path, **config).result(SupermaskResult).rows}
    assert found["edge_popup"] < found["none"] - 0.05
    assert found["edge_popup"] < found["random"] - 0.05


@pytest.mark.slow
def test_scores_of_a_step_read_no_more_sequences_at_a_time_than_they_are_told(place, study, monkeypatch):
    (first,) = (study[0] / "ticket_start").glob("step-0-seed-0-*")
    blocks = blocks_of(context(study[0]), data(place), "train", place / "model")
    names = ["model.layers.0.mlp.up_proj.weight"]

    def gradient(size):
        given = TRAINING | {"batch_size": 4, "micro_batch_size": size}
        config = SupermaskConfig(training=given).training
        model = supermask.hf.load_model(first)
        read = []
        model.model.register_forward_pre_hook(
            lambda module, args, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
        )
        keep = lambda name, scores: scores > scores.median()  # noqa: E731
        with supermask.popup.popped_up(model, names, keep, 0) as popups:
            pair = supermask.popup.ModelPair(
                model, None, config, (), supermask.popup.ProcessGroup("cpu", alone=True), "fp32"
            )
            optimizer = torch.optim.SGD([popups[names[0]].scores], lr=0.0)
            read.clear()  # what the pair learned of the model
            loss = supermask.popup._step(pair, optimizer, blocks, 0)
            return read, loss, popups[names[0]].scores.grad.clone()

    read, loss, whole = gradient(4)
    parts, same, summed = gradient(1)
    assert (read, parts) == ([4], [1, 1, 1, 1])
    assert same == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(summed, whole, rtol=1e-3, atol=1e-7)


@pytest.mark.slow
def test_killed_scores_go_on_to_the_same_bits(place, study, tmp_path, monkeypatch):
    training = SupermaskConfig(training=TRAINING | {"steps": 6, "save_every": 2}).training
    (first,) = (study[0] / "ticket_start").glob("step-0-seed-0-*")
    blocks = blocks_of(context(study[0]), data(place), "train", place / "model")
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"]
    real, steps = supermask.popup._step, []

    def learned(scratch, kill=None):
        def step(pair, optimizer, blocks, number):
            if number == kill:
                raise Interrupted("stopped")
            steps.append(number)
            return real(pair, optimizer, blocks, number)

        monkeypatch.setattr(supermask.popup, "_step", step)
        keep = lambda name, scores: scores > scores.median()  # noqa: E731
        return supermask.popup.learned_masks(
            supermask.hf.load_model(first), names, keep, blocks, training, 0.5, "cpu", scratch
        )

    whole = learned(None)
    steps.clear()
    for kill in (3, 5):
        with pytest.raises(Interrupted):
            learned(tmp_path / "scores", kill)
    resumed = learned(tmp_path / "scores")
    assert steps == [0, 1, 2, 2, 3, 4, 4, 5]
    assert all(torch.equal(whole[name], resumed[name]) for name in names)


@pytest.mark.slow
def test_the_api_takes_a_directory(place, tmp_path):
    with api.workspace(tmp_path / "w", device="cpu") as here:
        config = SupermaskConfig(criteria=("random",), training=TRAINING, signed_constant=True)
        assert api.supermasks(here, place / "model", data(place), config).stage == "supermask"
