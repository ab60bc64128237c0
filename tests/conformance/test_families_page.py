"""docs/families.md says what the tables say."""

from pathlib import Path

from transformers import CONFIG_MAPPING

from minitron_cli.model.axes import PRUNABLE
from minitron_cli.model.families import FAMILIES
from minitron_cli.model.family import Family

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
AXES = ("ffn", "head", "kv_head", "hidden", "expert", "layer")


def cell(family: Family, axis: str) -> str:
    """Whether an axis can be pruned, in the words that the page explains."""
    if axis not in family.sizes:
        return "-"
    if axis == "layer":
        by_kind = "by kind" if family.layer_kinds else "exact"
        return "whole periods" if family.layer_pattern or family.is_periodic else by_kind
    if axis in family.not_prunable:
        return "refused"
    other = {"head": "hidden", "hidden": "head"}.get(axis, "")
    if other and "head_dim" not in family.sizes:
        return f"with {other}"
    word = "corrected" if axis in {c.axis for c in family.corrections.values()} else "exact"
    if other and family.head_dim_table:
        return f"{word}, LongRoPE with {other}"
    if axis in ("hidden", "ffn") and family.width_multiple > 1:
        word = f"{word}, by {family.width_multiple}"
    if axis == "hidden" and family.quotients:
        return f"{word}, divisors"
    if other and family.hidden_is_multiple_of_heads:
        return f"{word}, multiples"
    return word


def table() -> str:
    head = [" | ".join(["| family", *AXES]) + " |", "|---" * (len(AXES) + 1) + "|"]
    cells = {name: [cell(FAMILIES[name], axis) for axis in AXES] for name in sorted(FAMILIES)}
    rows = [" | ".join([f"| {name}", *row]) + " |" for name, row in cells.items()]
    return "\n".join([*head, *rows])


def test_the_page_says_what_the_tables_say():
    assert set(PRUNABLE) >= set(AXES)
    assert table() in PAGE.read_text(), f"put this into {PAGE.name}:\n{table()}"


def test_every_word_of_the_table_is_explained():
    text = PAGE.read_text()
    words = {part for family in FAMILIES.values() for axis in AXES for part in cell(family, axis).split(", ")}
    for word in words - {"-"}:
        assert f"**{word}**" in text, word
    for family in FAMILIES.values():
        assert all(reason in " ".join(text.split()) for reason in family.not_prunable.values())


def test_the_model_types_without_a_table_have_none():
    """Each row begins with them, and the text counts them."""
    section = PAGE.read_text().split("## Model types without a table")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")][2:]
    names = [name.strip() for row in rows for name in row.split(",")]
    assert set(names) <= set(CONFIG_MAPPING) - set(FAMILIES)
    count = len(set(names))
    assert f"Of the {len(FAMILIES) + count} model types" in section
    assert f"{len(FAMILIES)} have a table above" in section
    assert f"The other {count} {'is' if count == 1 else 'are'} refused" in section
