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


@pytest.mark.parametrize(
    "ranking",
    [{"layers": "collapse"}, {"layers": "learned"}, {"width": {"kind": "learned"}}, {"layers": "block_cosine"}],
)
def test_rounds_are_refused_where_they_could_not_measure_what_ranks(ranking):
    assert PruneConfig(shape={"ffn": 3, "layer": 1}, ranking=ranking).rounds == 1
    with pytest.raises(ValidationError, match=r"(is measured|is removed at) once.*: use one round, or rank"):
        PruneConfig(shape={"ffn": 3, "layer": 1}, ranking=ranking, rounds=2)


def test_a_config_survives_json():
    config = PruneConfig(budget={"target": "4B"}, axes=["layer"], ranking=Ranking(invert=True))
    assert PruneConfig.model_validate(config.model_dump(mode="json")) == config
