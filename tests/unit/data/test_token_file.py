import os
import shutil
from itertools import islice

import numpy as np
import pytest

from minitron_cli import io
from minitron_cli.artifacts import file_hashes
from minitron_cli.data import token_file
from minitron_cli.data.rows import Ids
from minitron_cli.errors import DataError, EnvironmentFault

ARRAYS = [np.array([1, 2, 3]), np.array([65_535]), np.array([0] * 500)]
DOCUMENTS = [Ids(ids) for ids in ARRAYS]
FLAT = np.concatenate(ARRAYS)


def create(directory, key, vocab_size, documents, has_loss_mask=False):
    return token_file.create(directory, key, vocab_size, placed(documents), has_loss_mask)


def placed(documents):
    """Documents of one source, after a place."""

    def after(place):
        count, tokens = place[0] if place else (0, 0)
        for ids in islice(documents, count, None):
            count, tokens = count + 1, tokens + len(ids.ids)
            yield ids, [[count, tokens]]

    return after


@pytest.mark.parametrize(("vocab_size", "item_bytes"), [(2, 2), (65_536, 2), (65_537, 4), (2**31, 4)])
def test_ids_come_back_in_the_smallest_type_that_holds_the_vocabulary(vocab_size, item_bytes, tmp_path):
    arrays = [ids % vocab_size for ids in [*ARRAYS, np.array([vocab_size - 1])]]
    file = create(tmp_path / "cache" / "a", "key", vocab_size, map(Ids, arrays))
    np.testing.assert_array_equal(file.tokens, np.concatenate(arrays))
    assert file.starts.tolist() == [0, 3, 4, 504]
    assert file.tokens.itemsize == item_bytes
    assert isinstance(file.tokens, np.memmap)


def test_the_fingerprint_follows_ids_and_starts_alone(tmp_path):
    def fingerprint(name, key, documents):
        return create(tmp_path / name, key, 70_000, documents).fingerprint

    here = fingerprint("a", "key", DOCUMENTS)
    assert fingerprint("b", "other key", DOCUMENTS) == here
    assert fingerprint("c", "key", [Ids(FLAT)]) != here
    assert fingerprint("d", "key", [*DOCUMENTS, Ids(np.array([1]))]) != here


def test_a_file_is_found_under_its_key_alone(tmp_path):
    create(tmp_path / "a", "key", 70_000, DOCUMENTS)
    assert token_file.find(tmp_path / "a", "key") is not None
    assert token_file.find(tmp_path / "a", "other") is None
    assert token_file.find(tmp_path / "b", "key") is None


def test_which_tokens_count_is_kept_and_is_part_of_the_fingerprint(tmp_path):
    counts = np.arange(500) % 3 == 0
    documents = [*DOCUMENTS[:2], Ids(ARRAYS[2], counts)]
    file = create(tmp_path / "a", "key", 70_000, documents, has_loss_mask=True)
    assert file.loss_mask.tolist() == [True] * 4 + counts.tolist()
    assert file.fingerprint != create(tmp_path / "b", "key", 70_000, DOCUMENTS, has_loss_mask=True).fingerprint
    assert create(tmp_path / "c", "key", 70_000, DOCUMENTS).loss_mask is None
    path = tmp_path / "a" / token_file.LOSS_MASK
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert token_file.find(tmp_path / "a", "key") is None
    path.unlink()
    assert token_file.find(tmp_path / "a", "key") is None


@pytest.mark.parametrize("name", [token_file.TOKENS, token_file.STARTS, token_file.HEADER])
@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "zero", "gone"])
def test_damage_is_found_and_mended(name, damage, tmp_path, remarks):
    before = create(tmp_path / "a", "key", 70_000, DOCUMENTS)
    path = tmp_path / "a" / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.unlink()
    if damage != "gone":
        path.write_bytes({"flip": data, "cut": data[:-4], "longer": data + b"\0", "zero": bytes(len(data))}[damage])
    assert token_file.find(tmp_path / "a", "key") is None
    after = create(tmp_path / "a", "key", 70_000, DOCUMENTS)
    assert after.fingerprint == before.fingerprint
    assert remarks.messages == [f"{tmp_path / 'a'} is damaged; the data are tokenized again"]


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path):
    create(tmp_path / "a", "key", 70_000, DOCUMENTS)
    for path in sorted((tmp_path / "a").iterdir()):
        whole = path.read_bytes()
        for bit in range(0, 8 * len(whole), 151):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            assert token_file.find(tmp_path / "a", "key") is None, (path.name, bit)
        path.write_bytes(whole)
    assert token_file.find(tmp_path / "a", "key") is not None


