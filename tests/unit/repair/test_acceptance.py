"""Which parts of a repair are kept, by the figures of plans that stand for themselves."""

import pytest

from minitron_cli.evaluate.beside_parent import ChildFigures
from minitron_cli.evaluate.statistics import Items
from minitron_cli.repair.acceptance import Figures, Part, keep_what_gains


def figures(chosen_by, reported):
    return Figures(*(ChildFigures(Items([0.0]), Items([kl])) for kl in (chosen_by, reported)))


KL = {  # parts of a plan -> KL by which is chosen, KL that is reported
    "": (1.0, 1.0),
    "r": (0.5, 0.6),
    "rs": (0.7, 0.1),
    "rw": (0.4, 0.5),
    "rn": (0.3, 0.3),
    "rwm": (0.2, 0.9),
    "s": (1.2, 0.2),
    "w": (1.0, 0.3),
    "n": (0.9, 0.4),
    "nm": (0.9, 0.1),
}


def part(letter, name, *instead):
    return Part(name, f"all of {name}", lambda plan: plan + letter, instead)


FIT = part("s", "fit", part("w", "writers"), part("n", "norms"))


@pytest.mark.parametrize(
    ("parts", "plan", "kept", "left_out"),
    [
        ([part("r", "rotate")], "r", ("rotate",), ()),
        ([part("r", "rotate"), FIT, part("m", "rescale")], "rwm", ("rotate", "writers", "rescale"), ("fit",)),
        ([FIT, part("m", "rescale")], "n", ("norms",), ("fit", "writers", "rescale")),
        ([part("s", "fit")], "", (), ("fit",)),
        ([], "", (), ()),
    ],
)
def test_what_does_not_gain_is_left_out(parts, plan, kept, left_out, monkeypatch):
    said, measured = [], []
    monkeypatch.setattr("minitron_cli.progress.say", said.append)

    def measure(plan):
        measured.append(plan)
        return figures(*KL[plan])

    found = keep_what_gains("", parts, measure)
    assert (found.plan, found.parts, found.left_out) == (plan, kept, tuple(f"all of {n}" for n in left_out))
    assert [line.split(" is left out")[0] for line in said] == [f"all of {name}" for name in left_out]
    assert (found.before, found.after) == (figures(*KL[""]), figures(*KL[plan]))
    assert len(measured) == len(set(measured)) == 1 + len(kept) + len(left_out), "nothing is measured twice"


def test_the_remark_has_both_figures(monkeypatch):
    said = []
    monkeypatch.setattr("minitron_cli.progress.say", said.append)
    keep_what_gains("r", [part("s", "fit")], lambda plan: figures(*KL[plan]))
    assert said == ["all of fit is left out of the repair: held-out KL 0.7 with it, 0.5 without"]
