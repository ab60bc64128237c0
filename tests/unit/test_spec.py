import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from minitron_cli.spec import Quantity, Reading, Spec


class Example(Spec):
    size: int = 1
    """How large it is."""
    rate: float = 0.5
    parts: tuple[int, ...] = ()


def test_a_spec_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Example().size = 2


def test_an_unknown_key_is_an_error():
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Example(sise=2)


@pytest.mark.parametrize("value", ["nan", float("nan"), float("inf"), "-inf"])
def test_numbers_are_finite(value):
    with pytest.raises(ValidationError, match="finite number"):
        Example(rate=value)


def test_attribute_docstrings_are_the_help():
    assert Example.model_json_schema()["properties"]["size"]["description"] == "How large it is."


def test_a_spec_survives_json():
    spec = Example(size=3, parts=(1, 2))
    assert Example.model_validate(spec.model_dump(mode="json")) == spec


read = TypeAdapter(Quantity).validate_python


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4B", 4 * 10**9),
        ("4b", 4 * 10**9),
        ("1.5B", 1_500_000_000),
        ("4.51B", 4_510_000_000),
        ("0.1k", 100),
        ("350M", 350_000_000),
        ("64k", 64_000),
        ("1T", 10**12),
        ("4_000_000", 4_000_000),
        ("4,000,000", 4_000_000),
        (" 12 ", 12),
        (7, 7),
        (4e9, 4_000_000_000),
        ("8_030_261_248", 8_030_261_248),
    ],
)
def test_quantities(text, value):
    found = read(text)
    assert found == value
    assert type(found) is int


@pytest.mark.parametrize(
    "text",
    [
        "",
        "B",
        "-1",
        "4 B B",
        "4Q",
        "1e9",
        "0x10",
        "nan",
        "inf",
        True,
        None,
        [4],
        "4B4",
        "1..5k",
        "½k",
        "2,5M",
        "1,5B",
        "12,34,567",
    ],
)
def test_what_is_no_quantity(text):
    with pytest.raises(ValidationError, match=r"is not a quantity: write 4B, 1\.5B, 350M, 64k or a whole number"):
        read(text)


@pytest.mark.parametrize("text", ["0", 0, "0.5", "1.0000001k", 2.5])
def test_what_is_no_whole_number(text):
    with pytest.raises(ValidationError, match="is not a whole number of at least 1"):
        read(text)


@pytest.mark.parametrize(("text", "value"), [(20, 20.0), ("12.5", 12.5), ("80 %", "80%")])
def test_measured_values(text, value):
    assert TypeAdapter(Reading).validate_python(text) == value


@pytest.mark.parametrize("text", ["20ms", "-5%", "0", -1, "nan", True, None, "1e400"])
def test_what_is_no_measured_value(text):
    with pytest.raises(ValidationError, match="is not a number above 0: write 20 or 12"):
        TypeAdapter(Reading).validate_python(text)


def test_specs_and_recipes_are_read_without_the_libraries_that_do_the_work():
    """The command line's help must not wait for them."""
    specs = (
        "spec",
        "data.sources",
        "prune.config",
        "search.config",
        "importance.config",
        "distill.config",
        "evaluate.config",
    )
    heavy = "torch transformers datasets lm_eval matplotlib numpy pyarrow tokenizers huggingface_hub"
    imports = "; ".join(f"import minitron_cli.{module}" for module in specs)
    script = (
        f"import sys; {imports}; from minitron_cli import recipe; recipe.load('demo'); recipe.schema(); "
        f"print(sorted(set('{heavy}'.split()) & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"
