"""A copy of the package with one more file and one more name, as somebody who extends it would leave it."""

import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[1]


class ExtendedPackage:
    """The package in a directory of its own, beside the named test modules, which then test the copy."""

    def __init__(self, directory: Path, tests: tuple[str, ...] = ()) -> None:
        self.root = directory
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "minitron_cli", directory / "minitron_cli", ignore=ignored)
        shutil.copytree(ROOT / "recipes", directory / "recipes", ignore=ignored)
        for test in tests:
            (directory / test).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / test, directory / test)

    def add(self, module: str, text: str) -> None:
        """Write a new file."""
        path = self.root / module
        assert not path.exists(), f"{module} is not new"
        path.write_text(text)

    def name(self, module: str, changes: Mapping[str, str]) -> None:
        """Put a name into a file: each key occurs once and is replaced by its value."""
        path = self.root / module
        text = path.read_text()
        for old, new in changes.items():
            assert text.count(old) == 1, f"{module} has {old!r} {text.count(old)} times"
            text = text.replace(old, new)
        path.write_text(text)

    def run(self, script: str, *arguments: str) -> str:
        """Output of a script in a fork of this process, which has the libraries and imports the package from the copy.

        AssertionError with all that it wrote if it fails.
        """
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            if not (pid := os.fork()):
                self._run_and_exit(script, arguments, output.fileno(), errors.fileno())
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            for file in (output, errors):
                file.seek(0)
            written = output.read().decode()
            assert code == 0, written + errors.read().decode()
        return written

    def _run_and_exit(self, script: str, arguments: tuple[str, ...], output: int, errors: int) -> NoReturn:
        code = 1
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        try:
            os.dup2(output, 1)
            os.dup2(errors, 2)
            for name in [name for name in sys.modules if name.split(".")[0] in ("minitron_cli", "tests")]:
                del sys.modules[name]
            os.chdir(self.root)
            sys.path.insert(0, str(self.root))
            sys.argv = ["-c", *arguments]
            exec(script, {"__name__": "__main__"})
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)
