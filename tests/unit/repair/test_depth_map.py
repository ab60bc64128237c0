"""What least squares makes of dropped layers contains the linear map of ReplaceMe (Shopkhoev et al. 2025)."""

import pytest
import torch

from minitron_cli.model.families import FAMILIES
from minitron_cli.model.shape import Shape
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.repair import gram, least_squares
from tests.unit.repair.test_layerwise_fit import HIDDEN, fit, parent_of, seen_in

AT = "model.layers.0"


@pytest.mark.slow
@pytest.mark.parametrize("ffn", [24, 48])
def test_the_layer_before_a_gap_gets_the_map_of_the_dropped_block_or_better(tmp_path, monkeypatch, ffn):
    """T = argmin |M T + Y - L| is fused as Tᵀ W_down: all there is where W_down has full column rank, else less."""
    monkeypatch.setattr(least_squares, "_best_ridge", lambda *_: 1e-6)
    monkeypatch.setattr(gram, "BOUND", 1e9)
    options = {"intermediate_size": ffn, "mlp_bias": False, "attention_bias": False}
    model, checkpoint = parent_of(tmp_path / "parent", "llama", **options)
    plan = PrunePlan(Shape.of(FAMILIES["llama"], model.config), {"layer": torch.tensor([0, 3])})
    fitted = fit(model, checkpoint, plan, tmp_path / "fit").repair.fitted
    assert fitted

    names = [f"{AT}.mlp.down_proj", f"{AT}.post_attention_layernorm", "model.layers.3"]
    (neurons, _), (before, _), (after, _) = seen_in(model, names).values()
    written = neurons @ model.get_submodule(names[0]).weight.detach().double().T  # of the rank of W_down
    missing = after - before
    mapped = written @ torch.linalg.lstsq(written, missing, rcond=1e-9, driver="gelsd").solution
    ours = neurons @ fitted.read(f"{AT}.mlp.down_proj.weight").double().T
    if ffn <= HIDDEN:
        torch.testing.assert_close(ours, mapped, rtol=1e-3, atol=1e-3 * float(mapped.abs().max()))
    else:
        errors = [float((missing - made).norm()) for made in (ours, mapped, written)]
        assert errors[0] < 0.95 * errors[1] < errors[2], errors
