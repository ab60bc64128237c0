"""The transfer stage: tickets of one text on another begin with their own weights and masks, beside their controls."""

import pytest
import torch

from minitron_cli.cli import tables
from minitron_cli.data.sources import TextFiles
from minitron_cli.errors import DryRunStop, InputError
from minitron_cli.results.ticket import TransferResult
from minitron_cli.stages import transfer
from minitron_cli.ticket.config import TransferConfig
from tests.unit.stages.place import context, data, write_place
from tests.unit.stages.test_ticket import TRAINING, begun, directory, is_rewound, made, masks_of, round_of, start_of

ARMS = ("transferred", "reinit", "shuffled", "random_mask")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    write_place(root, num_hidden_layers=1)
    return root


def other_text(place):
    """Text of the same vocabulary in another order."""
    if not (place / "other").is_dir():
        (place / "other").mkdir()
        for file in (place / "text").iterdir():
            (place / "other" / file.name).write_text(" ".join(reversed(file.read_text().split())))
    return data(place).model_copy(update={"sources": (TextFiles(paths=(str(place / "other" / "*.txt"),)),)})


def moved(place, root, *directories, dry_run=False, **config):
    settings = TransferConfig(**{"training": TRAINING} | config)
    return transfer.run(context(root, dry_run=dry_run), directories, other_text(place), settings)


@pytest.fixture(scope="module")
def tickets(place, tmp_path_factory):
    """Two rounds of tickets with late resetting, in a workspace of their own."""
    root = tmp_path_factory.mktemp("tickets")
    return root, made(place, root, rewind="step:2")


@pytest.fixture(scope="module")
def study(place, tickets, tmp_path_factory):
    """The tickets on the other text: the workspace, the table, and what each training begins with."""
    root = tmp_path_factory.mktemp("transfer")
    with begun() as weights:
        return root, moved(place, root, tickets[1].path, controls=(*ARMS[1:], "own")), weights


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_a_transferred_ticket_begins_with_its_mask_and_its_rewound_weights(tickets, study, number):
    found, (root, _, weights) = tickets[0], study
    kept = masks_of(found, f"ticket-0{number}-seed-0")
    is_rewound(weights[f"transferred-0{number}-seed-0"], start_of(found, 2), kept)
    held = masks_of(root, f"transferred-0{number}-seed-0")
    assert all(torch.equal(held[name], mask) for name, mask in kept.items())


@pytest.mark.slow
def test_controls_begin_with_the_tickets_weights_or_keep_its_mask(tickets, study):
    found, (root, _, weights) = tickets[0], study
    kept = {arm: masks_of(root, f"{arm.replace('_', '-')}-01-seed-0") for arm in ARMS}
    for arm in ("shuffled", "random_mask"):
        is_rewound(weights[f"{arm.replace('_', '-')}-01-seed-0"], start_of(found, 2), kept[arm])
    for name, mask in kept["transferred"].items():
        assert torch.equal(kept["reinit"][name], mask)
    assert len({sum(int(mask.sum()) for mask in some.values()) for some in kept.values()}) == 1
    is_rewound(weights["ticket-00-seed-0"], start_of(found, 2), {})


@pytest.mark.slow
def test_own_tickets_are_found_on_the_new_text_from_the_same_weights(tickets, study):
    found, (root, _, weights) = tickets[0], study
    own = masks_of(root, "ticket-02-seed-0")
    is_rewound(weights["ticket-02-seed-0"], start_of(found, 2), own)
    others = masks_of(found, "ticket-02-seed-0")
    assert any(not torch.equal(mask, others[name]) for name, mask in own.items())
    before = round_of(root, "ticket-00-seed-0")
    least = min(float(before.read(name).abs()[m].min()) for name, m in masks_of(root, "ticket-01-seed-0").items())
    assert least > 0


@pytest.mark.slow
def test_the_table_has_every_arm_beside_the_dense_training_of_this_text(study):
    root, artifact, _ = study
    result = artifact.result(TransferResult)
    assert {(row.arm, row.round) for row in result.rows} == {
        ("ticket", 0), *((arm, number) for arm in (*ARMS, "ticket") for number in (1, 2))
    }  # fmt: skip
    assert (result.rewind, result.scope, result.seeds) == ("step:2", "global", 1)
    assert all((root / row.path).is_dir() for row in result.rows)
    (table,) = tables.tables(artifact)
    assert table.title.startswith("Tickets found on another text, rewound to step:2")
    assert [row[0] for row in table.rows] == ["dense", *[*ARMS, "own ticket"] * 2]
    assert (artifact.path / "tickets.svg").is_file()


@pytest.mark.slow
def test_one_round_can_be_given_alone_and_shares_its_trainings(place, tickets, study):
    one = directory(tickets[0], "ticket_round", "ticket-02-seed-0")
    before = set((study[0] / "ticket_round").iterdir())
    again = moved(place, study[0], one)
    assert [(row.arm, row.round) for row in again.result(TransferResult).rows] == [("ticket", 0), ("transferred", 2)]
    assert set((study[0] / "ticket_round").iterdir()) == before


@pytest.mark.slow
def test_a_dry_run_says_how_many_trainings_there_are(place, tickets, tmp_path):
    one = directory(tickets[0], "ticket_round", "ticket-02-seed-0")
    with pytest.raises(DryRunStop) as stop:
        moved(place, tmp_path, one, controls=("reinit", "own"), dry_run=True)
    assert stop.value.forecast == {"trainings": 1 + 2 + 2, "steps of each": 4}
    assert stop.value.price.what.startswith("5 trainings of 4 steps")


@pytest.mark.slow
def test_what_is_no_ticket_is_refused(place, tickets, tmp_path):
    with pytest.raises(InputError, match="is no ticket: give what `minitron ticket train` wrote"):
        moved(place, tmp_path, directory(tickets[0], "ticket_round", "ticket-00-seed-0"))
    with pytest.raises(InputError, match="is no ticket"):
        moved(place, tmp_path, directory(tickets[0], "ticket_start", "step-2-seed-0"))
    one = directory(tickets[0], "ticket_round", "ticket-01-seed-0")
    with pytest.raises(InputError, match="give each ticket once"):
        moved(place, tmp_path, one, one)


@pytest.mark.slow
def test_other_random_weights_are_no_control_for_tickets_of_a_models_own(place, tmp_path):
    found = made(place, tmp_path / "own", start="model", rounds=1)
    with pytest.raises(InputError, match="reinit is no control for a model's own weights"):
        moved(place, tmp_path / "moved", found.path, controls=("reinit",))
    assert not list((tmp_path / "moved").glob("ticket_round/*"))


@pytest.mark.slow
def test_tickets_that_do_not_belong_together_are_refused(place, tickets, tmp_path):
    unrewound = made(place, tmp_path / "none", rewind="none", rounds=1)
    with pytest.raises(InputError, match="found with --rewind init or step:K"):
        moved(place, tmp_path, unrewound.path)
    other = made(place, tmp_path / "layer", scope="layer", rounds=1)
    with pytest.raises(InputError, match="unlike rate, scope or rewinding"):
        moved(place, tmp_path, tickets[1].path, other.path)
