import errno
import shutil
from collections import Counter

import pytest

from minitron_cli import progress
from minitron_cli.errors import DataError, InputError
from minitron_cli.evaluate import code_execution, lm_eval_runner
from minitron_cli.evaluate.code_execution import passes
from minitron_cli.evaluate.config import SUITES, EvaluateConfig, Task
from minitron_cli.evaluate.tasks import TaskLocations, forecast, load_tasks
from tests.quick import slow
from tests.tiny import tiny_model
from tests.unit.evaluate import suite_data
from tests.unit.evaluate.suite_data import PUBLISHED_SHOTS

TASKS = SUITES["minitron"]
METRICS = {
    "winogrande": "acc",
    "arc_challenge": "acc_norm",
    "mmlu": "acc",
    "hellaswag": "acc_norm",
    "gsm8k": "exact_match,strict-match",
    "truthfulqa_mc2": "acc",
    "xlsum_en": "rouge_l",
    "mbpp": "pass_at_1",
    "humaneval": "pass_at_1",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return suite_data.write(tmp_path_factory.mktemp("suite"))


@pytest.fixture
def remarks(monkeypatch):
    said = []
    monkeypatch.setattr(progress, "warn", said.append)
    return said


@pytest.fixture
def _short_answers(monkeypatch):
    """A random model never stops by itself; sixteen tokens show as much as five hundred."""

    def load_short(*arguments, **options):
        chosen = load_tasks(*arguments, **options)
        for task in chosen.task_dict["tasks"].values():
            if task.get_config("generation_kwargs"):
                task.set_config("generation_kwargs", {"max_gen_toks": 16}, update=True)
        return chosen

    monkeypatch.setattr(lm_eval_runner, "load_tasks", load_short)


@pytest.mark.slow
@pytest.mark.usefixtures("_short_answers")
def test_all_nine_tasks_run_on_local_files_with_their_own_shots(tokenizer, data):
    model = tiny_model("llama", vocab_size=len(tokenizer), num_hidden_layers=1, max_position_embeddings=8192)
    found = lm_eval_runner.run_tasks(
        model, tokenizer, TASKS, locations=TaskLocations(data=data), allow_code=True, batch_size=64
    )
    measured = {name: found.results[name][METRICS[name]] for name in METRICS}
    assert {name: value.shots for name, value in measured.items()} == PUBLISHED_SHOTS
    assert {name: value.n for name, value in measured.items()} == dict.fromkeys(METRICS, 4) | {"mmlu": 8}
    assert all(0 <= value.value <= 1 for value in measured.values())
    assert {len(found.items[name][METRICS[name]].values) for name in METRICS} == {4, 8}
    assert found.results["mmlu_stem"]["acc"].n == found.results["mmlu_humanities"]["acc"].n == 4


def prompts(name, data, **options):
    (task,) = [task for task in TASKS if task.name == name]
    loaded = load_tasks([task], TaskLocations(data=data), allow_code=True, **options).task_dict["tasks"]
    for member in loaded.values():
        member.build_all_requests()
    return [instance for member in loaded.values() for instance in member.instances]


@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("winogrande", "would not go into"),
        slow("arc_challenge", "Answer:"),
        slow("mmlu", "Answer:"),
        slow("hellaswag", "Baking: "),
        ("gsm8k", "Question:"),
        slow("xlsum_en", "Article:"),
        slow("mbpp", "[BEGIN]"),
        ("humaneval", "Adds"),
    ],
)
def test_every_prompt_shows_the_shots_of_the_suite(name, mark, data):
    found = {instance.args[0].count(mark) for instance in prompts(name, data)}
    assert found == {PUBLISHED_SHOTS[name] + 1}


@pytest.mark.slow
def test_humaneval_draws_twenty_answers_as_the_paper_does(data):
    asked = prompts("humaneval", data)
    assert {instance.repeats for instance in asked} == {20}
    how = asked[0].args[1]
    assert (how["do_sample"], how["temperature"], how["top_p"]) == (True, 0.2, 0.95)
    (task,) = (
        load_tasks([Task(name="humaneval")], TaskLocations(data=data), allow_code=True).task_dict["tasks"].values()
    )
    task.build_all_requests(limit=1)
    task.instances[0].resps = [["    return x + 0\n"] * 15 + ["    return y\n"] * 5][0]
    task.apply_filters()
    score = task.process_results(task.eval_docs[0], [task.instances[0].filtered_resps["none"]])
    assert score == {"pass_at_1": 0.75}


@pytest.mark.slow
def test_the_reference_answers_are_right(data):
    for name, answer in (("mbpp", "code"), ("gsm8k", "answer"), ("xlsum_en", "summary")):
        (task,) = load_tasks([Task(name=name)], TaskLocations(data=data), allow_code=True).task_dict["tasks"].values()
        for document in task.eval_docs:
            assert set(task.process_results(document, [document[answer]]).values()) == {1}, name


def test_a_fifth_of_xlsum_is_asked(data):
    chosen = load_tasks([task for task in TASKS if task.name == "xlsum_en"], TaskLocations(data=data))
    assert chosen.items == {"xlsum_en": [0, 1, 2, 3]}


def test_tasks_that_run_code_need_leave(data):
    with pytest.raises(InputError, match=r"'humaneval' runs code .* leave it out, or run .minitron eval --allow-code"):
        load_tasks([Task(name="humaneval")], TaskLocations(data=data))
    config = EvaluateConfig(suite="minitron")
    assert [task.name for task in config.requested(allow_code=True)] == list(PUBLISHED_SHOTS)
    assert [task.name for task in config.requested(allow_code=False)] == list(PUBLISHED_SHOTS)[:-2]


