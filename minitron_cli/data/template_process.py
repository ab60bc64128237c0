"""Renders chat templates for another process, in bounds that end this process alone. Run as a script.

A template is code from a checkpoint: its loops, macros and filters can ask for any time and memory. Requests and
answers are lines of JSON. A render that exceeds its processor time ends the process by SIGPROF, in whatever code it is.
"""

import json
import os
import resource
import signal
import sys
from datetime import datetime
from typing import Any

MEMORY_BYTES = 1 << 29
CHARACTERS = 1 << 24
"""Output of one render; twice the length of its input is allowed beyond it."""
SECONDS = 0.5
"""Processor time of one render; SECONDS_PER_CHARACTER of its input are allowed beyond it."""
SECONDS_PER_CHARACTER = 1e-6
DAY = datetime(2024, 7, 26)


def main() -> None:
    """Answer one request per line until the other process is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the other process decides when to stop
    from transformers.utils import chat_template_utils

    _limit_memory()
    for line in sys.stdin:
        answer = _answer(chat_template_utils, json.loads(line), len(line))
        try:
            print(json.dumps(answer), flush=True)
        except BrokenPipeError:  # the other process was killed meanwhile
            os._exit(0)  # the interpreter would try to write the rest


def _limit_memory() -> None:
    try:
        with open("/proc/self/statm") as file:
            own_bytes = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # a system without /proc
        own_bytes = 0
    limit = own_bytes + MEMORY_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _answer(library: Any, request: dict[str, Any], size: int) -> dict[str, Any]:
    try:
        if "renders" not in request:
            return {"variables": _variables(library, request["template"])}
        return {"texts": [_text(library, request, size, *render) for render in request["renders"]]}
    except MemoryError:
        return {"error": f"it needs more than {MEMORY_BYTES >> 20} MiB of memory"}
    except Exception as e:  # whatever a template can raise
        return {"error": next(iter(str(e).splitlines()), type(e).__name__)[:300]}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _variables(library: Any, template: str) -> list[str]:
    """Names that the template reads and does not set."""
    from jinja2 import meta

    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    environment = library._compile_jinja_template(template).environment
    return sorted(meta.find_undeclared_variables(environment.parse(template)))


def _text(library: Any, request: dict[str, Any], size: int, stop: int, asks: bool) -> str:
    """Text of the first `stop` messages; with `asks`, followed by what the template writes before an answer."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS + SECONDS_PER_CHARACTER * size)
    library._compile_jinja_template(request["template"]).environment.globals["strftime_now"] = DAY.strftime
    rendered, _ = library.render_jinja_template(
        conversations=[request["messages"][:stop]],
        tools=request["tools"],
        chat_template=request["template"],
        add_generation_prompt=asks,
        **request["variables"],
    )
    if len(rendered[0]) > CHARACTERS + 2 * size:
        raise ValueError(f"it writes {len(rendered[0]):,} characters for a row of {size:,}")
    return str(rendered[0])


if __name__ == "__main__":
    main()
