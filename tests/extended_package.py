"""A copy of the package with one more file and one more name, as somebody who extends it would leave it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

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

    def python(self, *arguments: str) -> str:
        """Output of Python with these arguments, in the copy. AssertionError with all that it wrote if it fails."""
        environment = os.environ | {"PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.root, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
