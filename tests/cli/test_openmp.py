"""Threads wait briefly for each other, unless the user says otherwise."""

import os
import subprocess
import sys

import pytest

from minitron_cli.cli.openmp import SPINS, wait_briefly


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_a_user_s_own_setting_is_kept(given, spins):
    environment = dict(given)
    wait_briefly(environment)
    assert environment.get("GOMP_SPINCOUNT") == spins


@pytest.mark.slow
def test_openmp_reads_the_setting_that_the_program_made():
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import sys; from minitron_cli.cli import app; sys.argv = ['minitron', 'env']; app.main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | {"OMP_DISPLAY_ENV": "VERBOSE"}, capture_output=True, text=True
    )
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("torch was built with another OpenMP than GNU's")
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in done.stderr
