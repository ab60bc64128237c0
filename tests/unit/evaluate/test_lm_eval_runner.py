import copy
import json
import logging
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import lm_eval.tasks
import numpy as np
import pytest
import torch
import yaml
from lm_eval.tasks._index import TaskIndex

from minitron_cli import progress
from minitron_cli.errors import DataError, InputError, Interrupted
from minitron_cli.evaluate import lm_eval_runner
from minitron_cli.evaluate.cloze import write_task
from minitron_cli.evaluate.config import Cloze, Task
from minitron_cli.evaluate.estimates import of_metric
from minitron_cli.evaluate.lm_eval_runner import run_tasks
from minitron_cli.evaluate.measurements import Measurements
from minitron_cli.evaluate.statistics import Items, compare
from minitron_cli.evaluate.task_files import fingerprint
from minitron_cli.evaluate.tasks import TaskLocations, TaskSet, forecast, load_tasks
from minitron_cli.results.evaluation import MetricResult
from tests.tiny import tiny_model
from tests.unit.evaluate.test_cloze import DOCUMENTS

ITEMS = [
    {
        "question": f"Q{i}: what is {i} + {i}? A:",
        "choices": [f" {2 * i}", f" {i} or so"],
        "gold": 0,
        "text": f"text {i}",
    }
    for i in range(6)
]

CHOICE = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"validation": "items.jsonl"}},
    "validation_split": "validation",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
ROLLING = {
    "task": "rolling",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"validation": ["items.jsonl"]}},
    "validation_split": "validation",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "text",
    "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
}
GENERATE = CHOICE | {
    "task": "generate",
    "output_type": "generate_until",
    "doc_to_target": "text",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 2},
    "metric_list": [{"metric": "exact_match"}],
}
GENERATE.pop("doc_to_choice")
SHUFFLED = ROLLING | {"task": "shuffled", "process_docs": "!function shuffling.shuffled"}
BOOTSTRAPPED = CHOICE | {
    "task": "bootstrapped",
    "output_type": "loglikelihood",
    "doc_to_target": "text",
    "metric_list": [{"metric": "perplexity"}],
}
BOOTSTRAPPED.pop("doc_to_choice")
GROUP = {
    "group": "pair",
    "task": ["sums", "more_sums"],
    "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
}


