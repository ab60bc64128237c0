"""`minitron study`: arms are run and compared, and what is finished is not run again."""

import json
import math
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from minitron_cli import pipeline
from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.manifest import SEAL, sealed
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.data.sources import DataConfig, TextFiles
from minitron_cli.distill import short_runs
from minitron_cli.errors import InputError
from minitron_cli.recipe import Recipe
from minitron_cli.study import definition
from minitron_cli.study.definition import StudyDefinition
from minitron_cli.study.run_figures import Measured, ModelFigures, RunFigures
from minitron_cli.study.runner import Runner
from tests.cli.program import Run
from tests.tiny import write_tiny

STUDY = """
question: Which loss is better?
source: nobody
recipe:
  importance: {samples: 4}
  prune: {shape: {ffn: 64}, repair: none}
  distill: {tokens: 128, batch_size: 2, micro_batch_size: 2, eval_blocks: 1}
arms:
  forward KL: {}
  reverse KL: {distill: {losses: [{kind: reverse_kl}]}}
  random: {prune: {ranking: {width: {kind: random}}}, distill: null}
tuning: {rates: [1e-3, 1e-2], tokens: 64}
expected:
  - {lower: forward KL, higher: reverse KL}
  - {lower: forward KL, higher: random, when: before, published: "far better"}
"""


LONGER = "longer: {distill: {tokens: 256}}"
TUNING = "tuning: {rates: [1e-3, 1e-2], tokens: 64}\n"
RECIPE = """
model: {model}
data: {{sources: [{{kind: files, paths: [{text}]}}], sequence_length: 16}}
importance: {{samples: 4}}
prune: {{shape: {{ffn: 64}}, repair: none}}
distill: {{tokens: 128, batch_size: 2, micro_batch_size: 2, eval_blocks: 1}}
evaluate: {{perplexity: false}}
report: false
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of three arms."""
    file = tmp_path / "own.yaml"
    file.write_text(STUDY)
    return file


def words(study: Path, tiny: Path, *more: object) -> list[object]:
    """Command line of the study on the tiny model."""
    text = ("--data", tiny / "text.jsonl", "--sequence-length", 16)
    return ["study", study, tiny / "model", *text, "--seeds", 2, "--blocks", 4, *more]


def trial_losses(rate: float) -> list[float]:
    """Losses of the short runs with a learning rate, on the blocks that choose."""
    trials = [json.loads(file.read_text()) for file in Path("runs").rglob("trial-*.json")]
    return [one["after"]["chosen_by"]["loss"] for one in trials if one["learning_rate"] == rate]


@pytest.mark.slow
def test_an_interrupted_study_continues_with_the_runs_that_are_missing(run: Run, tiny: Path, study: Path, monkeypatch):
    real, recipes = pipeline.run, []

    def counted(recipe, context):
        recipes.append(recipe)
        if len(recipes) == 6:
            raise KeyboardInterrupt
        return real(recipe, context)

    monkeypatch.setattr(pipeline, "run", counted)
    assert run(*words(study, tiny)).exit_code == 130
    done = run(*words(study, tiny, "--output", "page.md", "--json"))
    assert done.exit_code == 0, done.stderr
    trials, runs = 2 * 2, 3 * 2
    assert len(recipes) == trials + runs + 1  # the one that was interrupted is run again
    found = json.loads(done.stdout)
    assert found == json.loads(Path("page.json").read_text())
    assert list(found) == ["forward KL", "reverse KL", "random"]
    assert found["random"][0]["after"] is None
    for arm in ("forward KL", "reverse KL"):
        assert len({one["learning_rate"] for one in found[arm]}) == 1
    assert len(trial_losses(1e-3)) == len(trial_losses(1e-2)) == 2  # of each arm that is trained
    assert found["random"][0]["before"]["chosen_by"] != found["random"][0]["before"]["reported"]
    assert found["forward KL"][0]["before"] == found["reverse KL"][0]["before"] != found["forward KL"][1]["before"]
    lines = Path("page.md").read_text().splitlines()
    difference = sum(
        arm["before"]["reported"]["loss"] * sign
        for name, sign in (("random", 0.5), ("forward KL", -0.5))
        for arm in found[name]
    )
    (row,) = [line for line in lines if line.startswith("| forward KL | random |")]
    assert f"{difference:+.4f} ±" in row
    assert "far better" in row
    command = shlex.join(str(word) for word in words(study, tiny))
    assert lines[-1] == f"Regenerate: `minitron {command} --run model`"
    assert not list(Path("runs").rglob("distill/*/model.safetensors"))
    again = run(*words(study, tiny, "--json"))
    assert len(recipes) == trials + runs + 1
    assert json.loads(again.stdout) == found


