"""A model from the hub itself. Run with `HF_HUB_OFFLINE=0 pytest -m network`."""

from pathlib import Path

import pytest

from minitron_cli.checkpoint import hf, hub
from minitron_cli.errors import CheckpointError, EnvironmentFault
from minitron_cli.inputs.source_model import open_source_model

pytestmark = pytest.mark.network

TINY = "hf-internal-testing/tiny-random-LlamaForCausalLM"  # a few megabytes, in safetensors
MISSING = "hf-internal-testing/no-repository-has-this-name"


@pytest.fixture(autouse=True)
def _reachable_and_with_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        hub._check_reachable()
    except EnvironmentFault as e:
        pytest.skip(str(e))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


def test_a_small_model_is_downloaded_checked_and_loaded() -> None:
    source = open_source_model(TINY)
    assert source.fingerprint.startswith(f"{TINY}@")
    assert len(source.fingerprint.partition("@")[2]) == 40, "a commit"
    assert source.config.model_type == "llama"
    model = hf.load_model(source.path)
    assert sum(p.numel() for p in model.parameters()) == source.shape.parameters()


def test_what_was_downloaded_is_found_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    online = open_source_model(TINY)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert open_source_model(TINY, offline=True).fingerprint == online.fingerprint


def test_a_repository_that_does_not_exist_is_one_sentence() -> None:
    with pytest.raises(CheckpointError) as caught:
        open_source_model(MISSING)
    assert str(caught.value) == (
        f"{MISSING} is not on the hub: check the name, or run `hf auth login` if it is private"
    )
