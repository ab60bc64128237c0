"""The holder of all scores."""

import pytest
import torch

from minitron_cli.errors import ArtifactError
from minitron_cli.scores.metric import Activation, Magnitude, Random
from minitron_cli.scores.scores import Scores


@pytest.fixture
def scores():
    return Scores.from_tensors(
        {
            "ffn.batch=l2.sequence=mean": torch.arange(6.0).reshape(2, 3),
            "ffn.batch=var.sequence=l2": torch.ones(2, 3),
            "hidden.magnitude=l1": torch.arange(4.0),
            "layer.block_importance": torch.tensor([0.5, 0.25]),
            "parent.nll": torch.tensor(2.5, dtype=torch.float64),
        }
    )


def test_a_metric_selects_what_was_measured_under_it(scores):
    by_name = scores.by_name
    assert scores.select("ffn", Activation()) is by_name["ffn.batch=l2.sequence=mean"]
    assert scores.select("ffn", Activation(batch="var", sequence="l2")) is by_name["ffn.batch=var.sequence=l2"]
    assert scores.activation("ffn", batch="var", sequence="l2") is by_name["ffn.batch=var.sequence=l2"]
    assert scores.select("hidden", Magnitude(norm="l1")) is by_name["hidden.magnitude=l1"]
    assert scores.layers("block_importance") is by_name["layer.block_importance"]
    assert scores.parent_nll == 2.5


def test_what_was_not_measured_is_an_error_that_names_what_was(scores):
    with pytest.raises(ArtifactError, match=r"'ffn.magnitude=l2'.*ffn.batch=l2.sequence=mean.*minitron importance"):
        scores.select("ffn", Magnitude())
    with pytest.raises(ArtifactError, match=r"'layer.perplexity'.*layer.block_importance"):
        scores.layers("perplexity")
    with pytest.raises(ArtifactError, match=r"'head.batch=l2.sequence=mean'.*hidden.magnitude=l1"):
        scores.activation("head")
    with pytest.raises(ArtifactError, match="head"):
        scores.select("head", Random())
    assert Scores.from_tensors({}).parent_nll is None


def test_random_scores_need_no_measurement_of_their_own(scores):
    drawn = scores.select("ffn", Random(seed=3))
    assert drawn.shape == (2, 3)
    assert torch.equal(drawn, scores.select("ffn", Random(seed=3)))
    assert not torch.equal(drawn, scores.select("ffn", Random(seed=4)))
    assert not torch.equal(drawn[0], drawn[1])
    assert scores.select("hidden", Random()).shape == (4,)
    assert scores.select("layer", Random()).shape == (2,)


def test_random_scores_of_a_layer_do_not_depend_on_how_many_there_are(scores):
    more = Scores.from_tensors({"ffn.magnitude=l2": torch.zeros(5, 3)})
    assert torch.equal(more.select("ffn", Random())[:2], scores.select("ffn", Random()))


def test_a_file_gives_back_what_was_saved(scores, tmp_path):
    scores.save(tmp_path)
    again = Scores.load(tmp_path)
    assert again.by_name.keys() == scores.by_name.keys()
    for name, tensor in scores.by_name.items():
        torch.testing.assert_close(again.by_name[name], tensor, rtol=0, atol=0)


def test_scores_of_several_sources_join(scores):
    joined = scores | Scores.from_tensors({"ffn.magnitude=l2": torch.zeros(2, 3)})
    assert torch.equal(joined.select("ffn", Magnitude()), torch.zeros(2, 3))
    assert joined.activation("ffn") is scores.activation("ffn")


def test_a_block_that_was_not_measured_is_an_error_that_says_how():
    scores = Scores({"layer.block_perplexity=2": torch.zeros(3)})
    assert scores.layers("block_perplexity=2").tolist() == [0, 0, 0]
    with pytest.raises(ArtifactError, match=r"no block_perplexity of 3 layers: .*`minitron importance blocks=\[3\]`"):
        scores.layers("block_perplexity=3")
    with pytest.raises(ArtifactError, match=r"importance blocks=\[2\] block_task=winogrande:5`"):
        scores.layers("block_task=2")
