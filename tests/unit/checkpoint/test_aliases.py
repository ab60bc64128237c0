"""The table of short names: valid, and read only when a name is asked for."""

import subprocess
import sys

import pytest
from transformers import CONFIG_MAPPING

from minitron_cli.checkpoint.aliases import aliases


def test_every_alias_names_a_repository_and_a_known_model_type() -> None:
    assert len(aliases()) >= 20
    for name, alias in aliases().items():
        assert alias.hub_id.count("/") == 1, name
        assert alias.config["model_type"] in CONFIG_MAPPING, name
        assert isinstance(alias.config["tie_word_embeddings"], bool), name


@pytest.mark.slow
def test_the_table_is_read_when_it_is_asked_for() -> None:
    code = "import sys, minitron_cli.checkpoint.hf; print('ruamel.yaml' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
