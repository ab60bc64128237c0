"""What an evaluation of the workspace has measured of a model is not measured again, and figures stay the same."""

import shutil

import pytest

from minitron_cli import progress
from minitron_cli.errors import DryRunStop
from minitron_cli.evaluate import benchmark, lm_eval_runner
from minitron_cli.evaluate.config import EvaluateConfig, Speed
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.results.evaluation import EvaluationResult
from minitron_cli.stages import evaluate
from tests.tiny import write_tiny
from tests.unit.stages.place import context, data, write_place

SIZES = {"model": 48, "first": 32, "second": 16, "third": 24}
CONFIG = EvaluateConfig(blocks=2, batch_size=2, cloze={"items": 4, "context_words": 4, "continuation_words": 2})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    write_place(root)
    for name, neurons in SIZES.items():
        shutil.copytree(root / "tokenizer", root / name, dirs_exist_ok=True)
        write_tiny(root / name, vocab_size=300, intermediate_size=neurons)
    return root


@pytest.fixture
def read(monkeypatch):
    """Neurons of the models that read the text, as (model, reference), and of those that were asked the task."""
    found, pair, ask = [], benchmark.loss_and_kl, lm_eval_runner.run_tasks

    def neurons(model):
        return model and model.config.intermediate_size

    def read_pair(model, reference, *args, **options):
        found.append((neurons(model), neurons(reference)))
        return pair(model, reference, *args, **options)

    def asked(model, *args, **options):
        found.append(neurons(model))
        return ask(model, *args, **options)

    monkeypatch.setattr(benchmark, "loss_and_kl", read_pair)
    monkeypatch.setattr(lm_eval_runner, "run_tasks", asked)
    return found


def evaluated(place, root, *names, parent="model", config=CONFIG, **options):
    models = [(name, place / name) for name in names]
    return evaluate.run(context(root, **options), models, open_source_model(place / parent), data(place), config)


@pytest.mark.slow
def test_only_a_new_model_is_measured_and_the_bytes_are_those_without_an_earlier_evaluation(place, tmp_path, read):
    evaluated(place, tmp_path / "w", "first")
    assert read == [(48, None), 48, (32, 48), 32]
    read.clear()
    both = evaluated(place, tmp_path / "w", "first", "second")
    assert read == [(16, 48), 16]
    fresh = evaluated(place, tmp_path / "fresh", "first", "second")
    assert both.manifest.files == fresh.manifest.files
    read.clear()
    evaluated(place, tmp_path / "w", "second")  # another evaluation has measured both of its models
    assert read == []
    evaluated(place, tmp_path / "w", "third", "second")
    assert read == [(24, 48), 24]


@pytest.mark.slow
def test_kl_from_another_parent_is_measured_and_what_is_of_the_model_alone_is_kept(place, tmp_path, read):
    evaluated(place, tmp_path / "w", "first", "second")
    read.clear()
    found = evaluated(place, tmp_path / "w", "second", parent="first").result(EvaluationResult)
    assert read == [(16, 32)]
    fresh = evaluated(place, tmp_path / "fresh", "second", parent="first").result(EvaluationResult)
    assert found == fresh


@pytest.mark.slow
def test_other_settings_and_overwriting_measure_again(place, tmp_path, read):
    evaluated(place, tmp_path / "w", "first")
    read.clear()
    evaluated(place, tmp_path / "w", "first", config=CONFIG.model_copy(update={"blocks": 1}))
    assert read == [(48, None), 48, (32, 48), 32]
    read.clear()
    evaluated(place, tmp_path / "w", "first", "second", overwrite=True)
    assert read == [(48, None), 48, (32, 48), 32, (16, 48), 16]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["items.json", "result.json"])
def test_a_damaged_evaluation_is_not_used(place, tmp_path, read, name):
    made = evaluated(place, tmp_path / "w", "first")
    read.clear()
    (made.path / name).write_text("{}")
    evaluated(place, tmp_path / "w", "second")
    assert read == [(48, None), 48, (16, 48), 16]


@pytest.mark.slow
def test_speed_is_measured_without_the_rest(place, tmp_path, read):
    evaluated(place, tmp_path / "w", "first")
    read.clear()
    speed = Speed(prompt_tokens=4, new_tokens=2, rounds=1)
    made = evaluated(place, tmp_path / "w", "first", config=CONFIG.model_copy(update={"speed": speed}))
    assert read == []
    assert made.run.speed


def test_price_and_progress_name_what_is_left(place, tmp_path, monkeypatch):
    config = EvaluateConfig(blocks=2, batch_size=2)

    def price(*names):
        with pytest.raises(DryRunStop) as stopped:
            evaluated(place, tmp_path / "w", *names, config=config, dry_run=True)
        return sum(part.tokens for part in stopped.value.price.parts if not part.name.endswith(", head"))

    read = 2 * 16  # tokens of the held-out text
    assert price("first", "second") == (1 + 2 + 2) * read
    evaluated(place, tmp_path / "w", "first", config=config)
    said = []
    monkeypatch.setattr(progress, "say", said.append)
    assert price("first", "second") == 2 * read
    evaluated(place, tmp_path / "w", "first", "second", config=config)
    assert "evaluate: parent, first measured before on the same text and tasks, and kept" in said
