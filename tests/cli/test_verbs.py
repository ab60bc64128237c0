"""The verbs, one after another on a tiny model: what each makes, and what the next may leave unsaid."""

import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.fingerprint import of_directory
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.errors import Interrupted
from minitron_cli.results.prune import PruneResult
from tests.cli.forks import launched
from tests.cli.program import invoke
from tests.faults.campaign.programs import Ended

PRUNED = ("prune", "--shape", "hidden=32,ffn=64", "--drop-layers", "1-2")
TRAINING = ("--batch-size", 2, "--micro-batch-size", 2, "--warmup-steps", 1, "eval_blocks=2")


class KeyPath:
    """A directory with a tiny model, and what was made there."""

    def __init__(self, root: Path, tiny: Path) -> None:
        self.root, self.model, self.text = root, tiny / "model", tiny / "text.jsonl"
        self.workspace = Workspace(root / "runs" / "model")

    def recipe(self, stages: str) -> Path:
        """A recipe for the model and its text, with these stages after importance."""
        path = self.root / "small.yaml"
        data = f"data: {{sources: [{{kind: files, paths: [{self.text}]}}], sequence_length: 16}}"
        path.write_text(f"model: {self.model}\n{data}\nimportance: {{samples: 4}}\n{stages}")
        return path

    def run(self, *arguments: Any, code: int = 0) -> Any:
        """The JSON that a verb prints; or, with `code`, its one line on stderr."""
        result = invoke(*arguments, "--runs-dir", self.root / "runs", *(["--json"] if code == 0 else []))
        assert result.exit_code == code, result.stderr
        if code == 0:
            return json.loads(result.stdout)
        assert "Traceback" not in result.stderr
        last = result.stderr.splitlines()[-1]
        assert last.startswith("error: ")
        return last.removeprefix("error: ")

    def importance(self, *more: Any) -> Any:
        words = ("importance", self.model, "--data", self.text, "--sequence-length", 16, "--samples", 8)
        return self.run(*words, *more)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> KeyPath:
    """After `importance`."""
    place = KeyPath(tmp_path_factory.mktemp("verbs"), tiny)
    place.importance()
    return place


@pytest.fixture(scope="module")
def exported(place: KeyPath) -> dict[str, Any]:
    return place.run(*PRUNED, "-o", place.root / "out/small")


@pytest.fixture
def pruned(place: KeyPath, exported: dict[str, Any]) -> dict[str, Any]:
    """Current again, whatever the test before pruned."""
    return place.run(*PRUNED)


@pytest.fixture
def distilled(place: KeyPath, pruned: dict[str, Any]) -> dict[str, Any]:
    return place.run("distill", "--steps", 2, *TRAINING)


@pytest.fixture
def fresh(tmp_path: Path, tiny: Path) -> KeyPath:
    return KeyPath(tmp_path, tiny)


def current(place: KeyPath, stage: str) -> Artifact:
    found = place.workspace.current(stage)
    assert found is not None
    return found


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def test_importance_scores_every_layer_and_is_up_to_date_the_second_time(place: KeyPath) -> None:
    first, second = place.importance(), place.importance()
    assert len(first["layers"]["block_importance"]) == 4
    assert "perplexity" not in first["layers"], "its price is not paid unless it is asked for"
    assert first["path"] == second["path"]
    assert first["run"] == second["run"]  # the clock of the run that made it: it was not made again


def test_a_changed_setting_is_another_artifact_beside_the_first(place: KeyPath) -> None:
    other = place.importance("batch_size=4")
    assert len(place.workspace.artifacts("importance")) == 2
    place.importance()
    assert place.workspace.current("importance").path != Path(other["path"])


def test_prune_prunes_to_the_requested_shape(place: KeyPath, pruned: dict[str, Any]) -> None:
    child = pruned["result"]["child"]["sizes"]
    assert (child["layer"], child["hidden"], child["ffn"], child["head"]) == (2, 32, 64, 8)


def test_prune_repairs_the_child_and_reports_the_effect(place: KeyPath, pruned: dict[str, Any]) -> None:
    plain = place.run(*PRUNED, "--repair", "none")
    assert plain["result"]["child"]["sizes"] == pruned["result"]["child"]["sizes"]
    assert plain["result"]["repair"] is None
    repair = pruned["result"]["repair"]
    assert repair["repairs"] == ["least_squares"]
    assert repair["left_out"] == ["rescaling of norms after rotate", "rotate"]
    figures = {"loss", "kl", "loss_stderr", "kl_stderr", "degrees_of_freedom"}
    assert repair["effect"]["before"].keys() == repair["effect"]["after"].keys() == figures
    assert repair["effect"]["after"]["kl"] < repair["effect"]["before"]["kl"]
    assert "leave --untie out" in place.run(*PRUNED, "--untie", code=2)


