"""The program as a whole: help, exit codes, messages, signals, pipes."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console

from minitron_cli import __version__, errors, progress, recipe
from minitron_cli.cli import console, sessions
from minitron_cli.cli.app import COMMANDS
from minitron_cli.cli.options import BuildOptions
from tests.cli.program import Run

PROGRAM = [sys.executable, "-m", "minitron_cli"]


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make `minitron recipes ls` raise."""

    def shipped() -> dict[str, Path]:
        raise error

    monkeypatch.setattr(recipe, "shipped", shipped)


@pytest.mark.slow
def test_help_needs_no_library_but_those_that_print_it() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from minitron_cli.cli.app import app, COMMANDS\n"
        "for words in ([], *[[name] for name in COMMANDS]):\n"
        "    assert CliRunner().invoke(app, [*words, '--help']).exit_code == 0, words\n"
        "light = {'pydantic', 'ruamel.yaml', 'huggingface_hub'} & set(sys.modules)\n"
        "assert CliRunner().invoke(app, ['recipes', 'ls', '--help']).exit_code == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'lm_eval', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "assert not light | heavy, light | heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"minitron {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does(run: Run, name: str) -> None:
    result = run(name, "-h")
    assert result.exit_code == 0
    assert re.search(rf"^\s*Usage: .*\b{name}\b.*\n\s*\n\s*[A-Z].*\w", result.stdout, re.MULTILINE), result.stdout


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (errors.RecipeError("no; do this"), 2, "error: no; do this"),
        (errors.CheckpointError("no; do this"), 2, "error: no; do this"),
        (errors.EnvironmentFault("no; do this"), 3, "error: no; do this"),
        (errors.RunFailed("no; do this"), 1, "error: no; do this"),
        (errors.GateMissed("no; do this"), 4, "error: no; do this"),
        (errors.Interrupted("stopped", signal.SIGINT), 130, "stopped"),
        (errors.Interrupted("stopped", signal.SIGTERM), 143, "stopped"),
        (KeyboardInterrupt(), 130, "stopped"),
        (OSError(errno.ENOSPC, "x", "/a/b"), 3, "error: /a/b: no space left on the device; free some space, then run"),
        (OSError(errno.EDQUOT, "x", "/a/b"), 3, "error: /a/b: the disk quota is used up"),
        (PermissionError(errno.EACCES, "x", "/a/b"), 3, "error: /a/b: permission denied; choose another path"),
        (PermissionError(errno.EPERM, "x", "/a/b"), 3, "error: /a/b: the operation is not permitted"),
        (OSError(errno.EROFS, "x", "/a/b"), 3, "error: /a/b: the file system is read-only"),
        (OSError(errno.EIO, "x"), 3, "error: the device failed to read or write"),
        (OSError(errno.EMFILE, "x"), 3, "error: too many open files"),
        (OSError(errno.ENAMETOOLONG, "x", "/a/b"), 3, "error: /a/b: the name is too long"),
        (OSError(errno.ELOOP, "x", "/a/b"), 3, "error: /a/b: a link leads back to itself"),
        (BlockingIOError(errno.EAGAIN, "fork"), 3, "error: too many threads or processes; raise"),
        (RuntimeError("can't start new thread"), 3, "error: too many threads or processes"),
        (Exception("Resource temporarily unavailable (os error 11)"), 3, "error: too many threads or processes"),
        (Exception("Error: Too many open files (os error 24)"), 3, "error: too many open files; raise the limit"),
        (RuntimeError("unable to mmap 9 bytes from file: Cannot allocate memory (12)"), 3, "error: out of memory"),
        (RuntimeError("CUDA error: out of memory"), 3, "error: out of memory; lower the batch size"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), 3, "error: out of memory"),
        (ImportError("libx.so: failed to map segment from shared object"), 3, "error: out of memory"),
        (MemoryError(), 3, "error: out of memory; lower the batch size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 3, "error: out of memory"),
        (RuntimeError("[enforce fail] unexpected pos 64 vs 0"), 3, "error: no space left on the device"),
        (RuntimeError("write: No space left on device (os error 28)"), 3, "error: no space left on the device"),
        (KeyError("layer"), 1, "error: unexpected KeyError: 'layer'; run again with --debug to see where"),
        (FileNotFoundError(errno.ENOENT, "gone", "/a"), 1, "error: unexpected FileNotFoundError"),
    ],
)
def test_every_error_is_one_line_and_one_exit_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    fail_with(monkeypatch, error)
    result = run("recipes", "ls")
    assert result.exit_code == code
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert not result.stdout


