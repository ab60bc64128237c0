"""The evaluate stage: models in, one table of measured values out, the parent's beside them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

STAGE, VERSION = "evaluate", 1
RESULTS = "results.json"
PARENT = "parent"

Labelled = tuple[str, Path]


def run(
    context: Context, models: Sequence[Labelled], parent: Parent, data: DataConfig | None, config: EvaluateConfig
) -> Artifact:
    """Measure the parent and every labelled checkpoint on the same text and tasks."""
    subjects = {PARENT: parent} | {label: open_parent(path, offline=context.offline) for label, path in models}
    needs_text = config.perplexity or config.cloze is not None
    if needs_text and data is None:
        raise InputError("perplexity and cloze need held-out text: name some with --data, or ask for tasks only")
    blocks = blocks_of(context, data, "validation", parent.path) if data and needs_text else None
    tasks_path = Path(config.include_path) if config.include_path else None
    if config.tasks:
        harness.load_tasks(config.tasks, tasks_path)  # an unknown task is refused before a model is loaded

    def build(work: Build) -> None:
        results = {label: work.remember(f"results-{label}", _measure(work, label)) for label in subjects}
        work.write_json(RESULTS, {"models": results})
        work.summary |= {"models": list(subjects)}

    def _measure(work: Build, label: str) -> Any:
        def measure() -> dict[str, Any]:
            subject = subjects[label]
            model = hf.load_model(subject.path, device=context.device, dtype=context.dtype)
            reference = parent if label != PARENT and config.perplexity else None
            values = _own(context, model, reference, blocks, config) if blocks and config.perplexity else {}
            tokenizer = hf.load_tokenizer(subject.path)
            if config.cloze and blocks:
                directory = _cloze_task(work, tokenizer, blocks, config.cloze)
                values |= harness.run_tasks(
                    model, tokenizer, [Task(name="cloze")], include_path=directory, batch_size=config.batch_size
                )
            if config.tasks:
                values |= harness.run_tasks(
                    model, tokenizer, config.tasks, include_path=tasks_path, batch_size=config.batch_size
                )
            return {
                "parameters": subject.shape.parameters(),
                "non_embedding": subject.shape.parameters("non_embedding"),
                "results": values,
            }

        return measure

    inputs = {f"model {label}": subject.fingerprint for label, subject in subjects.items()} | {"dtype": context.dtype}
    if blocks:
        inputs["validation"] = blocks.fingerprint
    if tasks_path:
        inputs["tasks"] = harness.fingerprint(tasks_path)
    # What is measured is identity; where the task files lie and what is demanded of the values is not.
    identity = config.model_copy(update={"include_path": None, "gates": Gates()})
    return produce(context, stage=STAGE, version=VERSION, config=identity, inputs=inputs, build=build)


def _own(
    context: Context, model: Any, parent: Parent | None, blocks: Blocks, config: EvaluateConfig
) -> dict[str, dict[str, Any]]:
    """Loss and perplexity, and KL to the parent for anything but the parent."""
    metrics = perplexity(model, blocks, max_blocks=config.blocks, batch_size=config.batch_size).metrics()
    if parent is not None:
        reference = hf.load_model(parent.path, device=context.device, dtype=context.dtype)
        kl = kl_to_parent(model, reference, blocks, max_blocks=config.blocks, batch_size=config.batch_size)
        metrics |= kl.metrics()
    return {"perplexity": metrics}


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
    pieces = tokens.tensor_split(ends.tolist())
    return [text for piece in pieces if (text := tokenizer.decode(piece.tolist(), skip_special_tokens=True).strip())]


def check_gates(artifact: Artifact, gates: Gates, label: str) -> None:
    """Raise GateMissed unless the model called `label` meets every gate."""
    gate.check(gates, artifact.read_json(RESULTS)["models"][label]["results"])
