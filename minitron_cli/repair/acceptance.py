"""Keep of a repair what brings the child nearer to its parent on held-out text, part by part."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from minitron_cli import progress
from minitron_cli.data.batches import evenly_spaced
from minitron_cli.data.pack import Blocks
from minitron_cli.evaluate.beside_parent import BesideParent, ChildFigures
from minitron_cli.evaluate.statistics import compare
from minitron_cli.prune.child_builder import ChildBuilder
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.results.prune import RepairEffect

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCKS = 8  # held-out blocks to choose by, and as many others to report
EFFECT_BLOCKS = 2 * BLOCKS


@dataclass(frozen=True)
class Part:
    """Part of a repair."""

    name: str
    what: str
    """What is left out if it does not gain."""
    changed: Callable[[PrunePlan], PrunePlan]
    """The plan with this part as well."""
    instead: tuple["Part", ...] = ()
    """Less of it: the first of these that gains is kept where the whole does not."""


class Figures(NamedTuple):
    """A child on both halves of the held-out blocks."""

    chosen_by: ChildFigures
    reported: ChildFigures


class Kept(NamedTuple):
    """What is left of a repair."""

    plan: PrunePlan
    parts: tuple[str, ...]
    """Names."""
    left_out: tuple[str, ...]
    """What was tried and did not gain."""
    before: Figures
    after: Figures


def keep_what_gains(plan: PrunePlan, parts: Sequence[Part], measure: Callable[[PrunePlan], Figures]) -> Kept:
    """The plan with every part that makes its KL smaller, one after the other; what does not is said."""
    before = after = measure(plan)
    kept, left_out = list[str](), list[str]()
    for part in parts:
        for tried in (part, *part.instead):
            changed = tried.changed(plan)
            found = measure(changed)
            if found.chosen_by.kl.mean < after.chosen_by.kl.mean:
                plan, after = changed, found
                kept.append(tried.name)
                break
            left_out.append(tried.what)
            progress.say(
                f"{tried.what} is left out of the repair: held-out KL {found.chosen_by.kl.mean:.4g} with it, "
                f"{after.chosen_by.kl.mean:.4g} without"
            )
    return Kept(plan, tuple(kept), tuple(left_out), before, after)


class HeldOutText:
    """Measures children on held-out blocks, of which half decide what is kept and the other half is reported.

    If there is one block, both are of it, with a warning.
    """

    def __init__(self, builder: ChildBuilder, parent: "PreTrainedModel", blocks: Blocks) -> None:
        self._builder = builder
        ids = evenly_spaced(len(blocks), EFFECT_BLOCKS)
        if len(ids) == 1:
            progress.warn(
                "the held-out text is one block: what a repair gains is measured on the block that its parts are "
                "chosen by; hold out more text, or lower --sequence-length"
            )
        self._choice = BesideParent(parent, blocks, ids[::2])
        self._report = BesideParent(parent, blocks, ids[1::2] or ids)

    def figures(self, plan: PrunePlan) -> Figures:
        """Figures of a plan's child."""
        child = self._builder.model(plan)
        return Figures(self._choice.of(child), self._report.of(child))

    def effect(self, kept: Kept) -> RepairEffect:
        """Figures on the blocks that are reported."""
        before, after = kept.before.reported, kept.after.reported
        children = 1 + len(kept.parts) + len(kept.left_out)
        return RepairEffect(
            parent_loss=self._report.parent_loss().mean,
            before=before.held_out,
            after=after.held_out,
            kl_difference_stderr=compare(after.kl, before.kl).stderr,
            tokens=self._report.tokens,
            read=self._choice.read + self._report.read,
            children=children,
        )
