"""The model that ships: what it is, and that it has not seen what is held out."""

import json
import platform
import shutil
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter
from safetensors import safe_open

from minitron_cli import canonical_json, recipe
from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint.model_names import DEMO_TEACHER, demo_teacher, directory, resolve
from minitron_cli.data import standard_library
from minitron_cli.data.sources import PythonStdlib
from minitron_cli.evaluate.config import EvaluateConfig
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.stages.teacher import TeacherConfig
from scripts.bench_teacher import bench_data, beside_the_shipped


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    return json.loads((demo_teacher() / "training.json").read_text())


def test_the_model_that_ships_is_the_one_that_its_settings_say(known: dict[str, Any]) -> None:
    found, asked = open_source_model(DEMO_TEACHER), TypeAdapter(TeacherConfig).validate_python(known["settings"])
    sizes = {"vocab": asked.vocab_size, "hidden": asked.hidden, "ffn": asked.ffn, "layer": asked.layers}
    assert dict(found.shape.sizes) | sizes == dict(found.shape.sizes)
    assert found.shape.parameters() == 3_935_424
    with safe_open(found.path / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118
    assert sum(file.stat().st_size for file in found.path.iterdir()) < 10e6


def test_its_curve_ends_where_its_result_does(known: dict[str, Any]) -> None:
    curve, held_out = (
        [json.loads(line) for line in (demo_teacher() / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "validation.jsonl")
    )
    after = known["result"]["after"]
    assert curve[-1]["tokens"] == held_out[-1]["tokens"] == after["tokens"] == known["result"]["tokens"]
    assert held_out[-1]["loss"] == after["loss"] < 2.25
    assert recipe.load("demo").known_pretraining.tokens == after["tokens"]


def test_a_directory_of_its_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve(DEMO_TEACHER).path == directory(DEMO_TEACHER) == demo_teacher()
    Path(DEMO_TEACHER).mkdir()
    assert resolve(DEMO_TEACHER).path == directory(DEMO_TEACHER) == Path(DEMO_TEACHER)


def test_it_was_trained_on_what_is_the_train_split_today(known: dict[str, Any]) -> None:
    """So that nothing held out was trained on. In another Python the text differs, and the held-out modules do not."""
    if platform.python_version() != known["text"]["python"]:
        pytest.skip(f"the text is that of Python {known['text']['python']}")
    assert canonical_json.digest([PythonStdlib().open().identity]) == known["text"]["sha256"]


def test_what_is_held_out_is_the_same_modules_in_every_python(tmp_path: Path) -> None:
    """A module that becomes a package stays held out; one that a hash would have drawn, but no list names, does not."""
    drawn = next(name for i in range(1000) if _was_drawn(name := f"json/new_{i}.py"))
    for name in ("linecache/__init__.py", "xml/sax/xmlreader.py", "shlex.py", drawn, "linecache/new.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("pass")
    held_out = ["linecache/__init__.py", "shlex.py", "xml/sax/xmlreader.py"]
    assert standard_library.source_files("validation", tmp_path) == [tmp_path / name for name in held_out]
    trained = sorted(tmp_path / name for name in (drawn, "linecache/new.py"))
    assert standard_library.source_files("train", tmp_path) == trained


def _was_drawn(path: str) -> bool:
    """Whether the hash by which the list was drawn, of a path, holds it out."""
    return int.from_bytes(blake2b(path.encode(), digest_size=4).digest()) < 0.03 * 2**32


@pytest.mark.slow
def test_a_teacher_is_compared_with_it_on_the_same_held_out_text(tmp_path: Path) -> None:
    copy = shutil.copytree(demo_teacher(), tmp_path / "made")
    context, made = Context(Workspace(tmp_path / "runs")), SimpleNamespace(path=copy)
    said = beside_the_shipped(context, bench_data(None), made, EvaluateConfig(blocks=4))  # type: ignore[arg-type]
    assert said.startswith("loss on 1,024 held-out tokens: ")
    mine, its = (float(part.split(": ")[1].split(";")[0]) for part in said.rsplit("; difference", 1)[0].split("; "))
    assert mine == its < 3
    assert said.endswith("difference +0.0000")