@pytest.mark.slow
def test_the_loss_before_training_is_that_of_the_weights_it_begins_with(run: Run, tiny: Path, study: Path):
    study.write_text(study.read_text().replace("reverse KL: {distill: {", "reverse KL: {distill: {init: random, "))
    study.write_text(study.read_text().replace("tuning: {rates: [1e-3, 1e-2], tokens: 64}\n", ""))
    done = run(*words(study, tiny, "--json"))
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    child, random = (found[arm][0]["before"]["reported"]["loss"] for arm in ("forward KL", "reverse KL"))
    vocabulary = json.loads((tiny / "model" / "config.json").read_text())["vocab_size"]
    assert random == pytest.approx(math.log(vocabulary), abs=0.2)
    assert abs(child - random) > 1e-3
    assert {one["before"]["reported"]["loss"] for one in found["reverse KL"]} != {random}  # seeds draw other weights


@pytest.mark.slow
def test_arms_of_other_lengths_share_short_runs_and_take_the_better_rate(run: Run, tiny: Path, study: Path):
    longer = study.read_text().replace("reverse KL: {distill: {losses: [{kind: reverse_kl}]}}", LONGER)
    study.write_text(longer.replace("reverse KL", "longer") + "fewer_seeds: {longer: 1}\n")
    done = run(*words(study, tiny, "--json"))
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert {arm: len(runs) for arm, runs in found.items()} == {"forward KL": 2, "longer": 1, "random": 2}
    losses = {rate: trial_losses(rate) for rate in (1e-3, 1e-2)}
    assert {len(of_rate) for of_rate in losses.values()} == {1}
    best = min(losses, key=losses.__getitem__)
    assert {one["learning_rate"] for arm in ("forward KL", "longer") for one in found[arm]} == {best}
    assert found["forward KL"][0]["before"] == found["longer"][0]["before"]
    assert found["forward KL"][0]["after"] != found["longer"][0]["after"]


def test_a_dry_run_says_how_many_runs_there_are(run: Run, tiny: Path, study: Path):
    said = run(*words(study, tiny, "--dry-run"))
    assert said.exit_code == 0
    assert "study own: 3 arms with 2 seeds, after 4 short runs that choose learning rates" in said.stderr
    assert "at most about" in said.stderr
    assert re.search(r"children keep \d\d %( to \d\d %)? of the parameters", said.stderr)
    assert "those for a smaller model" not in said.stderr
    assert not Path("runs").exists()


def test_shapes_that_were_made_for_a_smaller_model_are_told(run: Run, tiny: Path, study: Path):
    study.write_text(STUDY.replace("{ffn: 64}", "{hidden: 8, ffn: 8}"))
    said = run(*words(study, tiny, "--dry-run"))
    assert said.exit_code == 0
    assert "a child keeps" in said.stderr
    assert "its shapes are those for a smaller model" in said.stderr


def test_a_shipped_study_is_copied_to_be_changed(run: Run, tmp_path: Path, tiny: Path):
    copy = tmp_path / "copies" / "mine.yaml"
    copy.parent.mkdir()
    done = run("recipes", "cp", "losses", copy)
    assert f"minitron study {copy} MODEL --data TEXT" in done.stderr.replace("\n", " ")
    assert definition.load(str(copy)) == definition.load("losses")
    assert run("recipes", "show", "losses").stdout == copy.read_text()


def test_the_shipped_studies_are_listed(run: Run):
    listed = json.loads(run("study", "--json").stdout)
    assert {"losses", "axes", "start"} <= listed.keys()
    assert listed["ranking"]["arms"][0] == "activation"


@pytest.mark.parametrize(("words_more", "length"), [((), 8), (("--sequence-length", 16), 16)])
def test_blocks_have_the_length_of_the_study_unless_the_command_names_one(
    run: Run, tiny: Path, study: Path, monkeypatch, words_more, length
):
    study.write_text(study.read_text() + "sequence_length: 8\n")
    lengths: list[int] = []
    monkeypatch.setattr(Runner, "planned", lambda self, seeds: lengths.append(self.data.sequence_length) or "")
    given = ("study", study, tiny / "model", "--data", tiny / "text.jsonl", "--dry-run", *words_more)
    assert run(*given).exit_code == 0
    assert lengths == [length]


