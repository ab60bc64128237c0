"""The importance stage: the same scores however the model is held, and whatever kills it."""

import json
import random
import re
import shutil

import pytest
import torch

from minitron_cli import progress
from minitron_cli.artifacts.build import DryRunStop
from minitron_cli.checkpoint import hf
from minitron_cli.errors import DataError, InputError
from minitron_cli.evaluate import tasks as lm_eval_tasks
from minitron_cli.evaluate.task_metric import TaskMetric
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.importance.learned_masks import LearnedMasks
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.layerwise.processes import Processes, say_if_on_cpu
from minitron_cli.scores.scores import Scores
from minitron_cli.stages import importance
from tests.processes import together
from tests.tiny import write_tiny
from tests.unit.stages.place import WORDS, context, data, write_place

CONFIG = ImportanceConfig(samples=6, batch_size=4, layer_removal=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("importance")
    write_place(root)
    return root


def run(place, workspace, **changes):
    config = CONFIG.model_copy(update=changes)
    artifact = importance.run(context(workspace), open_source_model(place / "model"), data(place), config)
    return artifact, Scores.load(artifact.path).by_name


def test_a_model_held_layer_by_layer_has_the_same_scores(place, tmp_path):
    _, whole = run(place, tmp_path, mode="resident", blocks=(2,))
    artifact, by_layer = run(place, tmp_path, mode="layer_major", blocks=(2,))
    assert whole.keys() == by_layer.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(by_layer[name], tensor, rtol=1e-6, atol=1e-7, msg=name)
    assert not [path.name for path in artifact.path.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("mode", ["resident", "layer_major"])
def test_a_model_in_bf16_is_scored_in_fp32_by_a_cpu_that_emulates_bf16(place, tmp_path, monkeypatch, mode):
    shutil.copytree(place, tmp_path / "half", ignore=shutil.ignore_patterns("runs"))
    hf.load_model(place / "model").to(torch.bfloat16).save_pretrained(tmp_path / "half" / "model")
    half = open_source_model(tmp_path / "half" / "model")

    def scores(name, has_bf16, dtype="auto"):
        monkeypatch.setattr("minitron_cli.device.multiplies_bf16", lambda device: has_bf16)
        config = CONFIG.model_copy(update={"mode": mode})
        made = importance.run(context(tmp_path / name, dtype=dtype), half, data(place), config)
        return Scores.load(made.path).by_name

    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    emulated, native, asked = scores("a", False), scores("b", True), scores("c", True, "float32")
    assert all(torch.equal(emulated[name], asked[name]) for name in asked)
    assert any(not torch.equal(native[name], asked[name]) for name in asked)


def test_the_usual_number_of_samples_fits_the_text(place, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(progress, "say", said.append)

    def planned(config):
        with pytest.raises(DryRunStop) as caught:
            importance.run(context(tmp_path, dry_run=True), open_source_model(place / "model"), data(place), config)
        return caught.value.path

    usual = planned(ImportanceConfig())
    (remark,) = said
    count, whole = map(int, re.search(r"samples is (\d+) instead of 1,024, of the (\d+) blocks", remark).groups())
    assert count == max(16, whole // 8)
    assert usual == planned(ImportanceConfig(samples=count)), "the number is part of the identity"
    with pytest.raises(
        DataError,
        match=rf"importance\.samples is {whole + 1} and the data has {whole} blocks of \d+ tokens: lower importance",
    ):
        planned(ImportanceConfig(samples=whole + 1))


@pytest.mark.parametrize(("available", "mode"), [(10**9, "resident"), (1000, "layer_major")])
def test_memory_decides_how_it_is_held(place, tmp_path, monkeypatch, available, mode):
    calls = []
    monkeypatch.setattr("minitron_cli.memory.available_bytes", lambda device: available)
    for name in ("collect", "collect_by_layer"):
        original = getattr(importance, name)
        monkeypatch.setattr(importance, name, lambda *a, f=original, n=name, **k: (calls.append(n), f(*a, **k))[1])
    run(place, tmp_path, activation_budget=1_000_000)
    assert calls == [{"resident": "collect", "layer_major": "collect_by_layer"}[mode]]


def test_a_block_that_is_the_whole_model_is_refused_first(place, tmp_path):
    with pytest.raises(InputError, match="4 layers cannot be removed from 4"):
        run(place, tmp_path, blocks=(4,))
    assert not (tmp_path / "importance").exists()


def one_of_two(rank, place, workspace, changes):
    artifact, scores = run(place, workspace, **changes)
    return artifact.path, scores


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["resident", "layer_major"])
def test_two_processes_score_what_one_does(place, tmp_path, mode):
    changes = {"samples": 7, "batch_size": 2, "mode": mode, "blocks": (2,), "removal_samples": 5}
    (_, two), _ = together(2, one_of_two, place, tmp_path / "two", changes)
    _, one = run(place, tmp_path / "one", **changes)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        # Of a variance near 0, and of a difference of perplexities, only the larger part is given to 1e-6.
        scale = tensor.double().abs().max()
        assert (two[name].double() - tensor.double()).abs().max() <= 1e-6 * scale, name
        assert torch.equal(two[name].argsort(stable=True), tensor.argsort(stable=True)), name
    assert not list((tmp_path / "two" / "importance").glob(".*"))


def test_fewer_samples_than_processes_are_refused(place, tmp_path, monkeypatch):
    monkeypatch.setattr(importance, "join_processes", lambda device: (Processes(0, 7), device))
    with pytest.raises(DataError, match="6 samples are too few for 7 processes"):
        run(place, tmp_path)


TASK = """task: finish
dataset_path: json
dataset_kwargs: {data_files: {validation: %s}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: choices
doc_to_target: gold
target_delimiter: ""
metric_list: [{metric: acc}]
"""
DRAW = random.Random(0)
ITEMS = [  # a context and two ways to go on; which of them is right
    ([f" {word}" for word in DRAW.sample(WORDS.split(), 3)], i % 2) for i in range(16)
]


@pytest.fixture
def tasks(tmp_path):
    """A directory with one multiple-choice task, its questions beside it."""
    directory = tmp_path / "tasks"
    directory.mkdir()
    rows = [{"context": words[0], "choices": words[1:], "gold": gold} for words, gold in ITEMS]
    (directory / "finish.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "finish.yaml").write_text(TASK % (directory / "finish.jsonl"))
    return directory


def accuracy(model, tokenizer):
    """How often the longer log-likelihood is the right one's, each choice run on its own from full logits."""
    right = 0
    for (asked, *choices), gold in ITEMS:
        sums = []
        for choice in choices:
            start = len(tokenizer(asked, add_special_tokens=False).input_ids)
            ids = torch.tensor(tokenizer(asked + choice, add_special_tokens=False).input_ids)
            logp = model(ids[None], use_cache=False).logits[0].log_softmax(-1)
            sums.append(float(logp[range(start - 1, len(ids) - 1), ids[start:]].sum()))
        right += sums.index(max(sums)) == gold
    return right / len(ITEMS)


@pytest.mark.slow
def test_the_task_is_asked_without_each_block(place, tmp_path, tasks):
    found, scores = run(
        place, tmp_path, blocks=(2, 3), block_task="finish", block_task_path=str(tasks), mode="resident"
    )
    model, tokenizer = hf.load_model(place / "model"), hf.load_tokenizer(place / "model")
    layers = list(model.model.layers)
    with torch.no_grad():
        whole, lost = accuracy(model, tokenizer), {}
        for length in (2, 3):
            for start in range(4 - length + 1):
                model.model.layers = torch.nn.ModuleList(layers[:start] + layers[start + length :])
                model.config.num_hidden_layers = 4 - length
                lost.setdefault(length, []).append(whole - accuracy(model, tokenizer))
    for length in (2, 3):
        torch.testing.assert_close(scores[f"layer.block_task={length}"], torch.tensor(lost[length]))
    assert len({*lost[2], *lost[3]}) > 1
    assert "block_task" in found.manifest.inputs


@pytest.mark.slow
def test_a_stop_between_two_blocks_asks_the_task_of_none_again(place, tmp_path, tasks, monkeypatch):
    options = {"blocks": (2,), "block_task": "finish", "block_task_path": str(tasks), "mode": "resident"}
    asked, ask = [], TaskMetric.__call__

    def stopped(self, *args):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(ask(self, *args))
        return asked[-1]

    monkeypatch.setattr(TaskMetric, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(place, tmp_path, **options)
    monkeypatch.setattr(TaskMetric, "__call__", lambda self, *args: asked.append(ask(self, *args)) or asked[-1])
    _, scores = run(place, tmp_path, **options)
    whole, *without = asked
    assert len(without) == 3  # blocks of 2 among 4 layers, each once
    torch.testing.assert_close(scores["layer.block_task=2"], torch.tensor([whole - value for value in without]))


@pytest.mark.slow  # lm-eval looks through all of its own tasks first
def test_a_task_that_does_not_exist_is_refused_first(place, tmp_path, tasks, monkeypatch):
    monkeypatch.setattr(lm_eval_tasks, "LM_EVAL_TASKS", lm_eval_tasks.LM_EVAL_TASKS / "arc")  # all take ten seconds
    with pytest.raises(InputError, match="finsh"):
        run(place, tmp_path, blocks=(2,), block_task="finsh", block_task_path=str(tasks))
    assert not (tmp_path / "importance").exists()


def test_a_metric_that_the_task_lacks_is_an_error(place, tmp_path, tasks):
    options = {"block_task": "finish", "block_task_path": str(tasks), "block_metric": "f1"}
    with pytest.raises(InputError, match=r"no 'f1': set importance.block_metric to one of acc"):
        run(place, tmp_path, blocks=(2,), mode="resident", **options)


def test_the_only_layer_of_a_model_is_scored_and_not_removed(place, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(progress, "say", said.append)
    model = tmp_path / "model"
    write_tiny(model, num_hidden_layers=1, vocab_size=300)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(place / "model" / name, model)
    config = ImportanceConfig(samples=4, batch_size=4, layer_removal=True)
    found = Scores.load(importance.run(context(tmp_path / "run"), open_source_model(model), data(place), config).path)
    found = found.by_name
    assert found["layer.block_importance"].shape == (1,)
    assert "layer.perplexity" not in found
    assert [text for text in said if "the model has one layer" in text]


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ({"expert": 2}, r"learned\.shape: expert is none of "),
        ({"ffn": 999, "layer": 2}, r"learned\.shape: ffn=999 is not within 1 to the parent's "),
        ({"layer": 4}, r"learned\.shape is the model's own: give a smaller size"),
        ({"head": 7}, r"learned\.shape: .*head"),
    ],
)
def test_masks_of_a_shape_that_cannot_be_are_refused(place, tmp_path, shape, says):
    with pytest.raises(InputError, match=says):
        run(place, tmp_path, learned=LearnedMasks(shape=shape))


@pytest.mark.slow
def test_merges_are_ordered_on_the_same_samples_whatever_the_batch(place, tmp_path, monkeypatch):
    read, real = [], importance.collapse_order

    def order(model, family, few, *others):
        read.append([len(batch.input_ids_BT) for batch in few])
        return real(model, family, few, *others)

    monkeypatch.setattr(importance, "collapse_order", order)
    found = [run(place, tmp_path / str(size), samples=32, collapse=1, batch_size=size)[1] for size in (1, 3, 16)]
    assert read == [[1] * 8, [3, 3, 2], [8]]
    assert all(torch.equal(one["layer.collapse"], found[0]["layer.collapse"]) for one in found)


def test_more_merged_layers_than_there_are_is_an_error(place, tmp_path):
    with pytest.raises(
        InputError, match=r"importance\.collapse 4: a layer and 4 that follow it are more than the 4 layers"
    ):
        run(place, tmp_path, collapse=4)


@pytest.mark.parametrize(("count", "device", "says"), [(4, "cpu", True), (1, "cpu", False), (4, "cuda", False)])
def test_processes_that_share_the_cpu_say_so(count, device, says, monkeypatch):
    warned = []
    monkeypatch.setattr(progress, "warn_once", warned.append)
    say_if_on_cpu(count, torch.device(device))
    assert warned == ["4 processes run on the CPU and share its cores: no accelerator is used"] * says
