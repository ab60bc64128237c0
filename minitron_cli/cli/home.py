"""A home directory for a user who has none, as in a container that runs under a random user id."""

import atexit
import os
import shutil
import tempfile

_provided: list[str] = []


def provide() -> None:
    """Set HOME to a private directory until the program ends if the user has neither HOME nor an entry in passwd.

    Otherwise caches could not be found, or be written to a directory called `~`. USER is set as well, because
    libraries ask for the user's name.
    """
    if os.path.expanduser("~") != "~":
        return
    _provided.append(tempfile.mkdtemp(prefix="minitron-home-"))
    atexit.register(remove)
    os.environ["HOME"] = _provided[0]
    os.environ.setdefault("USER", str(os.getuid()))


def remove() -> None:
    """Remove the directory, if one was made."""
    for home in _provided:
        shutil.rmtree(home, ignore_errors=True)
