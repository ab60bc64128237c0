"""The part of a model that is timed in its place, and figures that are measured once and kept."""

import pytest
import torch

from minitron_cli.decoder import decoder_of
from minitron_cli.distill.config import DistillConfig
from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from minitron_cli.price import disk, probe, subject
from minitron_cli.price.probe import Batches, Probe
from minitron_cli.price.probe_model import ProbeModel
from minitron_cli.price.work import Run
from tests.quick import every_family
from tests.tiny import tiny_model

FIGURES = [("decoder", "forward"), ("decoder", "observed"), ("decoder", "training")]
FIGURES += [("head", "loss"), ("head", "kl"), ("head", "training")]


def run_of(model_type: str = "llama", batch: int = 2, **options) -> Run:
    config = tiny_model(model_type, **options).config
    return subject.of_config(config.to_dict(), Shape.of(family_of(config), config), "float32").runs(batch, 16)


@pytest.fixture
def brief(monkeypatch):
    """Figures from one repetition on few tokens."""
    monkeypatch.setattr(probe, "SECONDS", 1e-3)


@every_family()
def test_a_layer_of_every_family_runs_alone(model_type):
    part = ProbeModel(run_of(model_type), "cpu")
    batch = part.batch(2, 16)
    with torch.inference_mode():
        hidden_BTD = decoder_of(part.model)(batch.input_ids_BT, position_ids=batch.position_ids_BT).last_hidden_state
    assert hidden_BTD.isfinite().all()
    assert part.shape.sizes["layer"] == len(set(part.run.shape.family.layers) or {()})  # one of each kind
    assert sum(p.numel() for p in part.model.parameters()) == part.shape.parameters()


@pytest.mark.parametrize(("part", "how"), FIGURES)
def test_a_figure_is_measured_once_and_kept(monkeypatch, tmp_path, brief, part, how):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = getattr(Probe(run_of(), "cpu", DistillConfig(steps=1)), part)(how)
    assert 0 < found < 1e-3
    monkeypatch.setattr(ProbeModel, "model", property(lambda _: pytest.fail("made a model again")))
    assert getattr(Probe(run_of(), "cpu", DistillConfig(steps=2)), part)(how) == found
    with pytest.raises(pytest.fail.Exception):  # which another shape, batch or training makes
        getattr(Probe(run_of(hidden_size=64), "cpu", DistillConfig(steps=1)), part)(how)


@pytest.mark.parametrize(
    ("figure", "changes"),
    [
        (lambda p: p.decoder("training"), {"activation_checkpointing": True}),
        (lambda p: p.update(), {"optimizer": "adamw_offload"}),
    ],
)
def test_no_setting_that_changes_the_speed_shares_a_figure(monkeypatch, tmp_path, brief, figure, changes):
    """Also settings that change no result, and so are no part of its identity."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured = []
    monkeypatch.setattr(probe, "_fastest", lambda run: measured.append(run) or len(measured))
    settings = {}, changes, {}
    figures = [figure(Probe(run_of(), "cpu", DistillConfig(steps=1, **options))) for options in settings]
    assert len(measured) == 2
    assert figures[0] == figures[2] != figures[1]


@pytest.mark.parametrize(
    ("seconds", "fitting"), [(20, (1, 2)), (45, (1, 4)), (80, (1, 16)), (150, (2, 16)), (900, (4, 16))]
)
def test_a_probe_doubles_its_tokens_until_twice_as_many_would_take_too_long(monkeypatch, seconds, fitting):
    """On a clock by which the weights take 8 seconds and each token one."""
    monkeypatch.setattr(probe, "SECONDS", float(seconds))
    monkeypatch.setattr(probe, "FIRST_TOKENS", 2)
    monkeypatch.setattr(probe, "_seconds", lambda run: run())
    timed = Probe(run_of(batch=4), "cpu")
    assert timed._fitting(lambda batches: lambda: 8 + batches.tokens) == Batches(*fitting)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_a_layer_keeps_for_its_backward_pass_is_that_of_the_whole_model(precision):
    training, tokens = DistillConfig(steps=1, precision=precision), 32
    one = Probe(run_of(), "cpu", training)
    model = tiny_model("llama")
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor):
        if (storage := tensor.untyped_storage()).data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    embedded_BTD = torch.randn(2, 16, 32, requires_grad=True)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        output = decoder_of(model)(inputs_embeds=embedded_BTD, use_cache=False).last_hidden_state
    assert output.requires_grad
    whole = sum(kept.values())  # the norm after the last layer is in each layer's figure, and once in the model
    assert whole < 4 * one.saved_bytes(tokens) < 1.3 * whole


def test_a_disk_has_a_speed_where_nothing_may_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "PROBE_BYTES", 1 << 16)
    real = disk._timed

    def timed(place):
        if place == tmp_path:
            raise PermissionError
        return real(place)

    monkeypatch.setattr(disk, "_timed", timed)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = disk.speed(tmp_path / "not" / "there")
    assert found.write > found.read > 0
    assert disk.speed(tmp_path) == found