def test_torch_running_out_of_memory_is_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    fail_with(monkeypatch, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert run("recipes", "ls").exit_code == 3


def test_a_library_error_about_a_full_disk_is_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    outer = ValueError("could not build the dataset")
    outer.__cause__ = OSError(errno.ENOSPC, "x", "/cache")
    fail_with(monkeypatch, outer)
    result = run("recipes", "ls")
    assert result.exit_code == 3
    assert "/cache: no space left" in result.stderr


@pytest.mark.parametrize(
    ("error", "leaves"),
    [(None, True), (errors.Interrupted("stopped", signal.SIGTERM), True), (errors.RunFailed("it diverged"), False)],
)
def test_one_of_several_processes_leaves_the_others_unless_it_fails(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception | None, leaves: bool
) -> None:
    """Threads of the group that outlive a program abort it; after a failure the others may be waiting for this one."""
    from torch import distributed

    if error:
        fail_with(monkeypatch, error)
    monkeypatch.setenv("RANK", "0")
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        run("recipes", "ls")
        assert distributed.is_initialized() != leaves
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


@pytest.mark.parametrize(("rank", "code"), [("1", 143), (None, 1)])
def test_an_error_of_a_process_that_is_stopping_is_that_another_left_first(
    run: Run, monkeypatch: pytest.MonkeyPatch, rank: str | None, code: int
) -> None:
    def shipped() -> dict[str, Path]:
        progress.request_stop(signal.SIGTERM)
        raise RuntimeError("connection closed by peer")

    monkeypatch.setattr(recipe, "shipped", shipped)
    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    assert run("recipes", "ls").exit_code == code


def test_debug_shows_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, KeyError("layer"))
    result = run("recipes", "ls", "--debug")
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert "KeyError: 'layer'" in result.stderr


