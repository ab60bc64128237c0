"""Rows of instructions and answers, as Stanford's Alpaca has them."""

from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from minitron_cli.data.conversation import Conversation
from minitron_cli.data.formats.base import BaseFormat
from minitron_cli.data.formats.completion import Completion
from minitron_cli.data.loss_spans import LossSpans
from minitron_cli.data.messages import Message
from minitron_cli.data.rows import Row, text_value
from minitron_cli.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TASK = "Below is an instruction that describes a task"
PAIRED = ", paired with an input that provides further context"
REQUEST = ". Write a response that appropriately completes the request.\n\n"


class Instruction(NamedTuple):
    """An instruction, what it is about, and the answer, which alone is scored."""

    instruction: str
    input: str
    output: str
    system: str = ""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier questions and answers."""

    def loss_spans(self, tokenizer: "PreTrainedTokenizerBase", where: str) -> list[LossSpans]:
        """A conversation; for a tokenizer without a chat template, Alpaca's own prompt and the answer."""
        if getattr(tokenizer, "chat_template", None):
            return Conversation(self._messages()).loss_spans(tokenizer, where)
        if self.system or self.history:
            raise DataError(
                f"{where}: system and history need a chat template, which the tokenizer does not have; drop the columns"
            )
        return Completion(self._prompt(), self.output).loss_spans(tokenizer, where)

    def _messages(self) -> tuple[Message, ...]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        question = "\n".join(text for text in (self.instruction, self.input) if text)
        turns = [
            {"role": role, "content": text}
            for pair in (*self.history, (question, self.output))
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        return (*system, *turns)

    def _prompt(self) -> str:
        """Prompt of https://github.com/tatsu-lab/stanford_alpaca."""
        paired, context = (PAIRED, f"### Input:\n{self.input}\n\n") if self.input else ("", "")
        return f"{TASK}{paired}{REQUEST}### Instruction:\n{self.instruction}\n\n{context}### Response:\n"


class AlpacaFormat(BaseFormat):
    """An instruction, an input if there is one, and the output, which alone is scored and trained on.

    `history`, a list of questions and answers, and `system` are read where they exist.
    """

    kind: Literal["alpaca"] = "alpaca"
    column: str = "output"
    """Column that holds the answer."""
    prompt_column: str = "instruction"
    """Column that holds the instruction."""

    optional: ClassVar[tuple[str, ...]] = ("input", "system", "history")

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.prompt_column, self.column)

    def content(self, row: Row) -> Instruction | None:
        """Instruction of the row; None if the output is empty."""
        instruction, output = (text_value(row, i, column) for i, column in enumerate(self.columns))
        texts = (self._optional_text(row, column) for column in ("input", "system"))
        input, system = texts
        return Instruction(instruction, input, output, system, self._history(row)) if output else None

    def _optional_text(self, row: Row, column: str) -> str:
        if self.optional_value(row, column) is None:
            return ""
        return text_value(row, len(self.columns) + self.optional.index(column), column)

    def _history(self, row: Row) -> tuple[tuple[str, str], ...]:
        history = self.optional_value(row, "history") or []
        if not isinstance(history, list):
            raise DataError(f"{row.where}: column 'history' is not a list of [question, answer]; repair or drop it")
        pairs = [tuple(pair) for pair in history if isinstance(pair, list | tuple)]
        if len(pairs) != len(history) or not all(len(pair) == 2 and all(_is_text(t) for t in pair) for pair in pairs):
            raise DataError(f"{row.where}: column 'history' is not a list of [question, answer]; repair or drop it")
        return tuple((question, answer) for question, answer in pairs)


def _is_text(value: object) -> bool:
    return isinstance(value, str)
