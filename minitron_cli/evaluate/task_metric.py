"""One metric of an lm-eval task, for the stages that rank by it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli.errors import InputError
from minitron_cli.evaluate.config import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TaskMetric:
    """One metric of one task. lm-eval is imported on first use."""

    task: Task
    metric: str
    path: Path | None
    """Directory of further task YAMLs."""
    setting: str
    """Recipe field that names the metric, for errors."""

    def fingerprint(self) -> str | None:
        """Fingerprint of the directory, if any. InputError for an unknown task, or one that names code."""
        from minitron_cli.evaluate import task_code, task_files, tasks

        try:
            tasks.load_tasks([self.task], tasks.TaskLocations(self.path))
        except task_code.CodeInTask as e:
            section = self.setting.partition(".")[0]
            raise InputError(
                f"{e.found}: only `minitron eval` can be allowed to run it; give {section} a task without code"
            ) from None
        return task_files.fingerprint(self.path) if self.path else None

    def __call__(self, model: "PreTrainedModel", tokenizer: Any, batch_size: int = 8) -> float:
        """Value of the metric for a model. InputError if the task does not give it."""
        from minitron_cli.evaluate.lm_eval_runner import run_tasks
        from minitron_cli.evaluate.tasks import TaskLocations

        answers = run_tasks(model, tokenizer, [self.task], locations=TaskLocations(self.path), batch_size=batch_size)
        metrics = answers.results.get(self.task.name)
        if not metrics:
            raise InputError(
                f"{self.task.name!r} has no metric of its own, only its tasks have: name one of "
                f"{', '.join(answers.results)} in {self.setting.rpartition('.')[0]}"
            )
        found = metrics.get(self.metric)
        if found is None or found.value is None:
            raise InputError(
                f"task {self.task.name!r} has no {self.metric!r}: set {self.setting} to one of {', '.join(metrics)}"
            )
        return found.value
