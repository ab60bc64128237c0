"""Length of a control that is equal to the student in tokens, total tokens or FLOPs, from the student's ledger."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.cost.compute import TRAINING, Entry, Pass
from minitron_cli.cost.derive import spent
from minitron_cli.results.base import ModelSize
from minitron_cli.results.training import Equal

STUDENT = "distill"  # stage in which the student is trained
WORK = ("training", "teacher")  # kinds of work of a training, in the ledger


class Trained(NamedTuple):
    """Work of training in one stage."""

    stage: str
    entry: Entry


def training_of(made: Iterable[Artifact]) -> list[Trained]:
    """Work of every training among artifacts: of the student in each step, of candidates and of the teacher."""
    return [trained for one in made for trained in of_entries(one.stage, spent(one))]


def of_entries(stage: str, entries: Iterable[Entry | Pass]) -> list[Trained]:
    """Those of a stage's entries that are training."""
    return [Trained(stage, Entry(one.work, one.tokens, one.flops)) for one in entries if one.work in WORK]


def without_signals(ledger: Iterable[Trained]) -> list[Trained]:
    """A ledger without the teacher's pass whose signals are stored: who reads them as well did not make them."""
    return [one for one in ledger if one.stage != "teach"]


def tokens_read(ledger: Iterable[Trained], stages: Sequence[str] = ()) -> int:
    """Training tokens of these stages, or of all. What a teacher reads beside its student is not counted again."""
    return sum(
        one.entry.tokens for one in ledger if one.entry.work == "training" and (not stages or one.stage in stages)
    )


def flops_of(ledger: Iterable[Trained]) -> int:
    """FLOPs of all trainings, the forward passes of teachers included."""
    return sum(one.entry.flops for one in ledger)


def flops_per_token(student: ModelSize, teacher: ModelSize | None) -> int:
    """FLOPs of a training token: three forward passes of the student and one of the teacher, if a loss needs it."""
    return TRAINING * student.flops + (teacher.flops if teacher else 0)


def length(
    equal: Equal, ledger: Sequence[Trained], *, behind: Sequence[Trained] = (), given: int, per_token: int
) -> int:
    """Training tokens that make a control equal to the student whose trainings are in the ledger.

    `behind`: trainings of the weights that the control starts from, which count for it; `given`: tokens of the
    original's own training, P, or 0 if these weights have it behind them; `per_token`: FLOPs of a training token of the
    control. tokens: R, those of the student; total_tokens: P + R and those of other trainings; flops: sum of FLOPs /
    `per_token`.
    """
    match equal:
        case "tokens":
            return tokens_read(ledger, (STUDENT,)) - tokens_read(behind, (STUDENT,))
        case "total_tokens":
            return given + tokens_read(ledger) - tokens_read(behind)
        case "flops":
            return (flops_of(ledger) - flops_of(behind)) // per_token