def test_the_output_is_a_checkpoint_that_transformers_loads(place: KeyPath, pruned: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(place.root / "out/small")
    assert sum(p.numel() for p in model.parameters()) == pruned["result"]["child"]["parameters"]
    assert len(AutoTokenizer.from_pretrained(place.root / "out/small")) == 300


def test_the_output_is_the_artifact_byte_for_byte_and_its_own_files(place: KeyPath, pruned: dict[str, Any]) -> None:
    copied, made = hashes(place.root / "out/small"), hashes(Path(pruned["path"]))
    assert copied == {name: sha256 for name, sha256 in made.items() if name not in ("manifest.json", "run.json")}
    weights = "model.safetensors"
    assert not (place.root / "out/small" / weights).samefile(Path(pruned["path"]) / weights)


def test_an_output_that_exists_is_refused_before_any_work(place: KeyPath, pruned: dict[str, Any]) -> None:
    before = len(place.workspace.artifacts("prune"))
    said = place.run("prune", "--shape", "hidden=16", "-o", place.root / "out", code=2)
    assert "already exists: choose a new path" in said
    assert len(place.workspace.artifacts("prune")) == before


@pytest.mark.slow
def test_a_target_picks_a_shape_within_the_tolerance(place: KeyPath) -> None:
    made = place.run("prune", "--width", "--target", "120k", "--tolerance", 0.1, "--candidates", 2)
    assert abs(made["result"]["child"]["parameters"] / 120_000 - 1) <= 0.1
    assert [c["zero_shot"] for c in made["result"]["candidates"]] == sorted(
        c["zero_shot"] for c in made["result"]["candidates"]
    )
    assert made["result"]["child"]["sizes"]["layer"] == 4


@pytest.mark.slow
def test_search_finds_a_shape_that_prune_then_uses(place: KeyPath) -> None:
    found = place.run(
        *("search", "--target", "120k", "--tolerance", 0.1, "--candidates", 3, "--top", 2),
        *("--retrain-tokens", 64, "--batch-size", 2, "retrain.micro_batch_size=2", "retrain.warmup_steps=1"),
        *("--lr", 1e-3, "score_blocks=2"),
    )
    assert len(found["result"]["candidates"]) == 3
    assert sum(bool(c["rungs"]) for c in found["result"]["candidates"]) == 2
    made = place.run("prune")
    (winner,) = found["result"]["winners"].values()
    assert winner["sizes"].items() <= made["result"]["child"]["sizes"].items()


@pytest.mark.slow
def test_search_without_retraining_trusts_the_zero_shot_order(place: KeyPath) -> None:
    found = place.run("search", "--target", "120k", "--retrain-tokens", 0, "--candidates", 2, "score_blocks=2")
    first, second = found["result"]["candidates"]
    assert (first["rungs"], second["rungs"]) == ([], [])
    assert first["zero_shot"] <= second["zero_shot"]
    (winner,) = found["result"]["winners"].values()
    assert winner["sizes"].items() <= first["shape"].items()


def test_distill_trains_the_pruned_model(place: KeyPath, distilled: dict[str, Any]) -> None:
    assert distilled["label"] == "distilled"
    assert distilled["result"]["tokens"] == 2 * 2 * 16
    assert distilled["result"]["student"]["sizes"]["hidden"] == 32


@pytest.mark.slow
def test_controls_go_by_their_own_names(place: KeyPath, distilled: dict[str, Any]) -> None:
    control = place.run("distill", "--tokens", 32, *TRAINING, "--objective", "ce", "--init", "random")
    assert control["label"] == "random-init-ce"
    assert control["result"]["steps"] == 1
    place.run("distill", "--steps", 2, *TRAINING)  # the student is the current one again, and nothing is trained


def test_eval_measures_what_was_made_beside_the_parent(place: KeyPath, distilled: dict[str, Any]) -> None:
    found = place.run("eval", "blocks=2")
    assert list(found["result"]["models"]) == ["parent", "pruned", "distilled"]
    assert "kl" in found["result"]["models"]["distilled"]["results"]["perplexity"]
    loss = found["result"]["models"]["distilled"]["results"]["perplexity"]["loss"]["value"]
    place.run("eval", "blocks=2", "--max", f"perplexity.loss={loss + 0.01}")
    assert "1 of 1 gates missed" in place.run("eval", "blocks=2", "--max", f"perplexity.loss={loss - 0.01}", code=4)
    assert "did you mean" in place.run("eval", "blocks=2", "--max", "perplexity.los=1", code=2)


def test_models_stand_in_the_order_they_were_made(place: KeyPath, distilled: dict[str, Any]) -> None:
    shown = invoke("eval", "blocks=2", "--runs-dir", place.root / "runs").stderr
    header = next(line for line in shown.splitlines() if "parent" in line)
    assert header.split() == ["metric", "items", "parent", "pruned", "distilled"]


def test_a_recipe_given_to_a_verb_is_read_to_the_end(place: KeyPath) -> None:
    recipe = place.root / "typo.yaml"
    recipe.write_text(f"model: {place.model}\ndata: {{sources: []}}\nimportence: {{samples: 3}}\n")
    said = place.run("importance", "--recipe", recipe, "--run", "model", code=2)
    assert said == f"{recipe}:3: importence is not a known key; did you mean importance?"


def test_eval_measures_a_model_that_belongs_to_no_workspace(fresh: KeyPath) -> None:
    found = fresh.run("eval", fresh.model, "--data", fresh.text, "--sequence-length", 16, "blocks=2")
    assert list(found["result"]["models"]) == ["parent"]


@pytest.mark.slow
def test_eval_takes_models_by_directory(place: KeyPath, pruned: dict[str, Any]) -> None:
    found = place.run("eval", place.root / "out/small", "blocks=2")
    assert list(found["result"]["models"]) == ["parent", "small"]
    assert "is not a directory" in place.run("eval", "nowhere", code=2)


def test_show_tells_every_stage(place: KeyPath, distilled: dict[str, Any]) -> None:
    stages = [made["stage"] for made in place.run("show")]
    assert stages[0] == "importance"
    assert {"prune", "distill"} <= set(stages)
    assert place.run("show", "distill")[0]["path"] == distilled["path"]
    people = invoke("show", "--runs-dir", place.root / "runs")
    assert people.stdout == ""
    assert "block importance" in people.stderr


def test_show_adds_up_what_a_student_cost(place: KeyPath, distilled: dict[str, Any]) -> None:
    found = place.run("show", "cost")
    entries = [entry for artifact in found["ledger"].values() for entry in artifact]
    assert [name.partition("-")[0] for name in found["ledger"]] == ["importance", "prune", "distill"]
    assert {entry["work"] for entry in entries} >= {"calibration", "training", "teacher", "held-out text"}
    assert found["total"][0]["flops"] == sum(entry["flops"] for entry in entries)
    assert found["device_hours"].keys() == {"cpu"}
    people = invoke("show", "cost", "--runs-dir", place.root / "runs").stderr
    assert "Cost of the distill result and all that it was made from" in people
    assert re.search(r"^importance +calibration ", people, re.MULTILINE)


def test_export_checks_and_serving_are_shown(place: KeyPath, pruned: dict[str, Any]) -> None:
    served = {row["reader"]: row for row in pruned["result"]["serving"]}
    assert served["GGUF K-quants"]["level"] == "slower"
    assert served["GGUF K-quants"]["nearest"] == {}  # a block is longer than the parent is wide
    people = invoke("show", "prune", "--runs-dir", place.root / "runs").stderr
    assert "GGUF K-quants" in people
    assert re.search(r"GGUF K-quants +slower .* none *$", people, re.MULTILINE)
    assert "transformers  ok" not in people  # what is well is not remarked upon
    assert "headers, files, copies, config, finite, weights, live" in people


def test_inspect_tells_how_a_model_is_served(place: KeyPath) -> None:
    rows = json.loads(invoke("inspect", place.model, "--json").stdout)["serving"]
    assert {"reader": "llama.cpp", "level": "ok", "reason": "it reads head_dim", "nearest": {}} in rows
    assert "it reads head_dim" in invoke("inspect", place.model).stderr


@pytest.mark.slow
def test_report_is_one_page(place: KeyPath, distilled: dict[str, Any]) -> None:
    (place.root / "link.html").symlink_to("page.html")
    for output in (place.root / "page.html", place.root / "link.html"):  # refreshes the page that it leads to
        (place.root / "page.html").write_text("of an earlier result")
        made = place.run("report", "-o", output)
    page = (place.root / "page.html").read_text()
    assert page == (Path(made["path"]) / "report.html").read_text()
    assert "<svg" in page
    assert "nearest shape without the problem" in page


def test_a_dry_run_says_what_changed_and_writes_nothing(place: KeyPath) -> None:
    before = sorted(place.root.rglob("*"))
    planned = place.run("prune", "--shape", "hidden=48", "--dry-run")
    assert planned["stage"] == "prune"
    assert planned["forecast"]["sizes"]["hidden"] == 48
    assert not Path(planned["path"]).exists()
    assert sorted(place.root.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prune", "--target", "9B"), "above the parent's"),
        (
            ("prune", "--width", "--axes", "ffn", "--target", "100k"),
            "--width prunes hidden,ffn and --axes says ffn: leave one of them out",
        ),
        (("prune", "--target", "50"), "50 is a number of parameters: write 50% for a share of the parent's"),
        (("prune", "--width"), "choose what to prune but not how much: add --target"),
        (("prune", "--shape", "hidden=3x"), "write AXIS=SIZE"),
        (("prune", "--shape", "hiden=32"), "prune.shape.hiden is not a known key; did you mean hidden?"),
        (("prune", "--drop-layers", "1_2"), "write layers counted from 0"),
        (("prune", "--shape", "ffn=64", "--target", "120k"), "give a shape or a budget, not both"),
        (("prune", "--axes", "hiden", "--target", "120k"), "did you mean hidden?"),
        (("prune", "rankin.layers=perplexity"), "prune.rankin is not a known key; did you mean ranking?"),
        (("importance", "sample=3"), "importance.sample is not a known key; did you mean samples?"),
        (("importance", "data.sequnce_length=3"), "data.sequnce_length is not a known key"),
        (("importance", "a", "b"), "give one model only"),
        (("importance", "--samples", 100_000), "lower importance.samples or data.sequence_length, or add text"),
        (("importance", "--data", "/nowhere/*.txt"), "/nowhere"),
        (("distill", "--tokens", "4Q"), "distill.tokens: '4Q' is not a quantity"),
        (("distill",), "the length of the run is unknown"),
        (("search",), "the size is unbounded; give budget.target or constraints"),
        (("show", "--run", "../x"), "workspace name '../x'"),
    ],
)
@pytest.mark.usefixtures("exported")
def test_what_cannot_be_done_is_one_sentence_and_exit_2(
    place: KeyPath, arguments: tuple[Any, ...], message: str
) -> None:
    assert message in place.run(*arguments, code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prune", "--shape", "hidden=32"), "name one with --run, or start with `minitron importance MODEL`"),
        (("importance",), "no current workspace"),
        (("show",), "no current workspace"),
        (("importance", "nowhere"), "nowhere does not exist: give the directory of a checkpoint"),
        (
            ("prune", "--run", "new", "--shape", "hidden=32"),
            "run `minitron importance MODEL --run new --runs-dir ",
        ),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_left_behind(
    fresh: KeyPath, arguments: tuple[Any, ...], message: str
) -> None:
    assert message in fresh.run(*arguments, code=2)
    assert not list(fresh.root.iterdir())


def test_importance_without_text_asks_for_it(fresh: KeyPath) -> None:
    assert "no data given: add --data" in fresh.run("importance", fresh.model, code=2)
    assert not list(fresh.root.iterdir())


def test_scores_of_another_model_are_refused(place: KeyPath, tmp_path: Path) -> None:
    import shutil

    from tests.tiny import write_tiny

    other = write_tiny(tmp_path / "other", seed=1, vocab_size=300, hidden_size=64, intermediate_size=128)
    for file in place.model.glob("*token*"):
        shutil.copy(file, other)
    said = place.run("prune", other, "--run", "model", "--shape", "hidden=32", code=2)
    assert "scores another model" in said
    assert place.workspace.settings["model"] == str(place.model)  # a refused command changes no memory


def test_an_unexpected_error_leaves_its_traceback_in_the_workspace(
    place: KeyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minitron_cli.stages import prune

    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(prune, "run", broken)
    said = place.run("prune", code=1)
    log = place.workspace.root / "run.log"
    assert said == f"unexpected ZeroDivisionError: boom; please report it with {log}"
    assert "ZeroDivisionError: boom" in log.read_text()


def test_an_interrupted_command_is_continued_without_saying_it_all_again(
    fresh: KeyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minitron_cli.stages import importance

    def stopped(*args: object, **kwargs: object) -> None:
        raise Interrupted("stopped on request", 15)

    with monkeypatch.context() as patch:
        patch.setattr(importance, "run", stopped)
        words = ("importance", fresh.model, "--data", fresh.text, "--sequence-length", 16)
        assert invoke(*words, "--runs-dir", fresh.root / "runs").exit_code == 143
    assert fresh.run("importance", "--samples", 4)["result"]["samples"] == 4


@pytest.mark.parametrize("sources", ["5", "{kind: files}", "[5]", "[{kind: files, paths: 5}]"])
def test_sources_of_a_recipe_that_are_no_list_are_refused_in_a_sentence(fresh: KeyPath, sources: str) -> None:
    recipe = fresh.root / "wrong.yaml"
    recipe.write_text(f"model: {fresh.model}\ndata: {{sources: {sources}}}\n")
    assert "data.sources" in fresh.run("importance", "--recipe", recipe, code=2)


@pytest.mark.slow
def test_text_that_a_recipe_names_beside_it_is_found_from_another_directory(
    fresh: KeyPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(fresh.text, tmp_path / "here" / "corpus.txt")
    words = (tmp_path / "here" / "corpus.txt").read_text().split()
    (tmp_path / "here" / "held-out.txt").write_text(" ".join(reversed(words)))
    recipe = tmp_path / "here" / "recipe.yaml"
    recipe.write_text(
        f"model: {fresh.model}\n"
        "data: {sources: [{kind: files, paths: [corpus.txt]}], validation: [{kind: files, paths: [held-out.txt]}], "
        "sequence_length: 16}\n"
        "importance: {samples: 4}\nprune: {shape: {ffn: 64}, repair: none}\nreport: false\n"
    )
    monkeypatch.chdir(tmp_path / "here")
    fresh.run("run", recipe)
    monkeypatch.chdir(tmp_path / "elsewhere")
    fresh.run("eval", "blocks=2")


@pytest.mark.slow
def test_a_recipe_runs_end_to_end_and_is_up_to_date_afterwards(fresh: KeyPath) -> None:
    recipe = fresh.recipe(
        """\
prune: {shape: {ffn: 64}}
distill: {steps: 1, batch_size: 2, warmup_steps: 0, eval_blocks: 2}
controls: [{label: random-init, init: random}]
evaluate: {blocks: 2, gates: {maximum: {perplexity.loss: 0.001}}}
"""
    )
    first = invoke("run", recipe, "--runs-dir", fresh.root / "runs", "--json")
    assert first.exit_code == 4  # the gate, after everything was made
    made = json.loads(first.stdout)
    (gate,) = made[4].pop("gates")
    assert (gate["gate"], gate["passed"]) == ("perplexity.loss <= 0.001", False)
    assert "MISSED" in invoke("run", recipe, "--runs-dir", fresh.root / "runs").stderr
    assert [(one["stage"], one["label"]) for one in made] == [
        ("importance", ""),
        ("prune", ""),
        ("distill", "distilled"),
        ("distill", "random-init"),
        ("evaluate", ""),
        ("report", ""),
    ]
    assert list(made[4]["result"]["models"]) == ["parent", "pruned", "distilled", "random-init"]
    again = fresh.run("run", recipe, "evaluate.gates={}")
    assert [one["key"] for one in again] == [one["key"] for one in made]
    assert [one["run"] for one in again] == [one["run"] for one in made]
    shown = fresh.run("show", "distill")  # the run's workspace is the current one, and the student its current model
    assert shown[0]["label"] == "distilled"
    assert fresh.run("prune", "--shape", "ffn=32")["result"]["child"]["sizes"]["ffn"] == 32


@pytest.mark.slow
def test_a_recipe_corrects_its_teacher_and_compares_with_random_pruning(fresh: KeyPath) -> None:
    recipe = fresh.recipe(
        """\
prune: {shape: {ffn: 64, hidden: 48}, drop_layers: [1]}
correct: {steps: 1, batch_size: 2, warmup_steps: 0, eval_blocks: 2}
distill: {steps: 1, batch_size: 2, warmup_steps: 0, eval_blocks: 2}
controls: [{label: random-pruning, prune: random}]
evaluate: {blocks: 2}
"""
    )
    made = fresh.run("run", recipe)
    by_name = {(one["stage"], one["label"]): one for one in made}
    assert list(by_name["evaluate", ""]["result"]["models"]) == [
        "parent",
        "pruned",
        "corrected",
        "distilled",
        "random-pruning",
    ]
    workspace = Workspace(fresh.root / "runs" / "small")
    plain, random_child = (
        next(a for a in workspace.artifacts("prune") if a.label == label) for label in ("", "random-pruning")
    )
    assert plain.result(PruneResult).child.sizes == random_child.result(PruneResult).child.sizes
    kept, drawn = plain.read_json("plan.json"), random_child.read_json("plan.json")
    assert kept["layer"] == drawn["layer"]
    assert kept["ffn"] != drawn["ffn"]
    corrected = workspace.current("correct")
    students = {a.label: a.manifest.inputs for a in workspace.artifacts("distill")}
    teachers = {inputs["teacher"] for inputs in students.values()}
    assert corrected is not None
    assert teachers == {of_directory(corrected.path)}
    assert students["distilled"]["student"] == of_directory(plain.path)
    assert students["random-pruning"]["student"] == of_directory(random_child.path)
    assert workspace.current("prune") == plain
    page = (Path(by_name["report", ""]["path"]) / "report.html").read_text()
    assert all(name in page for name in ("corrected", "random-pruning", "minitron correct"))
    shown = fresh.run("show", "correct")
    assert shown[0]["result"]["steps"] == 1


@pytest.mark.slow
def test_distill_learns_from_the_corrected_original_where_there_is_one(place: KeyPath, pruned: dict[str, Any]) -> None:
    def teacher_of(*more: Any) -> str:
        path = Path(place.run("distill", "--steps", 1, *TRAINING, *more)["path"])
        return str(json.loads((path / "manifest.json").read_text())["inputs"]["teacher"])

    original = teacher_of()
    corrected = place.run("correct", "--steps", 1, "--lr", "1e-3", *TRAINING, "-o", place.root / "out/corrected")
    assert (place.root / "out/corrected/model.safetensors").is_file()
    assert teacher_of() == of_directory(Path(corrected["path"])) != original
    assert teacher_of("--teacher", "original") == original
    assert teacher_of("--teacher", place.root / "out/corrected") != original
    shutil.rmtree(Path(corrected["path"]).parent)


@pytest.mark.slow
def test_several_processes_speak_with_one_voice_and_one_exit_code(
    place: KeyPath, pruned: dict[str, Any], tmp_path: Path
) -> None:
    def distill(name: str, *more: Any) -> Ended:
        words = ("distill", "--gpus", 2, "--device", "cpu", "--batch-size", 4, "--micro-batch-size", 1, *more)
        return launched(tmp_path / name / "at", *words, "--runs-dir", place.root / "runs")

    made = distill("made", "--steps", 2, "--warmup-steps", 1, "eval_blocks=2", "--sharding", "full", "--json")
    assert made.code == 0, made.err
    run = json.loads(made.out)["run"]
    assert (run["processes"], run["training"]["sharded"]) == (2, True)
    failed = distill("failed")
    assert failed.code == 2
    said, *errors = failed.err.splitlines()
    assert said.startswith("minitron distill: ")
    assert errors == ["error: distill: the length of the run is unknown; set distill.tokens or distill.steps"]
    remark = "2 processes run on the CPU and share its cores: no accelerator is used"
    assert made.err.count(remark) == 1


@pytest.mark.slow
def test_several_processes_score_what_one_does(place: KeyPath, tmp_path: Path) -> None:
    place.importance()
    words = ("importance", place.model, "--data", place.text, "--sequence-length", 16, "--samples", 8)
    apart = ("--runs-dir", place.root / "two", "--json")
    made = launched(tmp_path / "at", *words, "--gpus", 2, "--device", "cpu", *apart)
    assert made.code == 0, made.err
    assert json.loads(made.out)["stage"] == "importance"
    (one,), two = place.run("show", "importance"), json.loads(invoke("show", "importance", *apart).stdout)[0]
    for name, column in one["layers"].items():
        assert two["layers"][name] == pytest.approx(column, rel=1e-4, abs=1e-4)


@pytest.mark.slow
def test_several_processes_search_what_one_does(place: KeyPath, tmp_path: Path) -> None:
    place.importance()
    words = ("search", "--target", "120k", "--retrain-tokens", 0, "--candidates", 4, "score_blocks=4")
    one = hashes(Path(place.run(*words)["path"]))
    more = ("--gpus", 2, "--device", "cpu", "--overwrite", "--runs-dir", place.root / "runs", "--json")
    made = launched(tmp_path / "at", *words, *more)
    assert made.code == 0, made.err
    two = hashes(Path(json.loads(made.out)["path"]))
    assert two["result.json"] == one["result.json"]
    assert two["run.json"] != one["run.json"]


@pytest.mark.slow
def test_show_importance_ranks_plots_and_compares(place: KeyPath, pruned: dict[str, Any]) -> None:
    drawn = place.root / "importance.svg"
    (found,) = place.run("show", "importance", "--plot", drawn)
    assert set(found["agreement"]) == set(found["axes"]) == {"head", "ffn", "hidden"}
    ways = found["agreement"]["ffn"]
    assert len(ways) == 9
    assert all(ways[a][a] == pytest.approx(1) and ways[a][b] == pytest.approx(ways[b][a]) for a in ways for b in ways)
    assert -1 <= min(value for row in ways.values() for value in row.values()) < 1
    assert found["axes"]["head"]["least"] <= found["axes"]["head"]["median"] <= found["axes"]["head"]["most"]
    assert drawn.read_text().rstrip().endswith("</svg>")
    drawn.write_text("old")
    place.run("show", "importance", "--plot", drawn)
    assert drawn.read_text().rstrip().endswith("</svg>")
    assert "Rank correlation with l2 of mean" in invoke("show", "importance", "--runs-dir", place.root / "runs").stderr


@pytest.mark.slow
def test_completions_are_scored_without_their_prompts(place: KeyPath, tmp_path: Path) -> None:
    def measured(prompt: str, completion: str) -> Any:
        row = {"prompt": prompt * 9, "completion": completion * 9}
        (tmp_path / "pairs.jsonl").write_text((json.dumps(row) + "\n") * 20)
        words = ("--data", tmp_path / "pairs.jsonl", "--format", "completion", "--sequence-length", 16, "--samples", 3)
        return place.run("importance", place.model, *words, "--layer-removal")["layers"]["nll"]

    assert measured("the cat sat", " on a mat") != pytest.approx(measured("", "the cat sat on a mat"), rel=1e-3)
    place.importance()


@pytest.mark.slow
def test_importance_holds_one_layer_at_a_time_if_told_to(place: KeyPath) -> None:
    one_by_one, whole = (place.importance(mode, "--layer-removal") for mode in ("--layer-major", "--resident"))
    for name in ("block_importance", "nll"):
        assert one_by_one["layers"][name] == pytest.approx(whole["layers"][name], rel=1e-5)
    place.importance()


@pytest.mark.slow
def test_the_commands_of_a_report_make_the_same_again(
    fresh: KeyPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minitron_cli.stages.report import card

    fresh.importance()
    for words in (PRUNED, ("distill", "--steps", 2, *TRAINING), ("eval", "blocks=4")):
        fresh.run(*words)
    block = card(fresh.workspace, current(fresh, "distill"), "me/small").split("```sh\n")[1].split("```")[0]
    commands = [shlex.split(line)[1:] for line in block.splitlines()]
    assert [verb for verb, *_ in commands] == ["importance", "prune", "distill", "eval"]
    monkeypatch.chdir(fresh.model.parent)  # files go by their names
    for words in commands:
        result = invoke(*words, "--runs-dir", tmp_path / "again", "--json")
        assert result.exit_code == 0, result.stderr
    for stage in ("importance", "prune", "distill", "evaluate"):
        again = Workspace(tmp_path / "again" / "model").current(stage)
        assert again.fingerprint == fresh.workspace.current(stage).fingerprint  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_report_shows_figures_of_its_own_product_only(fresh: KeyPath) -> None:
    from minitron_cli.report.product import Product
    from minitron_cli.stages.report import report_config, report_data

    def shown(artifact: Artifact | None) -> tuple[list[str], int]:
        product = Product(fresh.workspace, artifact) if artifact else Product.current(fresh.workspace)
        data = report_data(product, report_config(product))
        assert data.prune is not None
        return [model.label for model in data.models], data.prune.child.sizes["ffn"]

    fresh.importance()
    for words in (PRUNED, ("distill", "--steps", 2, *TRAINING), ("eval", "blocks=4")):
        fresh.run(*words)
    first, distilled = current(fresh, "prune"), current(fresh, "distill")
    assert shown(None) == shown(distilled) == (["parent", "pruned", "distilled"], 64)
    fresh.run("prune", "--shape", "ffn=32")  # now the current model; the evaluation and the student are of the first
    assert shown(None) == ([], 32)
    assert shown(first) == (["parent", "pruned"], 64)
    assert shown(distilled) == (["parent", "pruned", "distilled"], 64)


@pytest.mark.slow
def test_a_model_of_an_earlier_pruning_is_neither_pushed_nor_judged(fresh: KeyPath) -> None:
    fresh.importance()
    first = fresh.run("prune", "--shape", "ffn=64")
    distilled = fresh.run("distill", "--steps", 2, *TRAINING)
    pushed = ("push", "me/small", "--dry-run", "--allow-worse")
    assert fresh.run(*pushed)["from"] == distilled["path"]
    assert list(fresh.run("eval", "blocks=2")["result"]["models"]) == ["parent", "pruned", "distilled"]
    second = fresh.run("prune", "--shape", "ffn=32")
    assert fresh.run(*pushed)["from"] == second["path"]
    assert fresh.run(*pushed, "--stage", "distill")["from"] == distilled["path"]
    found = invoke("eval", "blocks=2", "--json", "--runs-dir", fresh.root / "runs")
    assert list(json.loads(found.stdout)["result"]["models"]) == ["parent", "pruned"]
    left_out = f"{distilled['path']} is left out, because it was not made from the current pruned model"
    assert left_out in found.stderr
    assert first["path"] != second["path"]


@pytest.mark.slow
def test_a_strange_model_is_not_taken_for_a_child_of_the_last_workspace(fresh: KeyPath, exported: Any) -> None:
    fresh.importance()
    own, strange = fresh.run("prune", "--shape", "ffn=64", "-o", fresh.root / "own"), exported["path"]
    words = ("--data", fresh.text, "--sequence-length", 16, "blocks=2")
    refused = fresh.run("eval", strange, fresh.root / "own", *words, code=2)
    assert refused.startswith(f"{strange} was not made in {fresh.root / 'runs/model'}, which is about {fresh.model}: ")
    with_parent = fresh.run("eval", strange, own["path"], *words, "--run", "new")
    assert list(with_parent["result"]["models"]) == ["parent", own["path"].rpartition("/")[2]]
    beside = fresh.run("eval", fresh.root / "own", strange, *words, "--run", "model")
    assert list(beside["result"]["models"]) == ["parent", "own", strange.rpartition("/")[2]]
    assert list(fresh.run("eval", fresh.root / "own", strange, *words)["result"]["models"])[1] == "own"


def test_options_that_describe_the_text_need_it(fresh: KeyPath) -> None:
    fresh.importance()
    for flag, value in (("--format", "chat"), ("--column", "nonexist")):
        refused = fresh.run("data", "inspect", flag, value, code=2)
        assert refused == f"{flag} says how --data or --validation is read: give that as well"


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (("--format", "chat"), ("--data", "python_help")),
        (("--column", "text"), ("--data", "python_stdlib", "--validation", "python_help")),
        (("--format", "chat"), ("--data", "ids:a.jsonl")),
    ],
)
def test_options_that_no_text_is_read_by_are_refused(
    fresh: KeyPath, option: tuple[str, ...], named: tuple[str, ...]
) -> None:
    texts = " and ".join(named[1::2])
    refused = fresh.run("importance", fresh.model, *named, *option, code=2)
    assert refused == f"{option[0]} has no effect on {texts}: drop it, or name files or hub:NAME"


@pytest.mark.slow
def test_another_dtype_of_the_teacher_is_another_training(place: KeyPath, distilled: dict[str, Any]) -> None:
    again = ("distill", "--steps", 2, *TRAINING, "--dry-run")
    assert place.run(*again)["path"] == distilled["path"]
    assert place.run(*again, "--dtype", "bfloat16")["path"] != distilled["path"]


def test_options_of_a_search_that_would_be_ignored_are_refused(fresh: KeyPath) -> None:
    fresh.importance()
    search = ("search", "--target", "75%", "--retrain-tokens", 0)
    assert "--rungs is about retraining, which --retrain-tokens 0 leaves out" in fresh.run(
        *search, "--rungs", 2, code=2
    )
    assert "leave one of them out" in fresh.run(*search, "--axes", "ffn", "space={ffn: [64]}", "--space", "ffn", code=2)


def test_a_range_of_layers_that_is_empty_or_endless_is_refused(fresh: KeyPath) -> None:
    fresh.importance()
    for layers, why in (
        ("3-1", "the range 3-1 is empty; write 1-3"),
        ("0-99999999", "no model has a layer 99,999,999"),
    ):
        assert why in fresh.run("prune", "--drop-layers", layers, code=2)


@pytest.mark.slow
def test_push_lists_the_checkpoint_and_its_card(place: KeyPath, pruned: dict[str, Any]) -> None:
    from huggingface_hub import ModelCard

    from minitron_cli.stages.report import card

    found = place.run("push", "me/small", "--stage", "prune", "--dry-run")
    made = {path.name: path.stat().st_size for path in Path(pruned["path"]).iterdir()}
    text = card(place.workspace, current(place, "prune"), "me/small")
    expected = {name: size for name, size in made.items() if name not in ("manifest.json", "run.json")}
    assert found["files"] == expected | {"README.md": len(text.encode())}
    assert found["bytes"] == sum(found["files"].values())
    assert ModelCard(text).data.library_name == "transformers"
    assert 'from_pretrained("me/small")' in text
    shown = invoke("push", "me/small", "--stage", "prune", "--dry-run", "--runs-dir", place.root / "runs").stderr
    assert "Would push" in shown
    assert "model.safetensors" in shown


@pytest.mark.slow
def test_push_says_in_a_sentence_why_it_cannot(place: KeyPath, pruned: dict[str, Any], fresh: KeyPath) -> None:
    assert "write OWNER/NAME" in place.run("push", "not a name", code=2)
    assert "run `minitron prune --run x --runs-dir " in fresh.run("push", "me/small", "--run", "x", code=2)
    assert "HF_HUB_OFFLINE is set: unset it to push" in place.run("push", "me/small", code=3)