@pytest.fixture(scope="module")
def task_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tasks = all, of them")
    (directory / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    (directory / "shuffling.py").write_text(
        "import random\ndef shuffled(docs): return docs.select(random.sample(range(6), 3))\n"
    )
    tasks = [
        CHOICE | {"task": "sums"},
        CHOICE | {"task": "more_sums"},
        ROLLING,
        GENERATE,
        GROUP,
        SHUFFLED,
        BOOTSTRAPPED,
    ]
    tasks.append(CHOICE | {"task": "unsafe", "unsafe_code": True})
    tasks.append(CHOICE | {"task": "fixed", "num_fewshot": 0})
    tasks.append(CHOICE | {"task": "no_data", "dataset_kwargs": {"data_files": {"validation": "absent.jsonl"}}})
    tasks.append(CHOICE | {"task": "no_split", "validation_split": "test"})
    for task in tasks:
        (directory / f"{task.get('task') if 'group' not in task else 'pair'}.yaml").write_text(_yaml(task))
    return directory


def _yaml(task):
    return yaml.safe_dump(task).replace("'!function shuffling.shuffled'", "!function shuffling.shuffled")


@pytest.fixture(scope="module")
def run(model, tokenizer, task_dir):
    def results(*tasks, **options):
        return run_tasks(
            model, tokenizer, [Task.parse(t) for t in tasks], locations=TaskLocations(task_dir), **options
        ).results

    return results


def test_local_tasks_run_from_any_directory(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = run("sums", "rolling", "generate")
    assert set(results["sums"]) == {"acc", "acc_norm"}
    assert set(results["rolling"]) == {"word_perplexity", "bits_per_byte"}
    assert set(results["generate"]) == {"exact_match"}


def test_accuracy_is_how_often_the_gold_answer_is_likeliest(model, tokenizer, run):
    def likelihood(question, choice):
        start, ids = len(tokenizer.encode(question)), tokenizer.encode(question + choice)
        with torch.no_grad():
            logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(logp[t - 1, ids[t]].item() for t in range(start, len(ids)))

    right = [likelihood(i["question"], i["choices"][0]) > likelihood(i["question"], i["choices"][1]) for i in ITEMS]
    acc = run("sums")["sums"]["acc"]
    assert acc.value == sum(right) / 6
    assert acc.stderr == pytest.approx(np.std(right, ddof=1) / np.sqrt(6))
    assert acc.n == 6


def test_every_task_has_its_own_shots(run, task_dir):
    results = run("sums:2", "more_sums:1", "rolling")
    shots = [results[t][m].shots for t, m in [("sums", "acc"), ("more_sums", "acc"), ("rolling", "bits_per_byte")]]
    assert shots == [2, 1, 0]
    tasks = load_tasks([Task.parse("sums:2"), Task.parse("more_sums")], TaskLocations(task_dir)).task_dict["tasks"]
    assert _prompt(tasks["sums"]).count("A:") == 3
    assert _prompt(tasks["more_sums"]).count("A:") == 1


def _prompt(task):
    task.build_all_requests(limit=1)
    return task.instances[0].args[0]


def test_shots_of_a_group_reach_its_members(run):
    results = run("pair:2")
    assert {name: results[name]["acc"].shots for name in results} == {"pair": 2, "sums": 2, "more_sums": 2}
    assert results["pair"]["acc"].value == results["sums"]["acc"].value
    assert results["pair"]["acc"].n == 12


def test_a_group_without_a_metric_shows_its_members(model, tokenizer, task_dir, tmp_path):
    shutil.copytree(task_dir, tmp_path / "tasks")
    (tmp_path / "tasks/plain.yaml").write_text(yaml.safe_dump({"group": "plain", "task": ["sums", "more_sums"]}))
    found = run_tasks(model, tokenizer, [Task(name="plain")], locations=TaskLocations(tmp_path / "tasks"))
    assert {name: metrics["acc"].part_of for name, metrics in found.results.items()} == {
        "sums": None,
        "more_sums": None,
    }
    assert set(found.without_members.items) == {"sums", "more_sums"}


def test_a_group_of_equally_weighted_tasks_has_items_to_compare(tokenizer, task_dir, tmp_path):
    """Its value is the mean of the tasks' values, so that an item of the shorter task counts more."""
    shutil.copytree(task_dir, tmp_path / "tasks")
    equal = GROUP | {"aggregate_metric_list": [{"metric": "acc", "weight_by_size": False}]}
    (tmp_path / "tasks/pair.yaml").write_text(yaml.safe_dump(equal))
    four = [item | {"choices": [*item["choices"], " 7", " 8"], "gold": i % 4} for i, item in enumerate(ITEMS)]
    (tmp_path / "tasks/items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in four))
    (tmp_path / "tasks/two.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS[:2]))
    two = CHOICE | {"task": "more_sums", "dataset_kwargs": {"data_files": {"validation": "two.jsonl"}}}
    (tmp_path / "tasks/more_sums.yaml").write_text(yaml.safe_dump(two))
    model, other = (tiny_model("llama", vocab_size=len(tokenizer), seed=seed) for seed in (0, 1))
    found, beside = (
        run_tasks(each, tokenizer, [Task(name="pair")], locations=TaskLocations(tmp_path / "tasks"))
        for each in (model, other)
    )
    mean = {name: metrics["acc"].value for name, metrics in found.results.items()}
    assert mean["pair"] == (mean["sums"] + mean["more_sums"]) / 2 != np.mean([mean["sums"]] * 3 + [mean["more_sums"]])
    assert found.results["pair"]["acc"].chance == (1 / 4 + 1 / 2) / 2
    items = found.items["pair"]["acc"]
    assert items.mean == pytest.approx(mean["pair"])
    difference = compare(items, beside.items["pair"]["acc"])
    assert difference.difference == pytest.approx(mean["pair"] - beside.results["pair"]["acc"].value)
    assert (difference.items, difference.mcnemar) == (8, None)


def test_items_of_one_document_are_counted_together_in_a_group_too(tokenizer, task_dir, tmp_path):
    """Ten items of each document are the same, so the error is that of the documents' means."""
    shutil.copytree(task_dir, tmp_path / "tasks")
    items = [ITEMS[i // 10] | {"gold": i // 10 % 2, "article": i // 10} for i in range(40)]
    (tmp_path / "tasks/items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=512)
    locations = TaskLocations(tmp_path / "tasks")

    def measured(**document):
        return run_tasks(model, tokenizer, [Task(name="pair", **document)], locations=locations)

    found, alone = (measured(**document).results["pair"]["acc"] for document in ({"document": "article"}, {}))
    means = measured().items["sums"]["acc"].values[::10] * 2
    assert found.value == alone.value == np.mean(means)
    assert (found.clusters, alone.clusters) == (8, None)
    assert found.stderr == pytest.approx(np.std(means, ddof=1) / np.sqrt(8))
    assert found.stderr > 2 * alone.stderr > 0


CHANGED = [{"task": "sums", "num_fewshot": 2}, {"group": "inner", "task": ["more_sums"]}]


def test_members_of_a_group_may_be_given_with_changes(model, tokenizer, task_dir, tmp_path, monkeypatch):
    """Their data are found beside their YAML as those of named members are."""
    shutil.copytree(task_dir, tmp_path / "tasks")
    (tmp_path / "tasks/changed.yaml").write_text(yaml.safe_dump({"group": "changed", "task": CHANGED}))
    locations = TaskLocations(tmp_path / "tasks")
    (row,) = forecast([Task(name="changed")], locations)
    assert (row.shots, row.metrics, row.data) == (2, "acc, acc_norm", f"{tmp_path / 'tasks'} (2 parts)")
    monkeypatch.chdir(tmp_path)
    found = run_tasks(model, tokenizer, [Task(name="changed")], locations=locations).results
    assert {name: metrics["acc"].shots for name, metrics in found.items()} == {"sums": 2, "more_sums": 0}


def test_of_members_given_with_changes_those_without_local_data_are_left_out(task_dir, tmp_path, remarks):
    shutil.copytree(task_dir, tmp_path / "tasks")
    (tmp_path / "tasks/changed.yaml").write_text(yaml.safe_dump({"group": "changed", "task": CHANGED}))
    (tmp_path / "data/changed/sums").mkdir(parents=True)
    shutil.copy(task_dir / "items.jsonl", tmp_path / "data/changed/sums/validation.jsonl")
    locations = TaskLocations(tmp_path / "tasks", tmp_path / "data")
    assert set(load_tasks([Task(name="changed")], locations).task_dict["tasks"]) == {"sums"}
    assert remarks == [f"{tmp_path / 'data/changed'} has data of 1 of the 2 parts of changed; only those"]


def test_a_group_that_defines_its_tasks_itself_is_described(task_dir, tmp_path):
    shutil.copytree(task_dir, tmp_path / "tasks")
    inline = {
        "group": "inline",
        "task": [CHOICE | {"task": "mine", "dataset_path": "you/mine", "dataset_kwargs": None}],
    }
    (tmp_path / "tasks/inline.yaml").write_text(yaml.safe_dump(inline))
    (tmp_path / "tasks/nothing.yaml").write_text(yaml.safe_dump({"group": "nothing", "task": ["unknown"]}))
    (row,) = forecast([Task(name="inline")], TaskLocations(tmp_path / "tasks"))
    assert (row.metrics, row.data) == ("acc, acc_norm", "the hub: you/mine")
    with pytest.raises(InputError, match="'nothing' is a group without a task that is known; check its YAML"):
        forecast([Task(name="nothing")], TaskLocations(tmp_path / "tasks"))
    (tmp_path / "data/inline").mkdir(parents=True)
    with pytest.raises(DataError, match="defines its tasks itself, which read no local data; give each a YAML"):
        forecast([Task(name="inline")], TaskLocations(tmp_path / "tasks", tmp_path / "data"))


def test_a_task_defined_without_examples_stays_so_and_says_so(run, remarks):
    assert run("fixed:3")["fixed"]["acc"].shots == 0
    run("fixed:3")
    assert remarks == ["task fixed is defined without examples; num_fewshot=3 has no effect"]


@pytest.mark.parametrize(("limit", "n"), [(4, 4), (0.5, 3), (100, 6), (1, 1)])
def test_each_task_has_its_own_limit(model, tokenizer, task_dir, limit, n):
    tasks = [Task(name="sums", limit=limit), Task(name="more_sums")]
    results = run_tasks(model, tokenizer, tasks, locations=TaskLocations(task_dir)).results
    assert [results[t]["acc"].n for t in ("sums", "more_sums")] == [n, 6]


def test_the_value_of_guessing_is_known_of_answers_that_are_right_or_wrong(model, tokenizer, tmp_path, run):
    """Three items of two answers and three of four: (3 / 2 + 3 / 4) / 6; a group has the mean over its items."""
    four = [item | {"choices": [*item["choices"], " 7", " 8"]} for item in ITEMS]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in (*ITEMS[:3], *four[3:])))
    tasks = {"sums": CHOICE | {"task": "sums"}, "more_sums": CHOICE | {"task": "more_sums"}, "pair": GROUP}
    mutual = {"metric_list": [{"metric": "acc"}, {"metric": "acc_mutual_info"}]}
    tasks["more_sums"] |= mutual | {"dataset_kwargs": {"data_files": {"validation": "two.jsonl"}}}
    (tmp_path / "two.jsonl").write_text(json.dumps(ITEMS[0]) + "\n")
    for name, task in tasks.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(task))
    found = run_tasks(model, tokenizer, [Task(name="pair")], locations=TaskLocations(tmp_path)).results
    assert found["sums"]["acc"].chance == found["sums"]["acc_norm"].chance == pytest.approx(0.375)
    assert found["more_sums"]["acc_mutual_info"].chance == found["more_sums"]["acc"].chance == 0.5
    assert found["pair"]["acc"].chance == pytest.approx((0.375 * 6 + 0.5) / 7)
    assert run("generate")["generate"]["exact_match"].chance is None


def test_answers_that_are_right_or_wrong_have_the_interval_of_a_share(run):
    found = {metric: result for task in ("sums", "generate", "rolling") for metric, result in run(task)[task].items()}
    scales = {metric: result.scale for metric, result in found.items()}
    assert scales["acc"] == scales["acc_norm"] == scales["exact_match"] == "share"
    assert scales["word_perplexity"] == scales["bits_per_byte"] == "linear"
    assert (found["acc"].value, found["acc"].stderr, found["acc"].n) == (1, 0, 6)
    t = 2.5706  # of 5 degrees of freedom
    assert of_metric(found["acc"]).interval() == pytest.approx((1 / (1 + t**2 / 6), 1), abs=1e-4)


def test_results_are_the_same_twice_and_in_json(run):
    results = run("pair:2", "rolling", "generate")
    assert run("pair:2", "rolling", "generate") == results
    whole = Measurements(results=results)
    assert Measurements.model_validate(json.loads(json.dumps(whole.model_dump(mode="json"), allow_nan=False))) == whole


def test_a_task_that_shuffles_shuffles_the_same_way_every_time(run, task_dir):
    first = run("shuffled", allow_code=True)
    random.seed(11)
    assert run("shuffled", allow_code=True) == first
    assert first["shuffled"]["bits_per_byte"].n == 3


def test_errors_are_bootstrapped_in_this_process(run, monkeypatch, capfd):
    monkeypatch.setattr("multiprocessing.Pool", None)
    assert run("bootstrapped")["bootstrapped"]["perplexity"].stderr > 0
    assert capfd.readouterr() == ("", "")


def test_a_value_that_is_not_finite_is_none(tokenizer, task_dir):
    broken = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=512)
    with torch.no_grad():
        broken.model.norm.weight.fill_(torch.nan)
    results = run_tasks(broken, tokenizer, [Task(name="rolling")], locations=TaskLocations(task_dir)).results
    assert results["rolling"]["bits_per_byte"].value is None


def test_checking_tasks_prints_nothing(task_dir, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)  # so that the data is read anew
    load_tasks([Task(name="sums")], TaskLocations(task_dir))
    assert capfd.readouterr() == ("", "")


def test_nothing_is_printed_and_nothing_is_left_changed(run, tokenizer, capfd):
    random.seed(5)
    torch.manual_seed(5)
    before = random.getstate(), torch.get_rng_state(), logging.getLogger("lm_eval").handlers, len(tokenizer)
    run("sums:1", "rolling", "generate")
    assert capfd.readouterr() == ("", "")
    assert tokenizer.pad_token is None
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert logging.getLogger("lm_eval").handlers == before[2]


def test_the_bar_counts_every_request(run, display):
    run("sums", "rolling")
    assert display.done == {"tasks": [12, 6]}
    assert display.totals == {"tasks": [12, 6]}


def test_a_stop_request_ends_it_between_two_requests(run):
    progress.request_stop(15)
    try:
        with pytest.raises(Interrupted):
            run("sums")
    finally:
        progress.request_stop(None)


def test_requests_longer_than_the_context_are_reported(tokenizer, task_dir, remarks):
    short = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=24)
    run_tasks(short, tokenizer, [Task.parse("sums:4")], locations=TaskLocations(task_dir))
    assert remarks == ["12 requests exceeded the model's context and were truncated at the beginning"]


def test_an_unknown_task_suggests_close_ones(run, monkeypatch):
    own = Path(lm_eval.tasks.__file__).parent  # thousands of files, seconds to read
    found = TaskIndex._iter_yaml_files
    monkeypatch.setattr(TaskIndex, "_iter_yaml_files", lambda root: found(root) if root != own else iter(()))
    with pytest.raises(InputError, match=r"task 'more_sum': no such task in lm-eval or .*; did you mean more_sums"):
        run("more_sum")


def test_a_task_that_runs_code_is_refused_before_anything_is_loaded(run):
    with pytest.raises(InputError, match="'unsafe' runs code that the model writes"):
        run("sums", "unsafe")


def test_a_task_asked_for_twice_is_refused(run):
    with pytest.raises(InputError, match="'sums' is requested twice"):
        run("sums", "pair")


def test_absent_data_is_an_error_of_the_task(run):
    with pytest.raises(DataError, match="'no_data': its data could not be read"):
        run("no_data")
    with pytest.raises(InputError, match="'no_split' could not be loaded"):
        run("no_split")


def test_a_task_that_changes_is_read_again(model, tokenizer, tmp_path):
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    for metric in ("acc", "acc_norm"):
        (tmp_path / "t.yaml").write_text(yaml.safe_dump(CHOICE | {"task": "t", "metric_list": [{"metric": metric}]}))
        assert list(run_tasks(model, tokenizer, [Task(name="t")], locations=TaskLocations(tmp_path)).results["t"]) == [
            metric
        ]


def test_a_broken_yaml_is_named(model, tokenizer, tmp_path):
    (tmp_path / "broken.yaml").write_text("task: [")
    with pytest.raises(InputError, match=r"broken\.yaml: not a readable task YAML"):
        run_tasks(model, tokenizer, [Task(name="broken")], locations=TaskLocations(tmp_path))
    with pytest.raises(InputError, match="no such directory of task YAMLs"):
        run_tasks(model, tokenizer, [Task(name="broken")], locations=TaskLocations(tmp_path / "absent"))


def test_a_cloze_task_is_answered_offline(model, tokenizer, tmp_path):
    config = Cloze(items=10, context_words=8, continuation_words=3)
    write_task(tmp_path, DOCUMENTS, config)
    acc = run_tasks(model, tokenizer, [Task(name="cloze")], locations=TaskLocations(tmp_path)).results["cloze"]["acc"]
    assert acc.n == 10
    task = load_tasks([Task(name="cloze")], TaskLocations(tmp_path)).task_dict["tasks"]["cloze"]
    task.build_all_requests()
    items = [json.loads(line) for line in (tmp_path / "cloze.jsonl").read_text().splitlines()]
    asked = [instance.args for instance in task.instances]
    assert asked == [(item["context"], choice) for item in items for choice in item["choices"]]


def test_the_fingerprint_is_of_names_and_contents(task_dir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(task_dir, copy)
    assert fingerprint(copy) == fingerprint(task_dir)
    (copy / "items.jsonl").write_text("{}")
    assert fingerprint(copy) != fingerprint(task_dir)


class Display:
    def __init__(self):
        self.done, self.totals, self.remarks = {}, {}, []

    def start(self, title, total, unit):
        self.totals.setdefault(title, []).append(total)
        counts = self.done.setdefault(title, [])
        counts.append(0)

        def step(n=1, **figures):
            counts[-1] += n

        return step

    def finish(self, step):
        pass

    def say(self, text):
        self.remarks.append(text)

    warn = say


@pytest.fixture
def display():
    shown = Display()
    progress.show_on(shown)
    yield shown
    progress.show_on(None)


@pytest.fixture
def remarks(display):
    return display.remarks


def test_tasks_are_asked_through_the_chat_template(model, tokenizer, task_dir, monkeypatch):
    """Each solved example is a turn of its own if that is asked for; lm-eval's requests are what the model reads."""
    asked: list[str] = []
    watched = copy.deepcopy(tokenizer)
    watched.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    likelihood = lm_eval_runner.Model.loglikelihood
    monkeypatch.setattr(
        lm_eval_runner.Model,
        "loglikelihood",
        lambda self, requests, **options: (
            asked.extend(r.args[0] for r in requests) or likelihood(self, requests, **options)
        ),
    )
    for turns, count in ((False, 1), (True, 3)):
        asked.clear()
        options = {"apply_chat_template": True, "fewshot_as_multiturn": turns}
        run_tasks(model, watched, [Task.parse("sums:2")], locations=TaskLocations(task_dir), **options)
        assert {text.count("<user>") for text in asked} == {count}
        assert all("Q" in text.rsplit("<user>", 1)[1] for text in asked)


def test_an_item_that_lm_eval_cannot_ask_is_an_error_of_the_data(model, tokenizer, tmp_path):
    (tmp_path / "sums.yaml").write_text(yaml.safe_dump(CHOICE | {"task": "sums", "doc_to_text": "question"}))
    broken = [item | {"question": None} for item in ITEMS]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in broken))
    with pytest.raises(InputError, match=r"^sums: an item could not be asked or scored \(.*check the tasks"):
        run_tasks(model, tokenizer, [Task(name="sums")], locations=TaskLocations(tmp_path))


def test_tasks_of_a_group_weigh_as_its_config_says_whatever_a_model_answers():
    """A model that is wrong in every task has one value by either weighting, and is compared with others."""
    equal = SimpleNamespace(aggregate_metric_list=[SimpleNamespace(metric="acc", weight_by_size=False)])
    chosen, raw = TaskSet(), {"group_subtasks": {"pair": ["a", "b"]}}
    chosen.task_dict["groups"]["pair"] = equal
    models = [{"a": {"acc": Items(a)}, "b": {"acc": Items(b)}} for a, b in (([0, 0, 0], [0]), ([1, 0, 0], [1]))]
    found = [
        lm_eval_runner._averaged_items(MetricResult(value=value), scores, raw, ("pair", "acc"), chosen)
        for scores, value in zip(models, (0.0, 2 / 3), strict=True)
    ]
    assert compare(*found).difference == pytest.approx(-2 / 3)