def test_a_large_file_is_read_once_and_every_byte_of_it_counts(tmp_path, monkeypatch):
    for name in ("LARGE_BYTES", "TICK_NS", "COARSE_TICK_NS"):
        monkeypatch.setattr(file_hashes, name, 0)
    create(tmp_path / "a", "key", 70_000, DOCUMENTS)
    path = tmp_path / "a" / token_file.TOKENS
    with monkeypatch.context() as patch:
        patch.setattr(io, "file_record", lambda path: pytest.fail(f"read {path} again"))
        assert token_file.find(tmp_path / "a", "key") is not None
    data, times = path.read_bytes(), path.stat()
    path.write_bytes(data[:100] + b"x" + data[101:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert token_file.find(tmp_path / "a", "key") is None


def test_an_intact_file_is_not_replaced(tmp_path, remarks):
    create(tmp_path / "a", "key", 70_000, DOCUMENTS)
    inode = (tmp_path / "a").stat().st_ino
    create(tmp_path / "a", "key", 70_000, DOCUMENTS)
    assert (tmp_path / "a").stat().st_ino == inode
    assert remarks.messages == []


@pytest.mark.parametrize("part_tokens", [token_file.PART_TOKENS, 3])
def test_of_two_writers_at_once_the_first_stands(part_tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(token_file, "PART_TOKENS", part_tokens)
    first = []

    def documents():
        yield DOCUMENTS[0]
        first.append(create(tmp_path / "a", "key", 70_000, DOCUMENTS))
        yield from DOCUMENTS[1:]

    second = create(tmp_path / "a", "key", 70_000, documents())
    assert second.fingerprint == first[0].fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_parts_are_joined_to_what_one_piece_would_have_been(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    documents = [Ids(rng.integers(0, 70_000, n), rng.random(n) < 0.5) for n in rng.integers(1, 30, 50)]
    whole = create(tmp_path / "whole", "key", 70_000, documents, has_loss_mask=True)
    for tokens in (1, 100, whole.tokens.size):
        monkeypatch.setattr(token_file, "PART_TOKENS", tokens)
        joined = create(tmp_path / str(tokens), "key", 70_000, documents, has_loss_mask=True)
        assert joined.fingerprint == whole.fingerprint
        for name in (token_file.TOKENS, token_file.STARTS, token_file.LOSS_MASK):
            assert (tmp_path / str(tokens) / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def stopped_after(documents, count: int):
    yield from documents[:count]
    raise Killed


def test_a_part_that_was_finished_is_not_made_again(tmp_path, monkeypatch, remarks):
    monkeypatch.setattr(token_file, "PART_TOKENS", 4)
    documents = [Ids(np.array([i, i])) for i in range(9)]
    with pytest.raises(Killed):
        create(tmp_path / "a", "key", 70_000, stopped_after(documents, 5))
    asked = []

    def after(place):
        asked.append(place)
        return placed(documents)(place)

    assert token_file.create(tmp_path / "a", "key", 70_000, after, False).starts.tolist() == list(range(0, 18, 2))
    assert asked == [[[4, 8]]]  # two parts of two documents each; the fifth was in none
    assert remarks.messages == ["continuing tokenization after 8 tokens"]


def test_a_part_continues_only_the_part_that_it_was_written_after(tmp_path, monkeypatch):
    """Parts of two killed runs with one key, as an interrupted copy may leave them: their ends do not meet."""
    documents = [Ids(np.array([i, i])) for i in range(9)]
    for name, part_tokens in (("a", 4), ("b", 6)):
        monkeypatch.setattr(token_file, "PART_TOKENS", part_tokens)
        with pytest.raises(Killed):
            create(tmp_path / name, "key", 70_000, stopped_after(documents, 7))
    shutil.rmtree(tmp_path / "a.parts" / "00001")
    shutil.copytree(tmp_path / "b.parts" / "00001", tmp_path / "a.parts" / "00001")
    assert create(tmp_path / "a", "key", 70_000, documents).tokens.tolist() == [i for i in range(9) for _ in range(2)]


@pytest.mark.parametrize("damaged", ["0", "1"])
def test_a_damaged_part_and_those_behind_it_are_made_again(damaged, tmp_path, monkeypatch):
    monkeypatch.setattr(token_file, "PART_TOKENS", 4)
    documents = [Ids(np.array([i, i])) for i in range(9)]
    with pytest.raises(Killed):
        create(tmp_path / "a", "key", 70_000, stopped_after(documents, 7))
    path = tmp_path / "a.parts" / f"0000{damaged}" / token_file.TOKENS
    path.write_bytes(b"x" + path.read_bytes()[1:])
    assert create(tmp_path / "a", "key", 70_000, documents).tokens.tolist() == [i for i in range(9) for _ in range(2)]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_parts_of_broken_data_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(token_file, "PART_TOKENS", 4)

    def broken():
        yield from DOCUMENTS
        raise DataError("row 4 is no text")

    with pytest.raises(DataError, match="row 4"):
        create(tmp_path / "a", "key", 70_000, broken())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_returns_other_bytes_is_named(tmp_path, monkeypatch):
    class Lying(io.Disk):
        def write(self, fd: int, data: memoryview, offset: int) -> int:
            return super().write(fd, memoryview(bytes(len(data))), offset)

    monkeypatch.setattr(io, "disk", Lying())
    with pytest.raises(EnvironmentFault, match="the disk returns other bytes than were written; check it and run"):
        create(tmp_path / "a", "key", 70_000, DOCUMENTS)


class Killed(BaseException):
    """The process is gone: nothing that follows reaches the disk."""


KILLABLE = [name for name in vars(io.Disk) if not name.startswith("_") and name != "close"]


def dying_disk(lives: int, torn: bool) -> io.Disk:
    """A disk that can be reached `lives` times, after which the process is gone; its last write may be torn."""
    disk, left = io.Disk(), [lives]

    def mortal(name):
        whole = getattr(disk, name)

        def call(*args):
            left[0] -= 1
            if left[0] >= 0:
                return whole(*args)
            if left[0] == -1 and torn and name == "write":
                whole(args[0], args[1][: len(args[1]) // 2])
            raise Killed

        return call

    for name in KILLABLE:
        setattr(disk, name, mortal(name))
    return disk


@pytest.mark.slow
@pytest.mark.parametrize("part_tokens", [token_file.PART_TOKENS, 3])
@pytest.mark.parametrize("torn", [False, True])
def test_killed_at_any_moment_it_leaves_nothing_that_is_trusted(torn, part_tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(token_file, "PART_TOKENS", part_tokens)
    expected = create(tmp_path / "undisturbed", "key", 70_000, DOCUMENTS)
    lives = 0
    while True:
        directory = tmp_path / str(lives) / "a"
        with monkeypatch.context() as patch:
            patch.setattr(io, "disk", dying_disk(lives, torn))
            try:
                create(directory, "key", 70_000, DOCUMENTS)
                break
            except Killed:
                pass
        found = token_file.find(directory, "key")
        assert found is None or found.fingerprint == expected.fingerprint
        assert directory.exists() == (found is not None)
        assert create(directory, "key", 70_000, DOCUMENTS).fingerprint == expected.fingerprint
        for name in (token_file.TOKENS, token_file.STARTS, token_file.HEADER):
            assert (directory / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
        left = [path.name for path in directory.parent.iterdir() if not path.name.startswith(io.TEMPORARY)]
        assert left == ["a"]  # what the killed process was at work on is swept once it is gone
        lives += 1
    assert lives >= 19  # every call that changes the disk was the last one once


@pytest.mark.parametrize("failing", ["write", "fsync", "rename", "create"])
def test_a_failing_disk_leaves_nothing_behind(failing, tmp_path, monkeypatch):
    disk = io.Disk()

    def fail(*args):
        raise OSError(28, "No space left on device")

    setattr(disk, failing, fail)
    monkeypatch.setattr(io, "disk", disk)
    with pytest.raises(OSError, match="No space left"):
        create(tmp_path / "a", "key", 70_000, DOCUMENTS)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [] or failing == "rename"  # what cannot be renamed cannot be removed
