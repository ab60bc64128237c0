import pytest
from transformers import CONFIG_MAPPING, AutoConfig

from minitron_cli.errors import CheckpointError
from minitron_cli.model.families import FAMILIES, family_of
from minitron_cli.model.families.llama import LLAMA
from minitron_cli.model.family import NAME_AXIS, Family
from minitron_cli.model.layout import parse
from tests.tiny import BASE


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_table_speaks_of_its_own_tensors(family):
    """Conditions, links and ties name templates of the table; layouts and names use axes that have a size."""
    sources_of_live = [name for sources in family.runtime_names.values() for name in sources]
    spoken_of = (
        family.stored_if,
        family.links,
        family.tied,
        family.corrections,
        family.held_by,
        family.buffers,
        sources_of_live,
    )
    for mentioned in (*spoken_of, *family.links.values(), family.tied.values()):
        assert set(mentioned) <= family.tensors.keys()
    for template, text in family.tensors.items():
        named = set(NAME_AXIS.findall(template)).union(*(parse(text).axes(d) for d in range(len(parse(text).dims))))
        assert named <= family.sizes.keys() | family.derived.keys() | {
            "head_dim"
        }  # derived where no config field says it
    assert family.sizes.keys() >= family.active.keys()


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_name_matches_one_template(family):
    for template in family.tensors:
        name = template.format(layer=12, expert=3)
        match = family.match(name)
        assert match.template == template
        assert match.layout == parse(family.tensors[template])
        assert match.template.format(**match.at) == name
        others = {t: text for t, text in family.tensors.items() if t != template}
        with pytest.raises(CheckpointError, match="has no layout"):
            Family(family.model_type, others, family.sizes).match(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "model.layers.0.mlp.up_proj.weight ",
        "model.layers.0.mlp.up_proj.weight\n",
        "xmodel.norm.weight",
        "model.layers.01.mlp.up_proj.weight",
        "model.layers.-1.mlp.up_proj.weight",
        "model.layers.1.2.mlp.up_proj.weight",
        "model.layers.{layer}.mlp.up_proj.weight",
        "modelxnorm.weight",
    ],
)
def test_near_misses_do_not_match(name):
    with pytest.raises(CheckpointError, match="has no layout in family 'llama'"):
        LLAMA.match(name)


def test_multi_head_attention_has_a_group_for_each_head():
    config = CONFIG_MAPPING["llama"](**BASE | {"num_key_value_heads": None})
    config.num_key_value_heads = None
    assert LLAMA.axis_sizes(config)["kv_head"] == 8


class Config:
    """Whatever a hostile config.json may have put into a field."""

    def __init__(self, **fields):
        self.__dict__.update(BASE | fields)


NO_SIZES = [0, -1, 1.0, "8", [8], True, {}]
REQUIRED = sorted(LLAMA.sizes.keys() - {"kv_head", "head_dim"})  # None stands for the default of these


@pytest.mark.parametrize("axis", sorted(LLAMA.sizes))
def test_a_size_must_be_a_positive_integer(axis, subtests):
    for value in [*NO_SIZES, *([None] if axis in REQUIRED else [])]:
        with subtests.test(value=value), pytest.raises(CheckpointError, match="it must be a positive integer"):
            LLAMA.axis_sizes(Config(**{LLAMA.sizes[axis]: value}))


@pytest.mark.parametrize("value", [None, 0, "8", 3.0])
def test_a_head_size_that_cannot_be_derived(value):
    with pytest.raises(CheckpointError, match=r"'num_attention_heads' is .*: it must be a positive integer"):
        LLAMA.axis_sizes(Config(head_dim=None, num_attention_heads=value))


def test_query_heads_must_divide_into_groups():
    with pytest.raises(CheckpointError, match=r"num_attention_heads.*multiple of.*num_key_value_heads"):
        LLAMA.axis_sizes(Config(num_attention_heads=8, num_key_value_heads=3))


def test_unknown_families_and_mixed_layers_are_refused():
    with pytest.raises(CheckpointError, match=r"'gpt2' has no family table \(docs/families.*docs/extending\.md"):
        family_of(AutoConfig.for_model("gpt2"))
    config = CONFIG_MAPPING["llama"](**BASE, per_layer_config={0: {"intermediate_size": 40}})
    with pytest.raises(CheckpointError, match="only homogeneous models can be pruned"):
        family_of(config)


def test_a_condition_may_be_negated():
    stored = LLAMA.stored(Config(tie_word_embeddings=False, attention_bias=True, mlp_bias=False))
    assert "lm_head.weight" in stored
    assert "model.layers.{layer}.self_attn.o_proj.bias" in stored
    assert "model.layers.{layer}.mlp.up_proj.bias" not in stored
    assert "lm_head.weight" not in LLAMA.stored(Config(tie_word_embeddings=True))
