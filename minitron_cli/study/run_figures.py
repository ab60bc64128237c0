"""Figures of one run of a study, and the files that keep them. Knows no model."""

import re
from collections.abc import Collection
from pathlib import Path

from pydantic import ValidationError

from minitron_cli import canonical_json, io, progress
from minitron_cli.artifacts.manifest import sealed, unsealed
from minitron_cli.spec import Spec

PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._,:;%+()=-]{0,99}")
"""Labels that are names of files as they are."""


class ModelFigures(Spec):
    """One model on held-out blocks, in nats per token."""

    loss: float
    kl: float
    """KL from the parent."""


class Measured(Spec):
    """One model on the blocks that choices are made by, and on the others."""

    chosen_by: ModelFigures
    reported: ModelFigures


class RunFigures(Spec):
    """One run of an arm."""

    parameters: int
    """Parameters of the child."""
    non_embedding: int
    """Those outside embedding and LM head."""
    learning_rate: float | None
    """Peak learning rate; None without training."""
    before: Measured
    """The model that the training begins with: the child, or random weights in its shape."""
    after: Measured | None
    """The child after training; None without."""


def keep(path: Path, figures: RunFigures) -> None:
    """Write the figures of a run, with a hash by which damage is found."""
    io.make_dirs(path.parent)
    io.replace(path, canonical_json.pretty(sealed(figures.model_dump(mode="json"))))


def kept(path: Path) -> RunFigures | None:
    """Figures in a file; None if there is none or, after a warning, if they cannot be read."""
    if not path.is_file():
        return None
    content = unsealed(path)
    try:
        return RunFigures.model_validate(content)
    except ValidationError:
        progress.warn(f"{path} is damaged or of another version of minitron, so its run is measured again")
        return None


def file_name(label: str, labels: Collection[str]) -> str:
    """What stands for one of the labels in names of files: the label if it is plain, else its letters and a digest.

    Two labels have two names, also where a file system ignores case.
    """
    is_alone = sum(label.casefold() == other.casefold() for other in labels) < 2
    if is_alone and PLAIN.fullmatch(label):
        return label
    letters = re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-")[:60]
    return f"{letters or 'arm'}-{canonical_json.digest(label)[:16]}"
