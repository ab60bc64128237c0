"""A metric is added by one file and one name in each registry: toy ones go through a pass, a ranking and a table."""

from typing import ClassVar, Literal

import pytest
import torch
from pydantic import Field

from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.figures import Figure
from minitron_cli.importance import observers
from minitron_cli.importance.layer_major import collect_by_layer
from minitron_cli.layerwise import processes
from minitron_cli.layerwise.observer import Part, Tokens, decoder_layers
from minitron_cli.layerwise.runner import StoredWeights
from minitron_cli.model.families import FAMILIES
from minitron_cli.model.shape import Shape
from minitron_cli.prune.config import Ranking
from minitron_cli.prune.plan import make_plan
from minitron_cli.report.importance import layer_scores, layer_table
from minitron_cli.scores import layer_score
from minitron_cli.scores import scores as scores_module
from minitron_cli.scores.layer_score import LayerScore
from minitron_cli.scores.metric import Activation, Magnitude, Random, WidthMetric
from tests.tiny import tiny_model
from tests.unit.importance.calibration import calibrated, samples, score, split

LLAMA = FAMILIES["llama"]


class Peak(WidthMetric):
    """Largest activation of a hidden channel in the output of any layer."""

    kind: Literal["peak"] = "peak"

    @property
    def figure(self) -> Figure:
        """Title of the scores."""
        return Figure("largest activation")

    def key(self, axis: str) -> str:
        """Name under which the scores of an axis are stored."""
        return f"{axis}.peak"


class Peaks:
    """Observer of the largest outputs of layers, per hidden channel and per layer."""

    name = "peaks"
    sees_final_norm: ClassVar[bool] = False

    def __init__(self, family, part):
        self._family, self._part, self._peak_LD = family, part, None

    @classmethod
    def of(cls, family, sizes, part, options):
        return cls(family, part)

    @classmethod
    def joined(cls, family, sizes, parts):
        whole = cls(family, Part(range(sizes["layer"]), False))
        whole._peak_LD = torch.cat([part._peak_LD for part in parts])
        return whole

    def watch(self, model, tokens):
        self._batch = {}

        def hook(layer):
            def see(_, args, output):
                hidden_BTD = output if isinstance(output, torch.Tensor) else output[0]
                self._batch[layer] = hidden_BTD.abs().amax((0, 1))

            return see

        layers = decoder_layers(model, self._family)
        return [layers[i].register_forward_hook(hook(i)) for i in self._part.layers]

    def end_batch(self, tokens: Tokens, hidden_BTD):
        peak_LD = torch.stack([self._batch[layer] for layer in self._part.layers])
        self._peak_LD = peak_LD if self._peak_LD is None else torch.maximum(self._peak_LD, peak_LD)

    def state(self):
        return {"peak": self._peak_LD}

    def restore(self, state):
        self._peak_LD = state["peak"]

    def merge(self, state):
        self._peak_LD = torch.maximum(self._peak_LD, state["peak"])

    def scores(self):
        return {"hidden.peak": self._peak_LD.amax(0), "layer.peak": self._peak_LD.amax(1)}


class ToyRanking(Ranking):
    width: Activation | Magnitude | Random | Peak = Field(Activation(), discriminator="kind")


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(observers, "LAYER_OBSERVERS", [*observers.LAYER_OBSERVERS, Peaks])
    peak = LayerScore("peak", Figure("largest output", "toy units"), "Largest output of a layer.")
    registry = (*layer_score.LAYER_SCORES, peak)
    for module in (layer_score, scores_module):
        monkeypatch.setattr(module, "LAYER_SCORES", registry)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama").eval()


def largest_outputs(model, batches):
    """Largest output of every layer but the last, [L - 1, D], by transformers' own hidden states."""
    found = []
    for batch in batches:
        inputs = {"input_ids": batch.input_ids_BT, "position_ids": batch.position_ids_BT, "use_cache": False}
        with torch.no_grad():
            states = model.model(**inputs, output_hidden_states=True).hidden_states
        found.append(torch.stack([state.abs().amax((0, 1)) for state in states[1:-1]]))  # the last one is normed
    return torch.stack(found).amax(0)


def test_a_new_observer_watches_a_whole_model(model):
    batches = split(samples(4), [2, 2])
    scores = score(model, batches, layer_removal=False)
    torch.testing.assert_close(scores.by_name["layer.peak"][:-1], largest_outputs(model, batches).amax(1))
    assert scores.select("hidden", Peak()).shape == (32,)


def test_a_new_observer_watches_a_model_layer_by_layer(model, tmp_path):
    batches = split(samples(4), [2, 2])
    whole = score(model, batches, layer_removal=False)
    model.save_pretrained(tmp_path / "model")
    empty = hf.empty_model(tmp_path / "model")
    weights = StoredWeights(empty, LLAMA, Checkpoint.open(tmp_path / "model").read, "cpu")
    run = calibrated(batches, scratch=tmp_path, layer_removal=False)
    by_layer = collect_by_layer(empty, LLAMA, weights, *run)
    for name in ("hidden.peak", "layer.peak"):
        torch.testing.assert_close(by_layer.by_name[name], whole.by_name[name])


def test_the_observers_of_two_processes_merge(model, monkeypatch):
    batches = split(samples(4), [2, 2])
    whole = score(model, batches, layer_removal=False)
    sent = []  # by process 1, which runs first: the states of its observers, in order

    def send(gathered, state):
        sent.append(state)
        gathered[:] = [state, state]

    def receive(gathered, state):
        gathered[:] = [state, sent.pop(0)]

    for rank, gather in ((1, send), (0, receive)):
        monkeypatch.setattr(processes.distributed, "all_gather_object", gather)
        merged = score(model, [batches[rank]], layer_removal=False, processes=processes.Processes(rank, 2))
    assert not sent
    assert merged.by_name.keys() == whole.by_name.keys()
    for name in ("hidden.peak", "layer.peak", "ffn.flap", "head.flap"):
        torch.testing.assert_close(merged.by_name[name], whole.by_name[name], rtol=1e-6, atol=0)


def test_a_new_metric_ranks_channels_and_layers_and_is_listed_with_its_unit(model):
    scores = score(model, split(samples(4), [2, 2]), layer_removal=False)
    shape = Shape.of(LLAMA, model.config)
    ranking = ToyRanking.model_validate({"width": {"kind": "peak"}, "layers": "peak"})
    plan = make_plan(shape, shape.resize(hidden=16, layer=2), scores, ranking)
    hidden, layers = (scores.by_name[f"{axis}.peak"] for axis in ("hidden", "layer"))
    assert plan.kept["hidden"].tolist() == sorted(hidden.topk(16).indices.tolist())
    assert plan.kept["layer"].tolist() == sorted(layers.topk(2).indices.tolist())
    assert "largest output (toy units)" in layer_table(layer_scores(scores)).header


def test_a_layer_score_that_is_not_registered_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match="Input should be 'block_importance', 'perplexity'"):
        Ranking(layers="peek")