@pytest.mark.parametrize(
    "arguments", [["prnue"], ["prune", "--taget", "4B"], ["inspect"], ["run"], ["eval", "--bogus"]]
)
def test_misuse_exits_with_2(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert not result.stdout


def test_a_misspelt_command_is_suggested(run: Run) -> None:
    assert "Did you mean 'prune'" in run("prnue").stderr


def test_markup_in_a_message_is_text(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, errors.RecipeError("[bold]x[/bold] [link=y]: change it"))
    assert "[bold]x[/bold] [link=y]" in run("recipes", "ls").stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_the_next_loop_and_the_handler_is_taken_back(
    run: Run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    steps = []

    def shipped() -> dict[str, Path]:
        with progress.track("work", 10) as step:
            for i in range(10):
                steps.append(i)
                if i == 3:
                    os.kill(os.getpid(), number)
                step()
        return {}

    monkeypatch.setattr(recipe, "shipped", shipped)
    result = run("recipes", "ls")
    assert result.exit_code == code
    assert steps == [0, 1, 2, 3]
    assert "run the same command again to continue" in result.stderr
    assert signal.signal(number, before) is signal.SIG_IGN


@pytest.mark.slow
def test_a_second_interrupt_ends_the_program_at_once() -> None:
    code = (
        "import os, signal, time; from minitron_cli import recipe; from minitron_cli.cli.app import main\n"
        "def shipped():\n"
        "    os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
        "recipe.shipped = shipped\n"
        "import sys; sys.argv = ['minitron', 'recipes', 'ls']; main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 130
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("words", "code"), [(["recipes", "schema"], 141), (["--help"], 1)])
def test_a_reader_that_goes_away_is_no_error(words: list[str], code: int) -> None:
    program = "import os, sys; r, w = os.pipe(); os.dup2(w, 1); os.close(w); os.close(r)\n"
    program += f"sys.argv = ['minitron', *{words}]; from minitron_cli.cli.app import main; main()"
    ended = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (code, "")


@pytest.mark.slow
def test_the_module_is_the_program() -> None:
    ended = subprocess.run([*PROGRAM, "recipes", "ls", "--json"], capture_output=True, text=True, check=True)
    assert set(json.loads(ended.stdout)) == set(recipe.shipped())
    assert ended.stderr == ""


def test_defaults_in_the_help_are_the_specs_own() -> None:
    from pydantic import TypeAdapter

    from minitron_cli.cli import distill, evaluate, importance, prune, search
    from minitron_cli.distill.config import DistillConfig
    from minitron_cli.evaluate.config import EvaluateConfig
    from minitron_cli.importance.config import ImportanceConfig
    from minitron_cli.prune.config import Budget, PruneConfig
    from minitron_cli.search.config import Retrain, SearchConfig
    from minitron_cli.spec import Quantity

    specs = {
        importance.importance: [ImportanceConfig],
        search.search: [SearchConfig, Budget, Retrain],
        prune.prune: [PruneConfig, Budget],
        distill.distill: [DistillConfig],
        evaluate.evaluate: [EvaluateConfig],
    }
    compared = 0
    for command, owners in specs.items():
        for name, annotation in command.__annotations__.items():
            shown = next((getattr(m, "show_default", None) for m in getattr(annotation, "__metadata__", ())), None)
            field = {"retrain_tokens": "tokens"}.get(name, name)
            owner = next((o for o in reversed(owners) if field in o.model_fields), None)
            if not isinstance(shown, str) or owner is None or name == "axes":
                continue
            default = owner.model_fields[field].default
            said = {"yes": True, "no": False, "only if the recipe prunes layers": "auto"}.get(shown, shown)
            if isinstance(default, int) and not isinstance(default, bool):
                said = TypeAdapter(Quantity).validate_python(shown)
            assert (float(said) if isinstance(default, float) else said) == default, (command.__name__, name)
            compared += 1
    assert compared >= 14


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_is_about_to_be_done_is_said_at_once_and_on_a_terminal_until_something_else_is(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.StringIO()
    monkeypatch.setattr(console, "_stderr", lambda: Console(file=written, force_terminal=is_terminal, width=80))
    terminal = console.Terminal(quiet=False)
    progress.show_on(terminal)
    with progress.announced("prune in runs/small"):
        assert "prune in runs/small" in written.getvalue()
        assert len(terminal._bars.tasks) == is_terminal
        progress.say("pruning")
        assert not terminal._bars.tasks
    progress.show_on(None)
    assert written.getvalue().count("pruning") == 1
    so_far = written.getvalue()
    console.Terminal(quiet=True).begin("prune in runs/small")
    assert written.getvalue() == so_far


@pytest.mark.slow
def test_every_verb_that_works_says_so_before_a_library_that_takes_seconds_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from minitron_cli.cli import console\n"
        "from minitron_cli.cli.app import app\n"
        "class Said(Exception): pass\n"
        "def begin(self, text): said.append(text); raise Said\n"
        "console.Terminal.begin = begin\n"
        "for words in map(str.split, sys.argv[1:]):\n"
        "    said = []; CliRunner().invoke(app, words)\n"
        "    heavy = {'torch', 'transformers', 'datasets', 'lm_eval', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "    assert said and said[0].startswith(f'minitron {words[0]}') and not heavy, (words, said, heavy)\n"
    )
    of_model = [f"{verb} MODEL" for verb in ("importance", "search", "prune", "correct", "distill", "eval")]
    lines = [*of_model, "report --run some", "run qwen3-8b-to-6b --dry-run", "run qwen3-8b-to-6b", "demo"]
    environment = os.environ | {"MINITRON_RUNS": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code, *lines], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_what_is_left_of_a_resumed_loop_is_told_by_its_own_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """90 of 100 steps were done before; one step takes 20 seconds now."""
    now = 1000.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    terminal = console.Terminal(quiet=False)
    step = terminal.start("distill", 100, "steps")
    step(90)
    for _ in range(2):
        now += 20
        step(1, loss=0.5)
    terminal.finish(step)
    assert capsys.readouterr().err.splitlines() == [
        "distill  91/100 steps  loss 0.5  3:00 left",
        "distill  92/100 steps  loss 0.5  2:40 left",
        "distill  92/100 steps  loss 0.5  in 0:40",
    ]


def test_a_finished_loop_has_one_line_and_a_small_file_its_kilobytes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    terminal = console.Terminal(quiet=False)
    for total, written in ((400_000, "400/400 kB"), (12_000_000, "12/12 MB")):
        step = terminal.start("tokenize", total, "bytes")
        now += 20
        step(total)
        terminal.finish(step)
        assert capsys.readouterr().err.splitlines() == [f"tokenize  {written}  in 0:20"]


def test_a_stopped_command_that_overwrites_goes_on_when_it_is_given_again(tmp_path: Path) -> None:
    """The advice "run the same command again to continue" is true with --overwrite, too."""

    def since(*words: str, stopped: bool = False, overwrite: bool = True) -> int | None:
        how, found = BuildOptions(runs_dir=tmp_path, run="one", overwrite=overwrite), []
        with suppress(errors.Interrupted), sessions.opened(how, "prune", words) as session:
            found.append(session.context.overwriting_since)
            if stopped:
                raise errors.Interrupted("stopped", signal.SIGTERM)
        return found[0]

    (tmp_path / "one" / "prune").mkdir(parents=True)
    (tmp_path / "one" / "prune" / "current").write_text("a result")
    first = since("rounds=2", stopped=True)
    assert since("rounds=2", stopped=True) == first
    assert since("rounds=3", stopped=True) != first
    assert since("rounds=2", overwrite=False) is None
    assert since("rounds=2") != first


def test_a_flag_of_a_section_keeps_the_settings_that_a_recipe_has(tmp_path: Path) -> None:
    needed = "model: m\ndata: {sources: [{kind: python_help}]}\nprune: {shape: {ffn: 8}}\n"
    (tmp_path / "r.yaml").write_text(needed + "evaluate: {speed: {batch_size: 8}}")
    flags = {("speed",): {}, ("cloze",): {}}
    how = BuildOptions(runs_dir=tmp_path, run="one", dry_run=True)
    with sessions.opened(how, "evaluate", recipe=str(tmp_path / "r.yaml"), flags=flags) as session:
        assert session.requested.values["evaluate"] == {"speed": {"batch_size": 8}, "cloze": {}}
