"""`minitron families check`: the table that a checkpoint needs, beside the nearest."""

import json

import pytest

from minitron_cli.inputs.family_check import family_check
from minitron_cli.model.needed_table import possible_layout
from tests.cli.program import invoke
from tests.tiny import write_tiny


@pytest.fixture(scope="module")
def bitnet(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("bitnet"), "bitnet")


def test_an_unknown_type_beside_the_nearest_table(bitnet):
    found = json.loads(invoke("families", "check", bitnet, "--json").stdout)
    rows = {row["template"]: row for row in found["rows"]}
    layer = "model.layers.{layer}"
    assert found["model_type"] == "bitnet"
    assert found["tensors"] == sum(row["tensors"] for row in found["rows"] if row["state"] != "not in the checkpoint")
    assert found["fitting"] == found["tensors"] - 8  # two norms inside of each of four layers
    assert rows[f"{layer}.self_attn.q_proj.weight"]["layout"] == "(head head_dim) hidden"
    assert rows[f"{layer}.mlp.ffn_sub_norm.weight"] == {
        "template": f"{layer}.mlp.ffn_sub_norm.weight",
        "layout": "ffn",
        "shape": [48],
        "tensors": 4,
        "state": "not in the table",
    }
    assert rows[f"{layer}.self_attn.attn_sub_norm.weight"]["layout"] == "hidden"
    people = invoke("families", "check", bitnet).stderr
    assert (
        f"bitnet: {found['fitting']} of {found['tensors']} tensors are as in the table of {found['family']}" in people
    )


@pytest.mark.parametrize("model_type", ["gpt_oss", "qwen3_moe"])
def test_a_type_with_a_table_fits_it(model_type, tmp_path):
    found = family_check(write_tiny(tmp_path, model_type))
    assert (found.family, {row.state for row in found.rows}) == (model_type, {"same"})
    assert found.fitting == found.tensors


def test_layouts_that_sizes_allow():
    sizes = {"layer": 6, "hidden": 32, "head": 8, "kv_head": 2, "head_dim": 8, "ffn": 48}
    assert possible_layout((64, 32), sizes) == "(head head_dim) hidden"
    assert (
        possible_layout((96, 32), sizes)
        == "(ffn + ffn) or (head head_dim + kv_head head_dim + kv_head head_dim) hidden"
    )
    assert possible_layout((8, 7, 6), sizes) == "head or head_dim 7 6"


def test_a_directory_without_a_tensor_of_any_table(tmp_path):
    write_tiny(tmp_path, "gpt2")
    result = invoke("families", "check", tmp_path)
    assert result.exit_code == 2
    assert "no table has a tensor of" in result.stderr
