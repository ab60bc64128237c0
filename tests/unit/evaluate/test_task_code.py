"""Code in task files is found by reading them, and never runs unless it is allowed; each canary would leave a file."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from minitron_cli.errors import InputError
from minitron_cli.evaluate import earlier, lm_eval_runner
from minitron_cli.evaluate.config import Task
from minitron_cli.evaluate.measurements import Measurements
from minitron_cli.evaluate.task_code import entries_of, refuse_model_code
from minitron_cli.evaluate.task_metric import TaskMetric
from minitron_cli.evaluate.tasks import LM_EVAL_TASKS, TaskLocations, _index, _index_of, forecast, load_tasks
from minitron_cli.results.evaluation import MetricResult
from tests.unit.evaluate.test_lm_eval_runner import CHOICE

PLAIN = {key: value for key, value in CHOICE.items() if key != "metric_list"} | {"task": "quiz"}
FUNCTION = "process_docs: !function code.run"
ITEMS = '{"question": "one and one is", "choices": [" two", " three"], "gold": 0}\n' * 4


class Directory:
    """A directory of tasks beside a Python file that leaves a file when it is imported or called."""

    def __init__(self, root: Path) -> None:
        self.root, self.canary = root, root / "canary"
        (root / "items.jsonl").write_text(ITEMS)
        leave = f"open({str(self.canary)!r}, 'w').close()"
        self.write(
            "code.py", f"{leave}\ndef run(*a, **k):\n    {leave}\n    return a[0] if a else 0\nclass Task: pass\n"
        )

    def write(self, name: str, content: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(content)

    def task(self, name: str, *lines: str, **changes: Any) -> None:
        kept = {key: value for key, value in (PLAIN | changes).items() if value is not None}
        self.write(name, yaml.safe_dump(kept) + "\n".join(lines) + "\n")


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(tmp_path)


def included(d: Directory) -> None:
    """From a directory that is not searched, by a file that is no YAML by its name, at second hand."""
    d.task("elsewhere/base", "process_docs: !function ../code.run", task=None)
    d.write("middle", "include: elsewhere/base\n")
    d.task("quiz.yaml", "include: [middle]")


def included_outside(d: Directory) -> None:
    other = d.root.parent / f"{d.root.name}-other"
    other.mkdir()
    (other / "base").write_text(f"process_docs: !function {d.root / 'code'}.run\n")
    d.task("quiz.yaml", f"include: {other / 'base'}")


def in_a_group(d: Directory) -> None:
    d.task("member.yaml", FUNCTION, task="member")
    d.write("quiz.yaml", yaml.safe_dump({"group": "quiz", "task": ["inner"]}))
    d.write("inner.yaml", yaml.safe_dump({"group": "inner", "task": [{"task": "member", "num_fewshot": 0}]}))


def inline_in_a_group(d: Directory) -> None:
    d.write("quiz.yaml", "group: quiz\ntask:\n  - task: inline\n    process_docs: !function code.run\n")


def linked(d: Directory) -> None:
    d.task("away/real", "process_docs: !function ../code.run")
    (d.root / "quiz.yaml").symlink_to("away/real")


CANARIES: dict[str, Callable[[Directory], None]] = {
    "process_docs": lambda d: d.task("quiz.yaml", FUNCTION),
    "without data files": lambda d: d.task("quiz.yaml", FUNCTION, dataset_kwargs=None),
    "doc_to_text": lambda d: d.task("quiz.yaml", "doc_to_text: !function code.run", doc_to_text=None),
    "metric": lambda d: d.task("quiz.yaml", "metric_list:\n  - metric: !function code.run"),
    "filter": lambda d: d.task(
        "quiz.yaml",
        "filter_list:\n  - name: x\n    filter:\n      - {function: custom, filter_fn: !function code.run}",
    ),
    "few-shot samples": lambda d: d.task("quiz.yaml", "fewshot_config:\n  samples: !function code.run"),
    "custom data": lambda d: d.task("quiz.yaml", "custom_dataset: !function code.run"),
    "handle of a tag": lambda d: d.write(
        "quiz.yaml", f"%TAG !e! !\n---\n{yaml.safe_dump(PLAIN)}process_docs: !e!function code.run\n"
    ),
    "in an anchor": lambda d: d.task("quiz.yaml", "metadata: {x: &f !function code.run}", "process_docs: *f"),
    "as a key": lambda d: d.task("quiz.yaml", "metadata: {? !function code.run : 1}"),
    "importable module": lambda d: d.task("quiz.yaml", "process_docs: !function os.path.basename"),
    "class": lambda d: d.write("quiz.yaml", "task: quiz\nclass: code.Task\n"),
    "class by an alias": lambda d: d.write("quiz.yaml", "task: quiz\nmetadata: {x: &x code.Task}\nclass: *x\n"),
    "class by an anchor": lambda d: d.write("quiz.yaml", "task: quiz\nclass: &x code.Task\nmetadata: {x: *x}\n"),
    "metric in a file": lambda d: d.task("quiz.yaml", "metric_list:\n  - metric: ./code.py"),
    "metric of the hub": lambda d: d.task("quiz.yaml", "metric_list:\n  - metric: acc\n    hf_evaluate: true"),
    "pickled data": lambda d: d.task("quiz.yaml", dataset_path="pandas"),
    "unknown metric": lambda d: d.task("quiz.yaml", "metric_list:\n  - metric: my_metric"),
    "include": included,
    "include outside": included_outside,
    "group": in_a_group,
    "inline in a group": inline_in_a_group,
    "link": linked,
}


@pytest.mark.parametrize("write", CANARIES.values(), ids=CANARIES)
def test_code_is_named_and_does_not_run(directory: Directory, write: Callable[[Directory], None]) -> None:
    write(directory)
    for look in (load_tasks, forecast):
        with pytest.raises(InputError, match=r":\d+ names code, .+--allow-code-execution"):
            look([Task(name="quiz")], TaskLocations(directory.root))
    assert not directory.canary.exists()


def test_code_is_named_with_its_file_and_line(directory: Directory) -> None:
    included(directory)
    text = (directory.root / "elsewhere" / "base").read_text().splitlines()
    place = f"{directory.root / 'elsewhere' / 'base'}:{1 + text.index('process_docs: !function ../code.run')}"
    with pytest.raises(InputError) as caught:
        load_tasks([Task(name="quiz")], TaskLocations(directory.root))
    assert str(caught.value).startswith(f"task 'quiz': {place} names code, !function ../code.run: ")


def test_a_python_object_is_no_yaml_of_ours(directory: Directory) -> None:
    directory.task("quiz.yaml", "description: !!python/object/apply:code.run []")
    with pytest.raises(InputError, match=r"python/object/apply:code\.run"):
        load_tasks([Task(name="quiz")], TaskLocations(directory.root))
    assert not directory.canary.exists()


@pytest.mark.parametrize(("name", "asked"), [("quiz", "many"), ("winogrande", "winogrande")])
def test_neither_a_tag_nor_the_name_of_a_known_task_is_trusted(directory: Directory, name: str, asked: str) -> None:
    directory.task("quiz.yaml", FUNCTION, "tag: many", task=name)
    with pytest.raises(InputError, match=f"task '{name}': .* names code"):
        load_tasks([Task(name=asked)], TaskLocations(directory.root))
    assert not directory.canary.exists()


def test_code_that_is_allowed_runs_except_in_a_dry_run(directory: Directory) -> None:
    """The canary is one: without it the tests above would show nothing."""
    directory.task("quiz.yaml", FUNCTION)
    forecast([Task(name="quiz")], TaskLocations(directory.root), allow_code=True)
    assert not directory.canary.exists()
    load_tasks([Task(name="quiz")], TaskLocations(directory.root), allow_code=True)
    assert directory.canary.exists()


def test_a_stage_that_cannot_be_allowed_to_run_code_says_so(directory: Directory) -> None:
    directory.task("quiz.yaml", FUNCTION)
    metric = TaskMetric(Task(name="quiz"), "acc", directory.root, "search.metric")
    with pytest.raises(InputError, match=r"only `minitron eval` can .*; give search a task without code") as caught:
        metric.fingerprint()
    assert "--allow-code-execution" not in str(caught.value)


def test_code_of_another_task_in_the_directory_is_left_alone(directory: Directory) -> None:
    directory.task("quiz.yaml")
    directory.task("other.yaml", FUNCTION, task="other")
    place = TaskLocations(directory.root)
    assert [row.task for row in forecast([Task(name="quiz")], place)] == ["quiz"]
    assert load_tasks([Task(name="quiz")], place).task_dict["tasks"].keys() == {"quiz"}
    assert not directory.canary.exists()


@pytest.mark.parametrize("allowed", [False, True])
def test_templates_reach_the_item_alone(directory: Directory, allowed: bool) -> None:
    """A template that walks from a built-in to the operating system."""
    opened = f"cycler.__init__.__globals__.os.open({str(directory.canary)!r}, 64)"
    directory.task("quiz.yaml", doc_to_text="{{" + opened + "}}")

    def ask() -> None:
        loaded = load_tasks([Task(name="quiz")], TaskLocations(directory.root), allow_code=allowed)
        loaded.task_dict["tasks"]["quiz"]  # lm-eval renders an item to check the task

    if allowed:
        ask()
    else:
        with pytest.raises(InputError, match="unsafe"):
            ask()
    assert directory.canary.exists() is allowed


def test_a_task_that_includes_one_of_lm_eval_may_use_its_code(directory: Directory) -> None:
    directory.write("quiz.yaml", f"include: {LM_EVAL_TASKS / 'hellaswag/hellaswag.yaml'}\ntask: quiz\n")
    assert forecast([Task(name="quiz")], TaskLocations(directory.root))


def test_tasks_that_run_what_the_model_writes_are_found_in_groups(directory: Directory) -> None:
    directory.task("member.yaml", task="member", unsafe_code=True)
    directory.task("quiz.yaml", "include: member.yaml", unsafe_code=None)
    directory.write("all.yaml", yaml.safe_dump({"group": "all", "task": ["quiz"]}))
    for name in ("member", "quiz", "all"):
        with pytest.raises(InputError, match="runs code that the model writes"):
            load_tasks([Task(name=name)], TaskLocations(directory.root))


@pytest.mark.slow
def test_all_of_lm_eval_that_runs_what_the_model_writes_is_refused() -> None:
    """Every task of lm-eval whose code mentions the evaluation of programs."""
    runs = [file.parent for file in LM_EVAL_TASKS.rglob("utils.py") if "code_eval" in file.read_text()]
    index = _index(None, "", tuple(map(str, runs))).task_index  # of all tasks it takes ten seconds
    names = [n for n, e in index.items() if e.yaml_path and e.yaml_path.parent in runs and "task" in (e.cfg or {})]
    assert len(names) > 10
    for name in names:
        with pytest.raises(InputError, match="runs code that the model writes"):
            refuse_model_code(index, name)


def test_members_are_found_once_even_in_a_circle(directory: Directory) -> None:
    directory.write("a.yaml", yaml.safe_dump({"group": "a", "task": ["b", "b"]}))
    directory.write("b.yaml", yaml.safe_dump({"group": "b", "task": ["a", {"group": "c", "task": ["quiz"]}]}))
    directory.task("quiz.yaml")
    index = _index_of(["a"], directory.root).task_index
    assert sorted(entry.name for entry in entries_of(index, "a")) == ["a", "b", "quiz"]


def test_a_group_without_a_metric_of_its_own_names_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Measurements(results={"easy": {"acc": MetricResult(value=0.5)}, "hard": {"acc": MetricResult(value=0.2)}})
    monkeypatch.setattr(lm_eval_runner, "run_tasks", lambda *_, **__: found)
    metric = TaskMetric(Task(name="both"), "acc", None, "search.objective.metric")
    with pytest.raises(
        InputError, match=r"'both' has no metric of its own, .* name one of easy, hard in search\.objective"
    ):
        metric(None, None)  # type: ignore[arg-type]


def test_measurements_that_are_to_be_made_again_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    made = SimpleNamespace(path=Path("evaluate/a"))
    monkeypatch.setattr(earlier, "_conditions", lambda one: pytest.fail("looked at it"))
    workspace = SimpleNamespace(artifacts=lambda stage: [made])
    context = SimpleNamespace(workspace=workspace, overwrites=lambda path: path == made.path)
    assert earlier.earlier(context, "f", {"stage": "evaluate"}, per_byte=False) is None
