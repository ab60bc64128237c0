"""The ticket stage: rewound weights to the bit, the dense run, kills, and what a study of tickets reports."""

import shutil
from contextlib import contextmanager

import pytest
import torch

from minitron_cli import api, progress
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.cli import tables
from minitron_cli.distill import training_run
from minitron_cli.distill.trainer import train
from minitron_cli.errors import DryRunStop, Interrupted, RecipeError
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.inputs.token_blocks import blocks_of
from minitron_cli.results.ticket import TicketResult
from minitron_cli.sparse.mask_file import MASKS, MaskFile
from minitron_cli.stages import ticket
from minitron_cli.ticket import masks
from minitron_cli.ticket.config import TicketConfig
from tests.unit.stages.place import context, data, write_place

TRAINING = {"steps": 4, "batch_size": 4, "micro_batch_size": 4, "warmup_steps": 1, "eval_every": 2, "eval_blocks": 2}
TRAINING |= {"save_every": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    write_place(root, num_hidden_layers=1)
    return root


def made(place, root, *, dry_run=False, **config):
    settings = TicketConfig(**{"rounds": 2, "rate": 0.5, "training": TRAINING} | config)
    return ticket.run(context(root, dry_run=dry_run), open_source_model(place / "model"), data(place), settings)


@pytest.fixture(scope="module")
def study(place, tmp_path_factory):
    """Two rounds with late resetting and all controls: the workspace, the table, and what each training begins with."""
    root = tmp_path_factory.mktemp("study")
    controls = ("reinit", "shuffled", "random_mask")
    with begun() as weights:
        return root, made(place, root, rewind="step:2", controls=controls), weights


def directory(root, stage, label):
    (found,) = (root / stage).glob(f"{label}-*")
    return found


def round_of(root, label):
    return Checkpoint.open(directory(root, "ticket_round", label))


def start_of(root, step):
    return Checkpoint.open(directory(root, "ticket_start", f"step-{step}-seed-0"))


@contextmanager
def begun():
    """Label of each training -> the weights with which it begins, by their stored names."""
    seen, real = {}, training_run.run_loop

    def loop(here, work, models, *rest, name, kind):
        seen[name] = {key: p.detach().clone() for key, p in models.student.named_parameters()}
        return real(here, work, models, *rest, name=name, kind=kind)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "run_loop", loop)
        yield seen


def masks_of(root, label):
    return masks.read(MaskFile.beside(directory(root, "ticket_round", label)))


def is_rewound(weights, early, kept):
    for name, weight in weights.items():
        expected = early.read(name)
        if name in kept:
            expected = torch.where(kept[name], expected, torch.zeros(()))
        assert torch.equal(weight.view(torch.int32), expected.view(torch.int32)), name


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_rewound_weights_have_the_bits_of_their_step_on_the_mask_and_are_zero_elsewhere(study, number):
    root, _, weights = study
    label = f"ticket-0{number}-seed-0"
    is_rewound(weights[label], start_of(root, 2), masks_of(root, label))


@pytest.mark.slow
def test_states_to_rewind_to_are_those_of_the_dense_training(place, study):
    root, _, weights = study
    is_rewound(weights["ticket-00-seed-0"], start_of(root, 0), {})
    model = trained_without_masks(place, root, until=2)
    for name, p in model.named_parameters():
        assert torch.equal(p, start_of(root, 2).read(name)), name


@pytest.mark.slow
def test_initial_weights_are_the_bits_to_rewind_to_without_a_step(place, tmp_path):
    with begun() as weights:
        made(place, tmp_path, rounds=1)
    is_rewound(weights["ticket-01-seed-0"], start_of(tmp_path, 0), masks_of(tmp_path, "ticket-01-seed-0"))


@pytest.mark.slow
@pytest.mark.parametrize("rewind", ["none", "step:4"])
def test_survivors_stay_as_they_were_trained_if_they_are_rewound_to_the_end_or_not_at_all(place, tmp_path, rewind):
    with begun() as weights:
        made(place, tmp_path, rewind=rewind, rounds=1)
    dense = round_of(tmp_path, "ticket-00-seed-0")
    is_rewound(weights["ticket-01-seed-0"], dense, masks_of(tmp_path, "ticket-01-seed-0"))


def trained_without_masks(place, root, until=None):
    train_blocks, held_out = (
        blocks_of(context(root), data(place), s, place / "model") for s in ("train", "validation")
    )
    model = hf.new_model(open_source_model(place / "model").config, seed=0)
    train(model, None, train_blocks, held_out, TicketConfig(training=TRAINING).training, None, until=until)
    return model


@pytest.mark.slow
def test_the_dense_training_is_one_without_masks_bit_by_bit(place, study):
    root, _, _ = study
    dense = round_of(root, "ticket-00-seed-0")
    for name, p in trained_without_masks(place, root).named_parameters():
        assert torch.equal(p, dense.read(name)), name


@pytest.mark.slow
def test_masks_keep_the_largest_trained_weights_and_hold_after_training(study):
    root, _, _ = study
    before = round_of(root, "ticket-00-seed-0")
    for number, label in enumerate(("ticket-01-seed-0", "ticket-02-seed-0"), start=1):
        path = directory(root, "ticket_round", label)
        file, trained = MaskFile.beside(path), Checkpoint.open(path)
        file.check(trained.read)
        kept = masks.read(file)
        total = sum(mask.numel() for mask in kept.values())
        assert sum(int(mask.sum()) for mask in kept.values()) == total - int((1 - 0.5**number) * total)
        least = min(float(before.read(name).abs()[mask].min()) for name, mask in kept.items())
        most = max(float(before.read(name).abs()[~mask].max()) for name, mask in kept.items() if not mask.all())
        assert least >= most
        before = trained


