"""A model that does not fit the limits of the process: exit 3 and one sentence, whichever library fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, os, resource, sys, tempfile
import datasets, transformers, transformers.models.llama.modeling_llama
from minitron_cli import stages
from minitron_cli.checkpoint import hf
from minitron_cli.cli.app import main

load_model = hf.load_model

def run(limit):
    def limited(*arguments, **options):
        limit()
        return load_model(*arguments, **options)

    hf.load_model = limited
    main()

def out_of_memory():
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size, size))

def out_of_handles():
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))

ended = []
for limit in (out_of_memory, out_of_handles):
    with tempfile.TemporaryFile() as said:
        if not (pid := os.fork()):
            os.dup2(said.fileno(), 2)
            said.close()
            run(limit)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said.seek(0)
        ended.append((code, said.read().decode()))
print(json.dumps(ended))
"""
"""The program under each limit, in forks of a process that has imported what it imports."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not limit the address space")
def test_a_limit_reached_while_a_model_loads_is_the_environment(tiny: Path, tmp_path: Path) -> None:
    words = ["importance", tiny / "model", "--data", tiny / "text.jsonl", "--sequence-length", "16", "--samples", "4"]
    command = [sys.executable, "-c", PROGRAM, *map(str, words), "--runs-dir", str(tmp_path), "-q"]
    ended = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    for (code, said), message in zip(ended, ("out of memory", "too many open files"), strict=True):
        assert code == 3, said
        assert message in said
        assert said.startswith("error: ")
        assert said.count("\n") == 1


def test_a_user_without_a_home_gets_one_for_the_run(tmp_path: Path) -> None:
    program = (
        "import os, pwd, sys\n"
        "def unknown(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = unknown; os.environ.pop('HOME', None); os.environ.pop('USER', None)\n"
        "from minitron_cli.cli import home\n"
        "home.provide(); first = os.environ['HOME']; home.provide()\n"
        "import getpass, pathlib\n"
        "assert pathlib.Path.home() == pathlib.Path(first) and os.environ['HOME'] == first and getpass.getuser()\n"
        "print(first)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not os.path.exists(ended.stdout.strip())


def test_a_home_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from minitron_cli.cli import home

    monkeypatch.setenv("HOME", str(tmp_path))
    home.provide()
    assert os.environ["HOME"] == str(tmp_path)
