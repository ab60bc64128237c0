"""The study of removed blocks measures the same whether or not it was interrupted."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.evaluate.perplexity import perplexity
from minitron_cli.layerwise.bypass import bypassed
from minitron_cli.model.families.llama import LLAMA

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))  # scripts import their neighbors

import block_removal


@pytest.fixture
def study(model, blocks, tmp_path, monkeypatch):
    monkeypatch.setattr(block_removal.hf, "load_tokenizer", lambda path: None)

    def started():
        parent = SimpleNamespace(fingerprint="f" * 64, path=tmp_path, family=LLAMA)
        context = Context(Workspace(tmp_path))
        made = block_removal.RemovalStudy(
            folder="study", context=context, parent=parent, data=None, samples=0, blocks=5, name="tiny", questions=1
        )
        vars(made).update(teacher=model, validation=blocks, train=blocks, text_key="0", task=lambda *_: 0.5)
        return made

    return started


def test_a_study_that_goes_on_compares_with_the_whole_model(study, model, blocks):
    for removed in ([0], [1]):  # each by a study that has measured nothing before
        found = study().without(str(removed), removed)
        with bypassed([model.model.layers[i] for i in removed]):
            without = perplexity(model, blocks).loss_nats
        assert found["gained"] == pytest.approx(without - perplexity(model, blocks).loss_nats, abs=1e-5)
        assert found["gained"] != pytest.approx(0, abs=1e-3)
