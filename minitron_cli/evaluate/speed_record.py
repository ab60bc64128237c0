"""Generation speed and memory of the models of an evaluation, as the run record holds them."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from minitron_cli.artifacts.build import Context
from minitron_cli.checkpoint import hf
from minitron_cli.evaluate import generation_speed
from minitron_cli.evaluate.config import Speed
from minitron_cli.evaluate.generation_speed import SpeedComparison
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.results.evaluation import PARENT
from minitron_cli.results.run_record import ModelSpeed, SpeedRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def speed_of(context: Context, subjects: Mapping[str, SourceModel], config: Speed) -> SpeedRecord:
    """Generation speed of every model, each measured in turns with the parent."""

    def load(subject: SourceModel) -> "PreTrainedModel":
        return hf.load_model(subject.path, device=context.device, dtype=subject.dtype_in(context))

    loaded = load(subjects[PARENT])
    found: dict[str, ModelSpeed] = {}
    for label, subject in subjects.items():
        if label != PARENT or len(subjects) == 1:
            is_parent = label == PARENT
            model = loaded if is_parent else load(subject)
            timed = generation_speed.compare(model, loaded, config)
            found.setdefault(PARENT, ModelSpeed(**asdict(timed.parent)))
            found[label] = ModelSpeed(**asdict(timed.model)) if is_parent else _model_speed(timed)
    models = {
        label: speed.model_copy(update=_memory(context, subjects[label], config)) for label, speed in found.items()
    }
    return SpeedRecord(settings=config.model_dump(), device=context.device, models=models)


def _memory(context: Context, subject: SourceModel, config: Speed) -> dict[str, int]:
    dtype = subject.dtype_in(context)
    return generation_speed.peak_memory(subject.path, config, device=context.device, dtype=dtype)


def _model_speed(timed: SpeedComparison) -> ModelSpeed:
    """Speed of a model that was timed in turns with its parent."""
    return ModelSpeed(
        **asdict(timed.model),
        prefill_ratio=timed.prefill_ratio,
        prefill_range=timed.prefill_range,
        decode_ratio=timed.decode_ratio,
        decode_range=timed.decode_range,
    )
