"""Recipes: which ones are read, which are refused, and with which message."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitron_cli import recipe, yaml_document
from minitron_cli.data.batches import training_ids
from minitron_cli.distill import short_runs
from minitron_cli.distill.config import DistillConfig, HiddenLosses
from minitron_cli.errors import InputError, RecipeError
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.prune.config import Budget, Ranking
from minitron_cli.recipe import Control, Recipe
from minitron_cli.scores.metric import Random
from minitron_cli.search.config import SearchConfig, TaskObjective

RECIPE = """\
model: llama-3.1-8b
data:
  sources:
    - {kind: python_stdlib}
prune:
  shape: {hidden: 3072, ffn: 9216}
distill:
  steps: 5
"""


def read(text: str, *changes: str) -> Recipe:
    return yaml_document.check(Recipe, yaml_document.parse(text, "r.yaml").changed(changes))


def values(text: str) -> dict:
    return dict(yaml_document.parse(text, "r.yaml").values)


@pytest.mark.parametrize(
    ("changes", "is_measured"),
    [
        ((), False),
        (("prune.shape.layer=28",), True),
        (("prune.shape=null", "prune.drop_layers=[3]"), True),
        (("prune.shape=null", "prune.budget.target=4B"), False),
        (("prune.shape=null", "prune.budget.target=4B", "prune.axes=[layer]"), True),
        (("prune.shape=null", "search.budget.target=4B"), False),
        (("prune.shape=null", "search.budget.target=4B", "search.space={layer: []}"), True),
        (("prune.ranking.layers=perplexity",), True),
        (("prune.shape.layer=28", "importance.layer_removal=false"), False),
        (("importance.layer_removal=true",), True),
    ],
)
def test_perplexity_without_layers_is_measured_where_layers_are_pruned(changes, is_measured) -> None:
    assert read(RECIPE, *changes).scoring().removal_lengths == ((1,) if is_measured else ())


@pytest.mark.parametrize("text", ["model: a\n[b]: c\n", "? {b: c}\n: d\n", "data: {sources: [{? [x] : y}]}\n"])
def test_a_key_that_is_no_word_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"^r\.yaml:\d: a key must be a word; write `key: value`$"):
        yaml_document.parse(text, "r.yaml")


def test_scalars_are_yaml_1_2() -> None:
    text = "lr: 1e-4\nanswer: no\noctal: 010\ntime: 1:30\nlong: 94_000_000_000"
    assert values(text) == {"lr": 1e-4, "answer": "no", "octal": 10, "time": "1:30", "long": 94_000_000_000}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: a\nmodel: b", r'r\.yaml:2: key "model" occurs twice'),
        ("a: {b: 1, b: 2}", r'r\.yaml:1: key "b" occurs twice'),
        ("a: &x [1]\nb: 2", r"r\.yaml:1: anchors and aliases are not read"),
        ("a: *x", r"r\.yaml:1: anchors and aliases are not read"),
        (
            "a: 1\nb: !!python/object/apply:os.system [id]",
            r"r\.yaml:2: the tag .*python/object.* remove it",
        ),
        ("<<: {a: 1}", r"r\.yaml:1: merge keys are not read"),
        ("%YAML 1.1\n---\na: no", r"directives are not read"),
        ("a: 1\n---\nb: 2", r"r\.yaml:2: .*another document"),
        ("a: 1\n\tb: 2", r"r\.yaml:2: "),
        ("a: \x01", r"r\.yaml is not YAML: "),
        ("a: " + "9" * 5000, r"r\.yaml is not YAML: "),
        ("a: " + "[" * 40 + "]" * 40, r"nested more than 32 deep"),
        ("a: [" + "1," * 5000 + "]", r"more than 5,000 keys and values: give patterns"),
        ("- 1", r"r\.yaml is not a mapping"),
        ("", r"r\.yaml is not a mapping"),
    ],
)
def test_what_a_recipe_has_no_use_for_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        yaml_document.parse(text, "r.yaml")
    assert "\n" not in str(error.value)


def test_files_that_are_no_recipe_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"a: \xff\xfe")
    (tmp_path / "big").write_bytes(b"#" * (yaml_document.MAX_BYTES + 1))
    for name, message in [
        ("latin", "not UTF-8"),
        ("big", "at most 65,536"),
        ("none", "does not exist"),
        ("", "not a regular"),
    ]:
        with pytest.raises(RecipeError, match=message):
            yaml_document.read(tmp_path / name)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.text(alphabet="abmodel:{}[]-?&*!<|>%#,'\" \n\t01~.=", max_size=60))
def test_every_text_is_a_recipe_or_one_sentence(text: str) -> None:
    with pytest.raises(RecipeError) as error:
        read(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("distill.learning_ratee=1", r"^distill\.learning_ratee is not a known key; did you mean learning_rate\?$"),
        ("prune.shap={}", r"^prune\.shap is not a known key; did you mean shape\?$"),
        ("prune.shape.hiden=3", r"^prune\.shape\.hiden is not a known key; did you mean hidden\?$"),
        ("tokens=3", r"^tokens is not a known key; did you mean distill\.tokens\?$"),
        ("importance.zzz=3", r"^importance\.zzz is not a known key; use one of samples, batch_size, "),
        ("data.sources.0.spilt=train", r"^data\.sources\.0\.spilt is not a known key; did you mean split\?$"),
        ("data.sources.0.kind=files", r"^data\.sources\.0\.paths is missing: add it$"),
        ("data.sources.0.kind=flies", r"^data\.sources\.0\.kind is 'flies'; did you mean files\?$"),
        ("distill.losses=[{}]", r"^distill\.losses\.0\.kind is missing"),
        ("distill.losses=[{kind: forwardkl}]", r"^distill\.losses\.0\.kind is 'forwardkl'; did you mean forward_kl\?$"),
        ("prune.ranking.layers=perplexty", r"^prune\.ranking\.layers is 'perplexty'; did you mean perplexity\?$"),
        ("importance.samples=0", r"^importance\.samples is 0: input should be greater than or equal to 1; change it$"),
        ("distill.learning_rate=.nan", r"^distill\.learning_rate is nan: .*finite"),
        ("prune.budget.target=4B", r"r\.yaml:5: prune: give a shape or a budget, not both$"),
        ("evaluate.tasks=[wino:x]", r"^evaluate\.tasks\.0: task 'wino:x': write NAME or NAME:SHOTS"),
        ("model.x=3", r"^model\.x: model has no entry 'x'"),
        ("data.sources.1.kind=hub", r"^data\.sources\.1\.kind: data\.sources has no entry 1"),
        ("prune.shape=", r"nothing says how much to prune"),
        ("distill=null", None),
        ("importance.samples", r"^'importance\.samples' is not a change: write key=value"),
        ("importance.samples=[", r"^the value of importance\.samples"),
    ],
)
def test_a_wrong_change_is_named_by_its_path_with_what_to_do(change: str, message: str | None) -> None:
    if message is None:
        assert read(RECIPE, change).distill is None
        return
    with pytest.raises(RecipeError, match=message) as error:
        read(RECIPE, change)
    assert "\n" not in str(error.value)


def test_an_error_in_a_file_names_the_line() -> None:
    with pytest.raises(RecipeError, match=r"^r\.yaml:9: distill\.stepz is not a known key; did you mean steps\?$"):
        read(RECIPE + "  stepz: 3\n")


def test_a_misspelt_key_is_said_before_the_one_that_is_missing_for_it() -> None:
    with pytest.raises(RecipeError, match=r"^r\.yaml:1: modle is not a known key; did you mean model\?$"):
        read(RECIPE.replace("model:", "modle:"))


@pytest.mark.parametrize("task", ["winogrande:5", "winogrande"])
def test_settings_are_set_beside_the_name_of_a_task(task: str) -> None:
    text = f"{RECIPE}search: {{budget: {{target: 50%}}, objective: {task}}}\n"
    found = read(text, "prune.shape=null", "search.objective.metric=f1").search
    assert found is not None
    assert found.objective == TaskObjective(task=task, metric="f1")
    with pytest.raises(RecipeError, match=r"^search\.objective\.metrik is not a known key; did you mean metric\?$"):
        read(text, "prune.shape=null", "search.objective.metrik=f1")


def test_options_are_set_beside_the_name_of_a_kind() -> None:
    text = f"{RECIPE}sparsify: {{metric: sparsegpt, pattern: 4:8, layer_amounts: owl}}\n"
    sparse = read(text, "sparsify.metric.damping=0.1", "sparsify.layer_amounts.spread=0.2").sparsify
    assert sparse is not None
    assert sparse.metric.model_dump() == {"kind": "sparsegpt", "damping": 0.1, "block": 128}
    assert sparse.owl is not None
    assert sparse.owl.spread == 0.2
    with pytest.raises(RecipeError, match=r"^sparsify\.metric\.dampin is not a known key; did you mean damping\?$"):
        read(text, "sparsify.metric.dampin=0.1")
    with pytest.raises(
        RecipeError, match=r"^sparsify\.pattern\.x: sparsify\.pattern has no entry 'x'; check the path$"
    ):
        read(text, "sparsify.pattern.x=1")


def test_a_change_makes_a_new_document() -> None:
    written = yaml_document.parse(RECIPE, "r.yaml")
    written.changed(["prune.shape.ffn=1", "distill.steps=9"])
    assert written == yaml_document.parse(RECIPE, "r.yaml")


def test_changes_reach_every_depth_and_leave_the_rest() -> None:
    changed = read(RECIPE, "distill.learning_rate=2e-4", "prune.shape.ffn=9472", "data.sources.0.split=validation")
    plain = read(RECIPE)
    assert changed.distill is not None
    assert plain.distill is not None
    assert (changed.distill.learning_rate, changed.distill.steps) == (2e-4, 5)
    assert changed.prune.shape == {"hidden": 3072, "ffn": 9472}
    assert changed.data.sources[0].split == "validation"
    assert plain.distill.learning_rate == DistillConfig(steps=5).learning_rate


def test_one_section_is_read_by_itself() -> None:
    section = yaml_document.check(
        ImportanceConfig, yaml_document.YamlDocument().changed(["importance.samples=3"]), ("importance",)
    )
    assert section == ImportanceConfig(samples=3)
    with pytest.raises(RecipeError, match=r"^importance\.sample is not a known key; did you mean samples\?"):
        yaml_document.check(
            ImportanceConfig, yaml_document.YamlDocument().changed(["importance.sample=3"]), ("importance",)
        )


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("search: {budget: {target: 4B}}", "both search and prune choose a shape"),
        ("controls: [{label: a, init: random}, {label: a, init: random}]", "two controls have the label 'a'"),
        ("controls: [{label: distilled, init: random}]", "the label 'distilled' is taken"),
        ("controls: [{label: a}]", "changes nothing; give it one of init, objective, prune"),
        ("controls: [{label: a, tokens: 1M, steps: 3}]", "tokens and steps both set the length of the control"),
        ("controls: [{label: a, steps: 3, equal: flops}]", "steps and equal both set the length of the control"),
        ("controls: [{label: a, prune: random, prune_from: original}]", "prune and prune_from both choose"),
        ("controls: [{label: a, prune: random, repair: none}]", "prune and repair both choose"),
        ("controls: [{label: a, init: random, trained: false}]", "give the control one of prune, prune_from, repair"),
        ("controls: [{label: a, repair: none, trained: false, steps: 3}]", "steps is about training, and the control"),
        ("controls: [{label: a, prune_from: original}]", "prunes the original, which only differs in a chain"),
        ("controls: [{label: a, init: random, in_steps: [b]}]", "is in step 'b', which the recipe does not have"),
        ("controls: [{label: original, init: random}]", "the label 'original' is taken"),
        ("controls: [{label: a, cut: random}]", r"controls\.0: the key cut is now called prune; write prune: random$"),
    ],
)
def test_contradictory_sections_are_refused(addition: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read(RECIPE + addition)


def test_a_control_does_not_end_above_its_peak() -> None:
    control = "controls: [{label: a, learning_rate: 1e-6}]"
    with pytest.raises(RecipeError, match="min_learning_rate 1e-05 is above learning_rate 1e-06: lower"):
        read(RECIPE + control, "distill.min_learning_rate=1e-5")
    found = read(RECIPE + control)
    (own,) = found.controls
    fitted, _ = short_runs.fitted(own.applied_to(own.beside(found.distill, 4)), 64)
    assert fitted.min_learning_rate <= fitted.learning_rate == 1e-6, "its last rate, which nobody set, follows its peak"


def test_total_tokens_need_those_of_the_original_which_some_aliases_have() -> None:
    text = RECIPE + "controls: [{label: a, init: random, equal: total_tokens}]"
    assert read(text).known_pretraining.tokens == 15 * 10**12
    assert read(text, "model=m", "pretraining.tokens=2T").known_pretraining.tokens == 2 * 10**12
    with pytest.raises(RecipeError, match="those of m are not known; add pretraining"):
        read(text, "model=m")


def test_a_control_has_a_length_batch_rate_and_seed_of_its_own() -> None:
    distill = DistillConfig(tokens=1_000, batch_size=4)
    own = Control(label="a", steps=9, learning_rate=1e-3, batch_size=2, seed=5).applied_to(distill)
    assert own == distill.model_copy(
        update={"tokens": None, "steps": 9, "learning_rate": 1e-3, "batch_size": 2, "seed": 5}
    )
    longer = Control(label="a", tokens=1_001).applied_to(distill)
    assert longer.total_steps(16) == math.ceil(1_001 / (4 * 16))
    computed = Control(label="a", equal="flops").applied_to(distill, tokens=77)
    assert (computed.tokens, computed.steps) == (77, None)


def test_a_longer_control_reads_the_blocks_of_the_shorter_one_in_their_order() -> None:
    short, long = (training_ids(seed=3, first=0, count=count, total=10) for count in (17, 44))
    assert long[:17] == short


def test_a_control_without_the_repair_needs_one_to_leave_out() -> None:
    text = RECIPE + "controls: [{label: a, repair: none, trained: false}]"
    assert read(text).controls[0].repair == "none"
    with pytest.raises(RecipeError, match=r"leaves the repair out, and prune\.repair is none; remove it"):
        read(text, "prune.repair=none")


def test_a_control_changes_one_thing() -> None:
    distill = DistillConfig(steps=7, seed=3, hidden=HiddenLosses())
    random = Control(label="random-init", init="random").applied_to(distill)
    assert random == distill.model_copy(update={"init": "random"})
    plain = Control(label="plain", objective="ce").applied_to(distill)
    assert [loss.kind for loss in plain.losses] == ["cross_entropy"]
    assert not plain.needs_teacher
    assert (plain.steps, plain.seed, plain.init) == (7, 3, "student")


@pytest.mark.parametrize("name", recipe.shipped())
def test_every_shipped_recipe_is_valid_and_begins_with_what_it_does(name: str) -> None:
    assert isinstance(recipe.load(name), Recipe)
    assert recipe.shipped()[name].read_text().startswith("# ")


def test_shipped_recipes_hold_the_published_numbers() -> None:
    width, depth = (recipe.load(f"llama-3.1-minitron-4b-{axis}") for axis in ("width", "depth"))
    assert width.prune.shape == {"hidden": 3072, "ffn": 9216}
    assert set(range(32)) - set(depth.prune.drop_layers) == {*range(15), 31}
    for published in (width, depth):
        d = published.distill
        assert d is not None
        assert (d.learning_rate, d.min_learning_rate, d.warmup_steps, d.batch_size) == (1e-4, 1e-5, 40, 1152)
        assert published.data.sequence_length == 8192
        assert d.tokens == 94_000_000_000


def test_a_recipe_is_found_by_name_or_path(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(RECIPE)
    assert recipe.load(str(tmp_path / "mine.yaml")).model == "llama-3.1-8b"
    assert recipe.find("demo").name == "demo.yaml"
    with pytest.raises(RecipeError, match=r"'llama-3.1-minitron-4b-widht' does not exist: did you mean .*-width"):
        recipe.find("llama-3.1-minitron-4b-widht")


@pytest.mark.parametrize(("name", "key"), [("EvaluateConfig", "tasks"), ("SearchConfig", "objective")])
def test_the_schema_knows_the_short_way_to_name_a_task(name: str, key: str) -> None:
    entry = recipe.schema()["$defs"][name]["properties"][key]
    assert {"type": "string"} in entry.get("items", entry)["anyOf"]


def test_the_schema_describes_every_section_in_words() -> None:
    schema = recipe.schema()
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert all("description" in entry for entry in schema["properties"].values())


def test_one_seed_is_that_of_all_that_stages_draw() -> None:
    masks = "importance: {learned: {shape: {ffn: 8}}}\nevaluate: {cloze: {}}"
    search = SearchConfig(budget=Budget(target="4B"), ranking=Ranking(width=Random()))
    asked = read(RECIPE + masks).model_copy(update={"search": search})
    found = asked.seeded(7)
    assert (found.importance.seed, found.importance.learned.seed, found.distill.seed) == (7, 7, 7)
    assert (found.search.seed, found.search.ranking.width.seed, found.evaluate.cloze.seed) == (7, 7, 0)
    assert not hasattr(found.data, "seed")
    assert found.prune is asked.prune, "what draws nothing is as it was"


def test_a_short_control_takes_a_smaller_batch_where_nobody_set_one() -> None:
    """The student's was fitted to its own length, which is no setting of the user's."""
    student = DistillConfig(tokens=1_000_000)
    control = Control(label="brief", tokens=2_048)
    fitted, _ = short_runs.fitted(control.applied_to(control.beside(student, 64)), 512)
    assert fitted.batch_size * 512 <= 2_048
    given = DistillConfig(tokens=1_000_000, batch_size=64)
    with pytest.raises(InputError, match="batch_size 64 x 512 tokens is more than"):
        short_runs.fitted(control.applied_to(control.beside(given, 64)), 512)
