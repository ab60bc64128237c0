"""Objective of a search: held-out loss, KL to the teacher, or a task metric."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli.artifacts.build import Context
from minitron_cli.checkpoint import hf
from minitron_cli.data.pack import Blocks
from minitron_cli.evaluate.config import Task
from minitron_cli.evaluate.perplexity import kl_to_parent, perplexity
from minitron_cli.evaluate.task_metric import TaskMetric
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.search.config import Objective, TaskObjective, objective_figure

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class SearchObjective:
    """Score of a model; lower is better, whatever the direction of the metric."""

    objective: Objective
    max_blocks: int
    """Validation blocks per score."""
    validation: Blocks
    teacher: SourceModel
    """Model that KL is measured to, and that candidates are retrained on."""
    tokenizer_path: Path
    context: Context

    def inputs(self) -> dict[str, str]:
        """Fingerprint of the task, if it has one. InputError for an unknown task, before a model is loaded."""
        found = self._task_metric.fingerprint() if self._task_metric else None
        return {"task": found} if found else {}

    @cached_property
    def teacher_model(self) -> "PreTrainedModel":
        """The teacher, loaded once."""
        return hf.load_model(self.teacher.path, device=self.context.device, dtype=self.teacher.dtype_in(self.context))

    def __call__(self, model: "PreTrainedModel") -> float:
        match self.objective:
            case "loss":
                return perplexity(model, self.validation, max_blocks=self.max_blocks).loss_nats
            case "kl":
                return kl_to_parent(model, self.teacher_model, self.validation, max_blocks=self.max_blocks).kl_nats
            case objective:
                assert self._task_metric
                return sign(objective) * self._task_metric(model, self._tokenizer)

    @cached_property
    def _task_metric(self) -> TaskMetric | None:
        if not isinstance(self.objective, TaskObjective):
            return None
        path = Path(self.objective.path) if self.objective.path else None
        return TaskMetric(Task.parse(self.objective.task), self.objective.metric, path, "search.objective.metric")

    @cached_property
    def _tokenizer(self) -> Any:
        return hf.load_tokenizer(self.tokenizer_path)

    @property
    def tokens(self) -> int:
        """Held-out tokens that one score reads; 0 for a task, which reads none of them."""
        if isinstance(self.objective, TaskObjective):
            return 0
        return min(self.max_blocks, len(self.validation)) * self.validation.sequence_length


def sign(objective: Objective) -> int:
    """Factor of an objective's values that makes lower better: 1 or -1."""
    return -1 if objective_figure(objective).better == "higher" else 1
