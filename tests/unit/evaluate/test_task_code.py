"""Code in task files is found by reading them, and never runs unless it is allowed."""

import json
from pathlib import Path

import pytest
import yaml

from minitron_cli.errors import InputError
from minitron_cli.evaluate.config import Task
from minitron_cli.evaluate.task_code import templates
from minitron_cli.evaluate.tasks import TaskLocations, forecast, load_tasks
from tests.unit.evaluate.test_lm_eval_runner import CHOICE, ITEMS

PLAIN = yaml.safe_dump(CHOICE | {"task": "own"})
ESCAPE = "{{ ''.__class__.__mro__[1].__subclasses__()[0].__init__.__globals__ }}"

CODE = {
    "a function": (PLAIN + "process_docs: !function canary.touch\n", "!function canary.touch"),
    "a function in a list": (
        PLAIN + "filter_list: [{name: a, filter: [{function: custom, filter_fn: !function canary.touch}]}]\n",
        "!function canary.touch",
    ),
    "a class": ("task: own\nclass: canary.Touching\n", "class: canary.Touching"),
    "a class by an alias": ("task: own\nmetadata: {x: &x canary.Touching}\nclass: *x\n", "class: canary.Touching"),
    "a class by an anchor": ("task: own\nclass: &x canary.Touching\nmetadata: {x: *x}\n", "class: canary.Touching"),
    "a metric in a file": (PLAIN.replace("metric: acc_norm", "metric: ./canary.py"), "the metric './canary.py'"),
    "a metric of the hub": (PLAIN.replace("metric: acc_norm", "metric: acc_norm\n  hf_evaluate: true"), "hf_evaluate"),
    "pickled data": (PLAIN.replace("dataset_path: json", "dataset_path: pandas"), "dataset_path: pandas"),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of tasks beside a module that leaves a file behind when it is imported or called."""
    monkeypatch.chdir(tmp_path)
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    touch = f"open({str(tmp_path / 'canary')!r}, 'w')"
    (tasks / "canary.py").write_text(f"{touch}\ndef touch(*a, **b):\n    {touch}\n    return a[0]\n")
    (tasks / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    return tasks


def refused(place: Path, name: str = "own") -> list[str]:
    """Sentences of a run and of a dry run, neither of which may have run any code."""
    sentences = []
    for act in (load_tasks, forecast):
        with pytest.raises(InputError) as caught:
            act([Task(name=name)], TaskLocations(place))
        sentences.append(str(caught.value))
    assert not (place.parent / "canary").exists()
    return sentences


@pytest.mark.parametrize("kind", CODE)
def test_code_is_named_with_its_place_and_does_not_run(place: Path, kind: str) -> None:
    text, named = CODE[kind]
    (place / "own.yaml").write_text(text)
    line = next(
        i for i, row in enumerate(text.splitlines(), 1) if named.split()[-1].strip("'") in row or "hf_ev" in row
    )
    for sentence in refused(place):
        assert sentence.startswith(f"task 'own': {place / 'own.yaml'}:{line} names code")
        assert named in sentence
        assert "--allow-code-execution" in sentence


def test_a_python_object_is_no_yaml_of_ours(place: Path) -> None:
    (place / "own.yaml").write_text(PLAIN + "description: !!python/object/apply:canary.touch []\n")
    assert all("python/object/apply:canary.touch" in sentence for sentence in refused(place))


def test_code_is_found_through_files_that_are_included(place: Path) -> None:
    (place / "own.yaml").write_text("include: middle.yaml\ntask: own\n")
    (place / "middle.yaml").write_text("include: deep/base\n")
    (place / "deep").mkdir()
    (place / "deep" / "base").write_text(CODE["a function"][0])
    (place / "deep" / "canary.py").write_text((place / "canary.py").read_text())
    (place / "deep" / "items.jsonl").write_text((place / "items.jsonl").read_text())
    assert all(f"{place / 'deep' / 'base'}:" in sentence for sentence in refused(place))


@pytest.mark.parametrize("group", ["group: all\ntask: [own]\n", "group: all\ntask: [{group: inner, task: [own]}]\n"])
def test_code_is_found_in_a_member_of_a_group(place: Path, group: str) -> None:
    (place / "own.yaml").write_text(CODE["a function"][0])
    (place / "all.yaml").write_text(group)
    assert all(sentence.startswith("task 'own': ") for sentence in refused(place, "all"))


def test_code_is_found_behind_a_tag(place: Path) -> None:
    (place / "own.yaml").write_text(CODE["a function"][0] + "tag: many\n")
    assert all(sentence.startswith("task 'own': ") for sentence in refused(place, "many"))


def test_a_task_of_the_user_that_has_the_name_of_a_known_one_is_not_trusted(place: Path) -> None:
    (place / "own.yaml").write_text(CODE["a function"][0].replace("task: own", "task: winogrande"))
    assert all("names code" in sentence for sentence in refused(place, "winogrande"))


def test_code_that_is_allowed_runs(place: Path) -> None:
    """The canary is one: without it the tests above would show nothing."""
    (place / "own.yaml").write_text(CODE["a function"][0])
    forecast([Task(name="own")], TaskLocations(place), allow_code=True)
    assert not (place.parent / "canary").exists()
    assert load_tasks([Task(name="own")], TaskLocations(place), allow_code=True).task_dict["tasks"]
    assert (place.parent / "canary").exists()


def test_a_template_reaches_nothing_but_its_item() -> None:
    import lm_eval.utils

    with templates(allow_code=False), pytest.raises(Exception, match="unsafe"):
        lm_eval.utils.apply_template(ESCAPE, {})
    with templates(allow_code=False):
        assert lm_eval.utils.apply_template("{{ question | upper }}", {"question": "a"}) == "A"
    with templates(allow_code=True), pytest.raises(Exception, match=r"^(?!.*unsafe)"):
        lm_eval.utils.apply_template(ESCAPE, {})