def test_figures_are_kept_apart_by_precision_and_by_what_made_them(run: Run, tiny: Path, study: Path, monkeypatch):
    """Another dtype, or stages that make other models, are another study."""

    def directory(*more: object) -> str:
        return run(*words(study, tiny, "--dry-run", *more)).stderr.split("figures go to ")[1]

    first = directory()
    assert directory() == first
    assert directory("--dtype", "bfloat16") != first
    monkeypatch.setitem(pipeline.VERSIONS, "distill", pipeline.VERSIONS["distill"] + 1)
    assert directory() != first


def test_the_learning_rate_is_the_one_that_was_trained_with(run: Run, tiny: Path, tmp_path: Path, monkeypatch):
    """One that nobody set is lowered for a short run."""
    monkeypatch.setattr(short_runs, "RATES", ((math.inf, 1e-5),))
    file = tmp_path / "own.yaml"
    file.write_text(STUDY.replace("tuning: {rates: [1e-3, 1e-2], tokens: 64}\n", ""))
    found = json.loads(run(*words(file, tiny, "--json")).stdout)
    assert found["forward KL"][0]["learning_rate"] == pytest.approx(1e-5)


def contents(root: Path) -> dict[str, bytes]:
    """Name -> bytes of every file that stages or pointers wrote in a workspace, outside of its studies."""
    files = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if "/" in name and not name.startswith("study/")}


@pytest.mark.slow
def test_a_study_leaves_the_models_and_pointers_of_the_workspace(run: Run, tiny: Path, tmp_path: Path):
    """Also where an arm with a seed is what the user has trained before. Arms share scores, and the text all runs."""
    recipe, file = tmp_path / "recipe.yaml", tmp_path / "own.yaml"
    recipe.write_text(RECIPE.format(model=tiny / "model", text=tiny / "text.jsonl"))
    assert run("run", recipe, "--run", "own").exit_code == 0
    before = contents(Path("runs/own"))
    file.write_text(STUDY.replace(TUNING, ""))
    done = run(*words(file, tiny, "--run", "own"))
    assert done.exit_code == 0, done.stderr
    assert contents(Path("runs/own")) == before
    scored = [path for path in Path("runs/own/study").rglob("importance/*") if path.is_dir()]
    assert len(scored) == 2  # of each seed, for three arms
    assert list(Path("runs").rglob("tokens")) == [Path("runs/own/tokens")]
    assert not list(Path("runs/own/study").rglob("distill/*/model.safetensors"))


def figures(loss: float = 2.0) -> RunFigures:
    """Figures of a run that was not made."""
    measured = Measured(chosen_by=ModelFigures(loss=9, kl=9), reported=ModelFigures(loss=loss, kl=loss / 10))
    return RunFigures(parameters=10, non_embedding=8, learning_rate=1e-3, before=measured, after=measured)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """Recipes of the runs of a study, none of which is made."""
    found: list[Recipe] = []
    monkeypatch.setattr(Runner, "_run", lambda self, recipe: found.append(recipe) or figures(2 + len(found) / 8))
    monkeypatch.setattr(Runner, "parent_loss", lambda self: 2.0)
    return found


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def of_another_schema(content: bytes) -> bytes:
    found = json.loads(content) | {"tokens": 3}
    del found[SEAL]
    return json.dumps(sealed(found)).encode()


def with_another_digit(content: bytes) -> bytes:
    return content.replace(b"9", b"8", 1)


@pytest.mark.parametrize("damage", [truncated, of_another_schema, with_another_digit])
def test_damaged_figures_are_said_and_measured_again(
    run: Run, tiny: Path, study: Path, made: list[Recipe], damage: Callable[[bytes], bytes]
):
    assert run(*words(study, tiny)).exit_code == 0
    count = len(made)
    (file,) = Path("runs").rglob("forward KL-0.json")
    file.write_bytes(damage(file.read_bytes()))
    again = run(*words(study, tiny))
    assert again.exit_code == 0, again.stderr
    assert len(made) == count + 1
    assert again.stderr.count(f"{file.name} is damaged or of another version") == 1
    assert run(*words(study, tiny)).exit_code == 0
    assert len(made) == count + 1


