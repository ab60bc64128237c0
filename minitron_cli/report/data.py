"""Results of one model and of everything that it was made from, as the view shows them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from minitron_cli.report.candidates import Ranking
from minitron_cli.report.evaluation import LOSS, Evaluated, Kind
from minitron_cli.report.importance import Importance
from minitron_cli.report.provenance import CostRow
from minitron_cli.report.scratch import Arm
from minitron_cli.report.training import TrainingRun
from minitron_cli.report.view import Plot
from minitron_cli.results.prune import PruneResult
from minitron_cli.results.run_record import SpeedRecord
from minitron_cli.results.sparsify import SparsifyResult
from minitron_cli.results.training import Worsening


@dataclass(frozen=True)
class ReportData:
    """Everything known of one product. What is missing is left out of the view."""

    title: str
    model: str = ""
    """Name of the original model."""
    sizes: tuple[int, ...] = ()
    """Parameters of the original model and of the pruned model of each step."""
    steps: tuple[str, ...] = ()
    """Label of each step of a chain."""
    teacher: str = ""
    """Name of the product's teacher, if it is another model than the parent."""
    signals: str = ""
    """What the product learned from in place of a live teacher; empty if the teacher ran."""
    is_taught: bool | None = None
    """Whether the product's training had a teacher; None if it was not trained."""
    wrapper: str = ""
    """Model type of the multimodal wrapper that the product is in; empty if it is in none."""
    worse: Worsening | None = None
    """How the product's training made it worse on held-out text; None if it did not."""
    to_evaluate: str = ""
    """Command that evaluates the product; empty if it was evaluated."""
    models: tuple[Evaluated, ...] = ()
    """Evaluated models: parent, pruned, distilled, then controls."""
    scratch: tuple[Arm, ...] = ()
    """The product and the controls that were trained from scratch."""
    speed: SpeedRecord | None = None
    importance: Importance = field(default_factory=Importance)
    ranking: Ranking | None = None
    prune: PruneResult | None = None
    kept: Plot | None = None
    """Picture of what pruning kept."""
    sparsity: SparsifyResult | None = None
    cache_bytes: tuple[int, ...] = ()
    """KV cache of one token of the parent and of the pruned model."""
    runs: tuple[TrainingRun, ...] = ()
    costs: tuple[CostRow, ...] = ()
    other_costs: tuple[CostRow, ...] = ()
    """Costs of controls and measurements, without which the product could be made."""
    device_hours: Mapping[str, float] = field(default_factory=dict)
    """Accelerator -> hours of all that were used to make the product."""
    lineage: tuple[tuple[str, ...], ...] = ()
    """Stage, label, key and inputs of every artifact."""
    texts: str = ""
    """What the texts that it was made from begin and end with, in sentences; empty if that is not known."""
    commands: tuple[str, ...] = ()
    """Shell commands that make the same results again."""

    def first(self, *kinds: Kind) -> Evaluated | None:
        """First model of the first of these kinds that was evaluated."""
        return next((model for kind in kinds for model in self.models if model.kind == kind), None)

    def loss(self, *kinds: Kind) -> float | None:
        """Loss of that model, if it was measured."""
        model = self.first(*kinds)
        return model.value(LOSS) if model else None
