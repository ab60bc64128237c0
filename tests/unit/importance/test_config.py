"""What a user says about calibration."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from minitron_cli.importance.config import ImportanceConfig


def test_the_default_is_the_papers():
    assert ImportanceConfig().samples == 1024


@pytest.mark.parametrize("option", [{"samples": 0}, {"batch_size": 0}, {"sample": 3}])
def test_nonsense_is_refused(option):
    with pytest.raises(ValidationError):
        ImportanceConfig(**option)


def test_layers_are_removed_only_where_it_is_said_or_needed():
    assert ImportanceConfig().removal_lengths == ()
    assert ImportanceConfig().settled(removes_layers=True).removal_lengths == (1,)
    for said in (True, False):
        assert ImportanceConfig(layer_removal=said).settled(removes_layers=not said).layer_removal is said


def test_it_is_importable_without_torch():
    code = "import sys, minitron_cli.importance.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
