"""What came of the trials, as a table for people."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tests.faults.campaign.programs import Ended

LONGEST_SENTENCE = 400


class Outcome(NamedTuple):
    """One trial."""

    group: str
    verb: str
    trial: str
    problems: tuple[str, ...] = ()
    command: str = ""
    """What shows a problem again."""


def sentence_of(ended: Ended, codes: Sequence[int]) -> list[str]:
    """What is wrong with how a command ended: a traceback, another code, not one line that begins with `error: `."""
    wrong = ["a traceback"] if "Traceback" in ended.err else []
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    if ended.code not in codes:
        wrong.append(f"exit code {ended.code}, not {' or '.join(map(str, codes))}: {ended.err.strip()[-300:]}")
    if ended.code and len(lines) != 1:
        wrong.append(f"{len(lines)} lines begin with `error: `: {ended.err.strip()[-300:]}")
    wrong += [f"a sentence of {len(line)} characters" for line in lines if len(line) > LONGEST_SENTENCE]
    return wrong


def table(done: Iterable[Outcome]) -> list[str]:
    """Markdown rows: group, verb, tried, right, wrong; with a sum for each group."""
    tried: Counter[tuple[str, str]] = Counter()
    wrong: Counter[tuple[str, str]] = Counter()
    for outcome in done:
        for key in ((outcome.group, outcome.verb), (outcome.group, "**all**")):
            tried[key] += 1
            wrong[key] += bool(outcome.problems)
    rows = [
        f"| {group} | {verb} | {n} | {n - wrong[group, verb]} | {wrong[group, verb]} |"
        for (group, verb), n in _sorted(tried)
    ]
    return ["| group | verb or kind | tried | right | wrong |", "|---|---|---:|---:|---:|", *rows]


def _sorted(tried: Counter[tuple[str, str]]) -> list[tuple[tuple[str, str], int]]:
    order = list(dict.fromkeys(group for group, _ in tried))
    return sorted(tried.items(), key=lambda item: (order.index(item[0][0]), item[0][1] == "**all**", item[0][1]))


def wrong_ones(done: Iterable[Outcome]) -> list[str]:
    """A line for each trial that went wrong."""
    wrong = (one for one in done if one.problems)
    return [f"- {one.group}, {one.verb}, {one.trial}: {'; '.join(one.problems)} (`{one.command}`)" for one in wrong]
