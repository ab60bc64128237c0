"""Repair of a search's candidates, in the way that the winner will be repaired."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from minitron_cli.data.pack import Blocks
from minitron_cli.layerwise.config import CalibrationConfig
from minitron_cli.model.family import Family
from minitron_cli.prune.child_builder import ChildBuilder
from minitron_cli.prune.config import SCORE_REPAIRS, PruneConfig, ScoreRepair
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.repair import expert_sums, repaired_plan
from minitron_cli.results.search import CalibrationUse
from minitron_cli.search.config import SearchConfig

FULL: ScoreRepair = "all"
"""Repair of a candidate that is about to be retrained."""


@dataclass(frozen=True)
class CandidateRepair:
    """Repair of candidates before they are scored, as far as the setting says, and in full before a retraining."""

    setting: ScoreRepair
    fullest: ScoreRepair
    """Repair of those that are repaired most."""
    prune: PruneConfig
    calibration: CalibrationConfig
    train_blocks: Blocks

    @classmethod
    def of(
        cls, config: SearchConfig, prune: PruneConfig | None, calibration: CalibrationConfig, train_blocks: Blocks
    ) -> Self | None:
        """Repair of a search's candidates; None if none of them is repaired."""
        fullest = FULL if config.retrain else config.score_repair
        is_any = prune and prune.repairs & SCORE_REPAIRS[fullest]
        return cls(config.score_repair, fullest, prune, calibration, train_blocks) if prune and is_any else None

    def inputs(self, family: Family) -> dict[str, str]:
        """Identity of the repair in a model of this family."""
        fits = "least_squares" in self.prune.repairs & SCORE_REPAIRS[self.fullest]
        of_experts = expert_sums.inputs(family) if fits else {}
        return {"repair": f"{self.prune.repair} on {self.prune.repair_samples} samples", **of_experts}

    def builders(self, builder: ChildBuilder, scratch: Path) -> tuple[ChildBuilder, ChildBuilder]:
        """Builders of the candidates that are scored and of those that are retrained. Statistics are in `scratch`."""
        scored, retrained = (
            repaired_plan.with_repair(builder, self.prune, setting, self.calibration, self.train_blocks, scratch)
            for setting in (self.setting, FULL)
        )
        return scored, retrained

    def applied(self, plan: PrunePlan, is_retrained: bool) -> dict[str, frozenset[str]]:
        """Names of the repairs of a candidate with this plan before it is scored, and before it is retrained if it is,
        as fields of its result."""
        scored, full = (repaired_plan.of_candidate(plan, self.prune, setting) for setting in (self.setting, FULL))
        return {"repairs": scored, "retrained_repairs": full if is_retrained else frozenset()}

    def calibration_use(self) -> CalibrationUse:
        """Text that the repairs are fitted on."""
        return repaired_plan.calibration_use(self.prune, self.train_blocks)