def test_a_label_names_a_file_in_the_studys_directory(run: Run, tiny: Path, tmp_path: Path, made: list[Recipe]):
    labels = [str(tmp_path / "outside"), "../../up", "..", "a/b", "a-b", "A-b", "x" * 300, "2:4, pruned (50 %)"]
    file = tmp_path / "own.yaml"
    arms = "".join(f"  {json.dumps(label)}: {{}}\n" for label in labels)
    file.write_text(STUDY[: STUDY.index("arms:")] + "arms:\n" + arms)
    before = set(tmp_path.iterdir())
    done = run(*words(file, tiny, "--json"))
    assert done.exit_code == 0, done.stderr
    assert len(json.loads(done.stdout)) == len(labels)
    assert len(made) == 2 * len(labels)
    kept = {path for path in tmp_path.rglob("*.json") if path.parent.parent.name == "study"}
    assert len({path.name.casefold() for path in kept}) == 2 * len(labels)
    assert set(tmp_path.iterdir()) == before | {tmp_path / "runs"}
    assert "2:4, pruned (50 %)-0.json" in {path.name for path in kept}


@pytest.mark.parametrize(
    ("arm", "problem"),
    [
        ("distill: {los: 1}", "arm random: distill.los is not a known key"),
        ("prune: {shape: {ffn: 4096}}", "arm random: "),
        ("distill: {batch_size: 64}", "arm random: distill.batch_size 64 x 16 tokens is more than"),
    ],
)
def test_every_arm_is_checked_before_the_first_run(
    run: Run, tiny: Path, study: Path, made: list[Recipe], arm: str, problem: str
):
    start = STUDY.index("random:")
    study.write_text(STUDY[:start] + f"random: {{{arm}}}" + STUDY[STUDY.index("\n", start) :])
    for more in ((), ("--dry-run",)):
        refused = run(*words(study, tiny, *more))
        assert refused.exit_code == 2
        assert problem in refused.stderr
    assert not made


def held_out(tiny: Path, file: Path, count: int) -> DataConfig:
    """Text with so many held-out documents, each about a block of 16 tokens."""
    rows = (tiny / "text.jsonl").read_text().splitlines()
    texts = (" ".join(json.loads(row)["text"].split()[:12]) for row in rows[:count])
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    sources = TextFiles(paths=(str(tiny / "text.jsonl"),))
    return DataConfig(sources=(sources,), validation=(TextFiles(paths=(str(file),)),), sequence_length=16)


def runner(tiny: Path, root: Path, data: DataConfig, study: StudyDefinition, **options: object) -> Runner:
    """A study on the tiny model."""
    return Runner("own", study, Context(Workspace(root)), str(tiny / "model"), data, 64, **options)


def test_the_page_counts_the_blocks_that_there_are(tiny: Path, tmp_path: Path, study: Path):
    asked = runner(tiny, tmp_path / "runs", held_out(tiny, tmp_path / "few.jsonl", 4), definition.load(str(study)))
    count = len(asked._held_out)
    assert 2 <= count < 64
    assert f"{count // 2} of {count} held-out blocks reported" in asked.setting()


def test_one_held_out_block_is_refused(tiny: Path, tmp_path: Path, study: Path, made: list[Recipe]):
    asked = runner(tiny, tmp_path / "runs", held_out(tiny, tmp_path / "few.jsonl", 1), definition.load(str(study)))
    with pytest.raises(InputError, match="one held-out block"):
        asked.results(2)
    assert not made


def test_figures_belong_to_the_text_and_the_teacher_and_not_to_their_names(tiny: Path, tmp_path: Path, study: Path):
    text, teacher = tmp_path / "text.jsonl", tmp_path / "teacher"
    shutil.copy(tiny / "text.jsonl", text)
    shutil.copytree(tiny / "model", teacher)
    study.write_text(STUDY.replace("reverse KL: {", f"reverse KL: {{teacher: {teacher}, "))

    def directory(text: Path) -> Path:
        data = DataConfig(sources=(TextFiles(paths=(str(text),)),), sequence_length=16)
        return runner(tiny, tmp_path / "runs", data, definition.load(str(study))).directory

    first = directory(text)
    assert directory(text.rename(tmp_path / "moved.jsonl")) == first
    text.write_text((tmp_path / "moved.jsonl").read_text() + '\n{"text": "one more"}')
    assert directory(text) != first
    write_tiny(teacher, vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=3)
    assert directory(tmp_path / "moved.jsonl") != first
    assert not (tmp_path / "runs").exists()


def test_a_study_leaves_the_workspaces_block_length(run: Run, tiny: Path, study: Path, made: list[Recipe]):
    study.write_text(STUDY + "sequence_length: 8\n")
    text = ("--data", tiny / "text.jsonl", "--seeds", 2, "--blocks", 4)
    assert run("study", study, tiny / "model", *text).exit_code == 0
    (settings,) = Path("runs").rglob("settings.json")
    assert json.loads(settings.read_text())["data"].get("sequence_length") is None
    assert {recipe.data.sequence_length for recipe in made} == {8}
