"""`minitron data`: what models read of a text."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from typer import Option

from minitron_cli.cli.options import Arguments, BuildOptions, DataOptions, RecipeOption, WorkspaceOptions
from minitron_cli.errors import InputError

if TYPE_CHECKING:
    from minitron_cli.cli.sessions import Session
    from minitron_cli.data.block_text import Piece
    from minitron_cli.data.pack import Blocks
    from minitron_cli.data.split import SplitName

NOT_COUNTED = ("\N{MATHEMATICAL LEFT WHITE SQUARE BRACKET}", "\N{MATHEMATICAL RIGHT WHITE SQUARE BRACKET}")
"""What stands around text that does not count where there are no colors."""
PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
"""Control character -> the sign that is printed for it, because a text must not control the terminal."""


class View(NamedTuple):
    """A block, for printing."""

    block: int
    tokens: int
    counted: int
    pieces: "list[Piece]"


def inspect(
    where: WorkspaceOptions,
    text: DataOptions,
    words: Arguments = None,
    recipe: RecipeOption = None,
    split: Annotated[Literal["train", "validation"], Option(help="Which part of the text.")] = "train",
    block: Annotated[
        list[int] | None,
        Option(min=0, help="Number of a block, from 0. Repeat for several.", show_default="0"),
    ] = None,
) -> None:
    """Print blocks of text as a model reads them: what counts, special tokens, and where documents begin.

    What counts is trained on and measured, and is printed in green; the rest is context. Where there are no colors
    (no terminal, or NO_COLOR), the rest stands in white square brackets.

    For example: minitron data inspect meta-llama/Llama-3.2-3B-Instruct --data chats.jsonl --format chat --block 3
    """
    from minitron_cli.cli import console, sessions

    with sessions.opened(BuildOptions(**vars(where)), "data", words, recipe=recipe, text=text) as session:
        total, views = _read(session, split, block or [0])
    if where.json:
        console.data({"blocks": total, "shown": [_json(view) for view in views]})
        return
    for view in views:
        console.styled(_printed(view, total, is_styled=console.has_colors()))


def _read(session: "Session", split: "SplitName", numbers: Sequence[int]) -> tuple[int, list[View]]:
    """Number of blocks of the session's text, and a view of some of them."""
    from minitron_cli.checkpoint import hf, model_names
    from minitron_cli.inputs.token_blocks import blocks_of

    path = model_names.resolve(session.model()).path
    blocks = blocks_of(session.context, session.data(), split, path)
    tokenizer = hf.load_tokenizer(path) if hf.has_tokenizer(path) else None
    return len(blocks), [_view(blocks, i, tokenizer, split) for i in numbers]


def _view(blocks: "Blocks", i: int, tokenizer: Any, split: str) -> View:
    from minitron_cli.data.block_text import pieces

    if i >= len(blocks):
        raise InputError(f"--block {i}: the {split} text has {len(blocks):,} blocks; give 0 to {len(blocks) - 1}")
    found = pieces(blocks, i, tokenizer)
    return View(i, blocks.sequence_length, sum(piece.tokens for piece in found if piece.counts), found)


def _json(view: View) -> dict[str, Any]:
    return view._asdict() | {"pieces": [piece._asdict() for piece in view.pieces]}


def _printed(view: View, total: int, *, is_styled: bool) -> Iterator[tuple[str, str]]:
    """(text, style) of all that is printed of a block."""
    yield f"block {view.block} of {total:,}: {view.tokens:,} tokens, {view.counted:,} count\n", "bold"
    last = None
    for piece in view.pieces:
        if piece.document != last:
            yield "" if last is None else "\n", ""
            yield f"--- document {piece.document} ---\n", "bold cyan"
            last = piece.document
        yield from _styled(piece) if is_styled else _bracketed(piece)
    yield "\n", ""


def _styled(piece: "Piece") -> Iterable[tuple[str, str]]:
    color = "green" if piece.counts else "dim"
    return [(piece.text.translate(PICTURES), f"{color} reverse" if piece.special else color)]


def _bracketed(piece: "Piece") -> Sequence[tuple[str, str]]:
    before, after = ("", "") if piece.counts else NOT_COUNTED
    return [(f"{before}{piece.text.translate(PICTURES)}{after}", "")]