def test_a_task_named_beside_its_suite_is_asked_as_named():
    config = EvaluateConfig(suite="minitron", tasks=["mmlu:0"])
    assert Counter(task.name for task in config.requested(allow_code=False))["mmlu"] == 1
    assert config.requested(allow_code=False)[-1].num_fewshot == 0


def test_what_is_ahead_is_told_without_reading_data(tmp_path, data):
    local = {row.task: row for row in forecast(TASKS, TaskLocations(data=data))}
    assert {name: row.shots for name, row in local.items()} == PUBLISHED_SHOTS
    assert {name: METRICS[name] in row.metrics.split(", ") for name, row in local.items()} == dict.fromkeys(
        PUBLISHED_SHOTS, True
    )
    assert local["winogrande"].data == str(data / "winogrande/winogrande_xl")
    assert local["xlsum_en"].items == "first 20%"
    assert local["humaneval"].items == "all, 20 answers each"
    assert [name for name, row in local.items() if "runs code" in row.note] == ["mbpp", "humaneval"]
    away = {row.task: row.data for row in forecast(TASKS)}
    assert away["mmlu"] == "the hub: cais/mmlu (57 parts)"
    assert away["xlsum_en"] == "the hub: datasets/csebuetnlp/xlsum"
    assert away["arc_challenge"] == "the hub: allenai/ai2_arc"


def test_a_part_of_mmlu_is_said_to_be_one(data, remarks):
    found = load_tasks([Task(name="mmlu")], TaskLocations(data=data)).task_dict
    assert set(found["tasks"]) == {"mmlu_anatomy", "mmlu_world_religions"}
    assert any("data of 2 of the 57 parts of mmlu" in text for text in remarks)
    assert "mmlu_social_sciences" not in found["groups"]


def test_data_that_are_not_all_there_are_named(data, tmp_path):
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    (tmp_path / "gsm8k/train.json").unlink()
    with pytest.raises(DataError, match=r"'gsm8k': .* has no train split, .* put test.jsonl, train.jsonl"):
        load_tasks([Task(name="gsm8k")], TaskLocations(data=tmp_path))
    assert load_tasks([Task(name="gsm8k", num_fewshot=0)], TaskLocations(data=tmp_path)).task_dict["tasks"]
    shutil.rmtree(tmp_path / "hellaswag/data")
    with pytest.raises(DataError, match=r"has no data of task 'hellaswag'"):
        load_tasks([Task(name="hellaswag")], TaskLocations(data=tmp_path))
    shutil.copy(tmp_path / "arc_challenge/test.jsonl", tmp_path / "arc_challenge/train.jsonl")
    with pytest.raises(DataError, match=r"needs 25 solved examples and its data have 4"):
        load_tasks([Task(name="arc_challenge", num_fewshot=25)], TaskLocations(data=tmp_path))


def test_the_fingerprint_is_of_the_data_that_are_asked_for(data, tmp_path):
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    before = TaskLocations(data=tmp_path).fingerprints([Task(name="mbpp")])
    assert before == TaskLocations(data=data).fingerprints([Task(name="mbpp")])
    (tmp_path / "gsm8k/test.json").write_text("[]")
    assert TaskLocations(data=tmp_path).fingerprints([Task(name="mbpp")]) == before
    (tmp_path / "mbpp/test.jsonl").write_text("{}")
    assert TaskLocations(data=tmp_path).fingerprints([Task(name="mbpp")]) != before


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1", True),
        ("assert False", False),
        ("import sys; sys.exit(3)", False),
        ("while True: pass", False),
        ("open('big', 'wb').write(bytes(17 << 20))", False),  # into a directory of its own, which goes with it
        ("import os; assert 'SECRET_TOKEN' not in os.environ", True),
        ("x = '\udcff'", True),  # a model may write what is no text
        ("import os, time; os.fork() or time.sleep(60)", True),
        ("exit(0)\nassert False", False),
        ("quit()\nassert False", False),
        ("import os\nos._exit(0)\nassert False", False),
        ("import unittest\nunittest.main()\nassert False", False),
        ("import sys\nassert sys.argv == ['-c']", True),
        ("import os\nos.write = None", True),
        (
            "import os\nfor fd in range(3, 4096):\n  try: os.write(fd, b'0' * 64)\n  except OSError: pass",
            False,
        ),
    ],
)
def test_a_program_passes_if_it_ends_in_time_without_an_error(source, expected, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    assert passes(source, timeout_seconds=1 if source.startswith("while") else 60) is expected


REFUSING = """\
import resource
def refused(kind, limits):
    raise ValueError("current limit exceeds maximum limit")
resource.setrlimit = refused
"""


def test_a_limit_that_the_system_refuses_fails_no_program(monkeypatch):
    """macOS refuses every limit of the address space that is less than what a new process maps."""
    monkeypatch.setattr(code_execution, "LIMITED", REFUSING + code_execution.LIMITED)
    assert passes("x = 1")
    assert not passes("assert False")


def test_a_program_that_ended_by_itself_needs_no_end(monkeypatch):
    """macOS refuses to signal a group of processes that have all ended."""

    def refuse(group, number):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(code_execution.os, "killpg", refuse)
    assert passes("x = 1")


def test_rouge_is_one_for_the_same_words_and_none_for_others():
    from minitron_cli.evaluate.suite import scoring  # which imports nltk and scipy.stats

    assert scoring.rouge_l(["It rained for days."], ["it rained for days"]) == 1
    assert scoring.rouge_l(["It rained."], ["Sun everywhere"]) == 0
    assert scoring.rouge_l(["the cat sat down"], ["the dog sat"]) == pytest.approx(
        2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)
    )
