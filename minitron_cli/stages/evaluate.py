"""The evaluate stage: models in, one table of measured values out, the parent's beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from minitron_cli import io
from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.artifact import Artifact
from minitron_cli.data.pack import Blocks
from minitron_cli.data.sources import DataConfig
from minitron_cli.errors import InputError
from minitron_cli.evaluate import cloze, gate, harness
from minitron_cli.evaluate.config import Cloze, EvaluateConfig, Gates, Task
from minitron_cli.evaluate.perplexity import kl_to_parent, perplexity
from minitron_cli.stages.parent import Parent, open_parent
from minitron_cli.stages.produce import Build, Context, produce
from minitron_cli.stages.tokens import blocks_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STAGE, VERSION = "evaluate", 1
RESULTS = "results.json"
PARENT = "parent"

Labelled = tuple[str, Path]
Values = dict[str, Any]  # task -> metric -> {value, stderr, n, shots}


def run(
    context: Context, models: Sequence[Labelled], parent: Parent, data: DataConfig | None, config: EvaluateConfig
) -> Artifact:
    """Measure the parent and every labelled checkpoint on the same text and tasks."""
    subjects = {PARENT: parent} | {label: open_parent(path, offline=context.offline) for label, path in models}
    bench = _Bench(context, parent, _held_out(context, parent, data, config), config)

    def build(work: Build) -> None:
        results = {
            label: work.remember(f"results-{label}", partial(bench.measure, work, subject))
            for label, subject in subjects.items()
        }
        work.write_json(RESULTS, {"models": results})
        work.summary |= {"models": list(subjects)}

    inputs = {f"model {label}": subject.fingerprint for label, subject in subjects.items()} | bench.inputs()
    # What is measured is identity; where the task files lie and what is demanded of the values is not.
    identity = config.model_copy(update={"include_path": None, "gates": Gates()})
    return produce(context, stage=STAGE, version=VERSION, config=identity, inputs=inputs, build=build)


def _held_out(context: Context, parent: Parent, data: DataConfig | None, config: EvaluateConfig) -> Blocks | None:
    if not config.perplexity and config.cloze is None:
        return None
    if data is None:
        raise InputError("perplexity and cloze need held-out text: name some with --data, or ask for tasks only")
    return blocks_of(context, data, "validation", parent.path)


@dataclass(frozen=True)
class _Bench:
    """What every model is measured on."""

    context: Context
    parent: Parent
    blocks: Blocks | None
    config: EvaluateConfig

    @property
    def tasks_path(self) -> Path | None:
        return Path(self.config.include_path) if self.config.include_path else None

    def inputs(self) -> dict[str, str]:
        """Fingerprints; an unknown task is refused here, before a model is loaded."""
        if self.config.tasks:
            harness.load_tasks(self.config.tasks, self.tasks_path)
        blocks = {"validation": self.blocks.fingerprint} if self.blocks else {}
        tasks = {"tasks": harness.fingerprint(self.tasks_path)} if self.tasks_path else {}
        return {"dtype": self.context.dtype} | blocks | tasks

    def measure(self, work: Build, subject: Parent) -> dict[str, Any]:
        model, tokenizer = self._load(subject), hf.load_tokenizer(subject.path)
        values: Values = {}
        if self.blocks and self.config.perplexity:
            values |= self._on_text(model, self.blocks, is_parent=subject is self.parent)
        if self.blocks and self.config.cloze:
            directory = _cloze_task(work, tokenizer, self.blocks, self.config.cloze)
            values |= self._on_tasks(model, tokenizer, [Task(name="cloze")], directory)
        if self.config.tasks:
            values |= self._on_tasks(model, tokenizer, self.config.tasks, self.tasks_path)
        return {
            "parameters": subject.shape.parameters(),
            "non_embedding": subject.shape.parameters("non_embedding"),
            "results": values,
        }

    def _load(self, subject: Parent) -> "PreTrainedModel":
        return hf.load_model(subject.path, device=self.context.device, dtype=self.context.dtype)

    def _on_text(self, model: "PreTrainedModel", blocks: Blocks, *, is_parent: bool) -> Values:
        """Loss and perplexity, and KL to the parent for anything but the parent."""
        most, size = self.config.blocks, self.config.batch_size
        metrics = perplexity(model, blocks, max_blocks=most, batch_size=size).metrics()
        if not is_parent:
            parent = self._load(self.parent)
            metrics |= kl_to_parent(model, parent, blocks, max_blocks=most, batch_size=size).metrics()
        return {"perplexity": metrics}

    def _on_tasks(
        self, model: "PreTrainedModel", tokenizer: Any, tasks: Sequence[Task], include_path: Path | None
    ) -> Values:
        size = self.config.batch_size
        return dict(harness.run_tasks(model, tokenizer, tasks, include_path=include_path, batch_size=size))


def _cloze_task(work: Build, tokenizer: Any, blocks: Blocks, config: Cloze) -> Path:
    """A task directory made of the validation blocks' documents; the same for every model of one tokenizer."""
    final = work.scratch / "cloze"
    if not final.is_dir():
        io.make_dirs(work.scratch)
        temporary = io.temporary_dir(work.scratch, final.name)
        cloze.write_task(temporary, _documents(tokenizer, blocks), config)
        io.publish(temporary, final)
    return final


def _documents(tokenizer: Any, blocks: Blocks) -> list[str]:
    """The text of the blocks, a piece per document."""
    tokens = torch.cat([blocks.tokens(i) for i in range(len(blocks))])
    ends = (tokens == tokenizer.eos_token_id).nonzero()[:, 0] + 1
    texts = (tokenizer.decode(piece.tolist(), skip_special_tokens=True) for piece in tokens.tensor_split(ends.tolist()))
    return [text for text in texts if text.strip()]


def check_gates(artifact: Artifact, gates: Gates, label: str) -> None:
    """Raise GateMissed unless the model called `label` meets every gate."""
    gate.check(gates, artifact.read_json(RESULTS)["models"][label]["results"])
