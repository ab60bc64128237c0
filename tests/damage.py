"""Odd values and damaged bytes, for what reads files of others."""

import random
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 7, 10**6, 10**30, 0.5),
    *("", "8", "llama", "\ud800", "é\n"),
    *([], [8], {}, {"a": 1}, [[]]),
)
ODD_BYTES = (
    *(b"", b" ", b"\0", b"\xff", b"0", b"-", b"9" * 20, b"1e9", b"null"),
    *(b'"', b"{", b"}", b"[", b"]", b",", b":"),
)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """One to three edits: bytes flipped, removed or doubled, or something odd put in."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        at, kind = draw.randrange(max(len(data), 1)), draw.randrange(5)
        if kind == 0 and data:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[at : at + draw.randint(1, 4)]
        elif kind == 2:
            data[at:at] = data[at : at + draw.randint(1, 40)]
        else:
            data[at : at + kind - 3] = draw.choice(ODD_BYTES)
    return bytes(data)