@pytest.mark.slow
def test_controls_share_what_they_are_to_share(study):
    root, _, _ = study
    kept = {arm: masks_of(root, f"{arm}-01-seed-0") for arm in ("ticket", "reinit", "shuffled", "random-mask")}
    for name, mask in kept["ticket"].items():
        assert torch.equal(kept["reinit"][name], mask)
        assert int(kept["shuffled"][name].sum()) == int(mask.sum())
    assert len({sum(int(mask.sum()) for mask in some.values()) for some in kept.values()}) == 1
    ticket_weights, fresh = (round_of(root, f"{arm}-01-seed-0") for arm in ("ticket", "reinit"))
    norm = next(name for name in fresh.tensors if name not in kept["ticket"] and "embed" in name)
    assert not torch.equal(ticket_weights.read(norm), fresh.read(norm))


@pytest.mark.slow
def test_the_table_has_every_arm_at_every_sparsity(study):
    _, artifact, _ = study
    result = artifact.result(TicketResult)
    assert [(row.arm, row.round) for row in result.rows[:5]] == [
        ("ticket", 0), ("ticket", 1), ("reinit", 1), ("shuffled", 1), ("random_mask", 1)
    ]  # fmt: skip
    assert [row.density for row in result.of("ticket", 2)] == pytest.approx([0.25], abs=1e-3)
    assert result.of("ticket", 0)[0].steps_to_dense is not None
    first = result.of("ticket", 1)[0]
    assert first.moved_kept > 0
    assert first.moved_lost > 0
    (table,) = tables.tables(artifact)
    assert [row[0] for row in table.rows] == ["dense", *["ticket", "reinit", "shuffled", "random_mask"] * 2]
    assert (artifact.path / "tickets.svg").is_file()
    page = (artifact.path / "tickets.html").read_text()
    assert page.count("<svg") == 3
    assert all(title in page for title in ("Steps to the dense loss", "Distances", "random_mask"))


@pytest.mark.slow
def test_more_rounds_reuse_those_that_are_there(place, study, tmp_path):
    root, _, _ = study
    shutil.copytree(root, tmp_path / "w")
    rounds = tmp_path / "w" / "ticket_round"
    before = {path.name: (path / "manifest.json").stat().st_mtime_ns for path in rounds.iterdir() if path.is_dir()}
    made(place, tmp_path / "w", rewind="step:2", rounds=3)
    after = {path.name: (path / "manifest.json").stat().st_mtime_ns for path in rounds.iterdir() if path.is_dir()}
    assert before.items() <= after.items()
    assert [name[:9] for name in after.keys() - before.keys()] == ["ticket-03"]


@pytest.mark.slow
def test_a_kill_in_any_training_changes_no_byte(place, study, tmp_path, monkeypatch):
    root, _, _ = study
    kills = set()
    saved = training_run.train

    def stopped(*arguments, **options):
        scratch = arguments[5]
        if scratch not in kills:
            kills.add(scratch)
            saved(*arguments, **options | {"until": 2})
            raise Interrupted("stopped")
        return saved(*arguments, **options)

    monkeypatch.setattr(training_run, "train", stopped)
    for _ in range(3):
        with pytest.raises(Interrupted):
            made(place, tmp_path, rewind="step:2")
    made(place, tmp_path, rewind="step:2")
    assert len(kills) == 3
    for number in range(3):
        whole, resumed = (directory(one, "ticket_round", f"ticket-{number:02d}-seed-0") for one in (root, tmp_path))
        for name in ("model.safetensors", MASKS, "result.json", "validation.jsonl", "metrics.jsonl"):
            assert (whole / name).read_bytes() == (resumed / name).read_bytes(), (number, name)


def test_a_dry_run_says_how_many_trainings_there_are(place, tmp_path):
    with pytest.raises(DryRunStop) as stop:
        made(place, tmp_path, dry_run=True, seeds=3, controls=("reinit",))
    assert stop.value.forecast == {"trainings": 3 * (1 + 2 * 2), "steps of each": 4}
    assert stop.value.price.what.startswith("15 trainings of 4 steps of 4 x 16 tokens")
    assert not (tmp_path / "ticket_round").exists()


@pytest.mark.slow
def test_a_price_is_said_once_before_the_first_training_and_kept_for_each(study, place, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(progress, "say", said.append)
    shutil.copytree(study[0], tmp_path / "w")
    made(place, tmp_path / "w", rewind="step:2", rounds=3, controls=("shuffled",))
    (line,) = [one for one in said if one.startswith("ticket: ") and " trainings of " in one]
    assert line.startswith("ticket: 2 trainings of 4 steps"), "those that are there are not counted"
    found = Artifact.open(directory(tmp_path / "w", "ticket_round", "ticket-03-seed-0"))
    one = Artifact.open(directory(tmp_path / "w", "ticket_round", "ticket-01-seed-0")).run.price
    assert found.run.price.flops == one.flops
    assert found.run.price.what == "4 steps of 4 x 16 tokens"


def test_rewinding_beyond_the_end_is_refused(place, tmp_path):
    with pytest.raises(RecipeError, match="step:5 is after the last of 4 steps: lower it"):
        made(place, tmp_path, rewind="step:5")


@pytest.mark.slow
def test_a_models_own_weights_can_be_the_start(place, tmp_path):
    with api.workspace(tmp_path / "w", device="cpu") as here:
        config = TicketConfig(rounds=1, start="model", training=TRAINING)
        api.tickets(here, place / "model", data(place), config)
    parent = Checkpoint.open(place / "model")
    for name in parent.tensors:
        assert torch.equal(start_of(tmp_path / "w", 0).read(name), parent.read(name).float())
