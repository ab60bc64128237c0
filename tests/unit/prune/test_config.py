import pytest
from pydantic import ValidationError

from minitron_cli.prune.config import PruneConfig, Ranking


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"shape": {"ffn": 3}, "budget": {"target": "4B"}}, "give a shape or a budget, not both"),
        ({"drop_layers": [1], "budget": {"target": "4B"}}, "give a shape or a budget, not both"),
        ({"drop_layers": [1], "shape": {"layer": 3}}, "give drop_layers or the number of layers, not both"),
        ({"drop_layers": [1, 1]}, "drop_layers must list different layers, counted from 0"),
        ({"drop_layers": [-1]}, "drop_layers must list different layers, counted from 0"),
        (
            {"shape": {"vocab": 3}},
            "Input should be 'layer', 'hidden', 'head', 'kv_head', 'expert', 'ffn', .*, 'q_rank' or 'kv_rank'",
        ),
        ({"budget": {"target": "4B", "tolerance": 0}}, "greater than 0"),
        ({"budget": {"target": "lots"}}, "is not a quantity"),
        ({"ranking": {"width": {"kind": "magnitud"}}}, "magnitud"),
        ({"ranking": {"width": {"kind": "random", "norm": "l2"}}}, "Extra inputs are not permitted"),
        ({"shap": {}}, "Extra inputs are not permitted"),
    ],
)
def test_what_contradicts_itself_is_refused(fields, says):
    with pytest.raises(ValidationError, match=says):
        PruneConfig(**fields)


def test_a_config_survives_json():
    config = PruneConfig(budget={"target": "4B"}, axes=["layer"], ranking=Ranking(invert=True))
    assert PruneConfig.model_validate(config.model_dump(mode="json")) == config
