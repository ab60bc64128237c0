import errno
import fcntl
import hashlib
import json
import os
import random
import stat
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitron_cli import canonical_json, io


class FaultyDisk(io.Disk):
    """Fails one kind of call, or writes only a little at a time."""

    def __init__(self, fails=None, number=errno.EIO, piece=None):
        self.fails, self.number, self.piece = fails, number, piece
        self.calls = []

    def __getattribute__(self, name):
        if name.startswith("_") or name not in vars(io.Disk):
            return super().__getattribute__(name)
        self.calls.append(name)
        if name == self.fails:
            raise OSError(self.number, os.strerror(self.number))
        return super().__getattribute__(name)

    def write(self, fd, data, offset):
        return super().write(fd, data[: self.piece], offset)


@pytest.fixture
def on_disk(monkeypatch):
    def use(disk):
        monkeypatch.setattr(io, "disk", disk)
        return disk

    return use


def names(directory):
    return sorted(p.name for p in directory.iterdir())


class TestLinks:
    def test_a_linked_file_is_the_same_file(self, tmp_path):
        (tmp_path / "old").write_bytes(b"abc")
        io.link(tmp_path / "old", tmp_path / "new")
        assert (tmp_path / "new").samefile(tmp_path / "old")

    @pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV])
    def test_where_there_are_no_links_it_is_copied(self, tmp_path, on_disk, number):
        (tmp_path / "old").write_bytes(b"abc" * io.HASH_BYTES)
        on_disk(FaultyDisk("link", number))
        io.link(tmp_path / "old", tmp_path / "new")
        assert (tmp_path / "new").read_bytes() == b"abc" * io.HASH_BYTES
        assert not (tmp_path / "new").samefile(tmp_path / "old")

    def test_a_full_disk_is_an_error(self, tmp_path, on_disk):
        (tmp_path / "old").write_bytes(b"abc")
        on_disk(FaultyDisk("link", errno.ENOSPC))
        with pytest.raises(OSError, match="No space left"):
            io.link(tmp_path / "old", tmp_path / "new")


class TestNewFiles:
    def test_content_hash_and_size(self, tmp_path):
        record = io.write_new(tmp_path / "f", [b"ab", b"", bytearray(b"c"), memoryview(b"de")])
        assert (tmp_path / "f").read_bytes() == b"abcde"
        assert record == (hashlib.sha256(b"abcde").hexdigest(), 5)
        assert io.file_record(tmp_path / "f") == record

    def test_one_piece_is_one_chunk(self, tmp_path):
        assert io.write_new(tmp_path / "f", b"abc").size_bytes == 3
        assert io.write_new(tmp_path / "empty", b"") == io.FileRecord(hashlib.sha256().hexdigest(), 0)

    @pytest.mark.parametrize("piece", [1, 3, 7])
    def test_short_writes_are_continued(self, tmp_path, on_disk, piece):
        on_disk(FaultyDisk(piece=piece))
        content = random.Random(0).randbytes(100)
        record = io.write_new(tmp_path / "f", [content[:41], content[41:]])
        assert (tmp_path / "f").read_bytes() == content
        assert record == io.file_record(tmp_path / "f")

    def test_large_writes_leave_room_for_signals(self, tmp_path, on_disk, monkeypatch):
        monkeypatch.setattr(io, "WRITE_BYTES", 10)
        disk = on_disk(FaultyDisk())
        io.write_new(tmp_path / "f", b"x" * 95)
        assert disk.calls.count("write") == 10

    def test_nothing_is_overwritten(self, tmp_path):
        (tmp_path / "f").write_text("old")
        with pytest.raises(FileExistsError):
            io.write_new(tmp_path / "f", b"new")
        (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(FileExistsError):
            io.write_new(tmp_path / "link", b"new")
        assert (tmp_path / "f").read_text() == "old"
        assert not (tmp_path / "elsewhere").exists()

    def test_a_file_is_synced_before_it_is_closed(self, tmp_path, on_disk):
        disk = on_disk(FaultyDisk())
        io.write_new(tmp_path / "f", b"x")
        assert disk.calls == ["create", "write", "fsync", "close"]

    @pytest.mark.parametrize("call", ["create", "write", "fsync", "close"])
    def test_every_failure_is_reported(self, tmp_path, on_disk, call):
        on_disk(FaultyDisk(fails=call, number=errno.ENOSPC))
        with pytest.raises(OSError, match="No space left") as caught:
            io.write_new(tmp_path / "f", b"x")
        assert caught.value.errno == errno.ENOSPC

    @pytest.mark.parametrize("call", ["write", "fsync"])
    def test_a_full_disk_is_named_by_the_file(self, tmp_path, on_disk, call):
        """Calls on a descriptor do not know it."""
        on_disk(FaultyDisk(fails=call, number=errno.ENOSPC))
        with pytest.raises(OSError, match="No space left") as caught:
            io.write_new(tmp_path / "f", b"x")
        assert caught.value.filename == str(tmp_path / "f")

    def test_a_file_is_closed_whatever_happens(self, tmp_path, on_disk):
        open_before = len(os.listdir("/dev/fd"))
        with pytest.raises(ZeroDivisionError):
            io.write_new(tmp_path / "f", (bytes(1 // n) for n in (1, 0)))
        on_disk(FaultyDisk(fails="fsync"))
        with pytest.raises(OSError, match="Input/output"):
            io.write_new(tmp_path / "g", b"x")
        assert len(os.listdir("/dev/fd")) == open_before

    @pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
    def test_the_umask_decides_who_may_read(self, tmp_path, umask):
        before = os.umask(umask)
        try:
            io.write_new(tmp_path / "f", b"")
            io.make_dirs(tmp_path / "d")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o666 & ~umask
        assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o777 & ~umask


class TestSizedFiles:
    @pytest.mark.parametrize("piece", [None, 1, 7])
    def test_pieces_may_come_in_any_order_from_any_thread(self, tmp_path, on_disk, monkeypatch, piece):
        on_disk(FaultyDisk(piece=piece))
        monkeypatch.setattr(io, "WRITE_BYTES", 10)
        content = random.Random(0).randbytes(1000)
        starts = random.Random(1).sample(range(0, 1000, 25), 40)
        with io.sized_file(tmp_path / "f", 1000) as file, ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda at: file.write_at(at, content[at : at + 25]), starts))
        assert (tmp_path / "f").read_bytes() == content

    def test_its_space_is_taken_before_anything_is_written(self, tmp_path, on_disk):
        disk = on_disk(FaultyDisk())
        with io.sized_file(tmp_path / "f", 100_000):
            assert (tmp_path / "f").stat().st_size == 100_000
            if hasattr(os, "posix_fallocate"):
                assert (tmp_path / "f").stat().st_blocks * 512 >= 100_000
        assert disk.calls == ["create", "reserve", "fsync", "close"]

    @pytest.mark.parametrize("call", ["create", "reserve", "write", "fsync", "close"])
    def test_every_failure_is_reported_and_the_file_closed(self, tmp_path, on_disk, call):
        on_disk(FaultyDisk(fails=call, number=errno.ENOSPC))
        open_before = len(os.listdir("/dev/fd"))
        with pytest.raises(OSError, match="No space left"), io.sized_file(tmp_path / "f", 3) as file:
            file.write_at(1, b"x")
        assert len(os.listdir("/dev/fd")) == open_before + (call == "close")

    def test_what_is_written_goes_to_the_disk_while_more_is_written(self, tmp_path, on_disk, monkeypatch):
        disk = on_disk(FaultyDisk())
        monkeypatch.setattr(io, "EARLY_BYTES", 10)
        with io.sized_file(tmp_path / "f", 100) as file:
            for start in range(0, 100, 5):
                file.write_at(start, bytes([start]) * 5)
                file.raise_if_unsynced()
        assert disk.calls.count("sync_data") == 10
        assert disk.calls[-3:] == ["sync_data", "fsync", "close"]
        assert (tmp_path / "f").read_bytes() == b"".join(bytes([start]) * 5 for start in range(0, 100, 5))

    def test_a_little_is_synced_once(self, tmp_path, on_disk):
        disk = on_disk(FaultyDisk())
        io.write_new(tmp_path / "f", b"x" * 1000)
        assert disk.calls == ["create", "write", "fsync", "close"]

    @pytest.mark.parametrize("writes", [1, 2, 30])
    def test_a_disk_that_fails_meanwhile_is_reported(self, tmp_path, on_disk, monkeypatch, writes):
        """By a later write, or at the end: another sync of the same file need not fail again."""

        class FailsMeanwhile(FaultyDisk):
            def sync_data(self, fd):
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        def fill():
            with io.sized_file(tmp_path / "f", 1000) as file:
                for i in range(writes):
                    file.write_at(10 * i, b"0123456789")
                    wait([file._early])

        disk = on_disk(FailsMeanwhile())
        monkeypatch.setattr(io, "EARLY_BYTES", 10)
        open_before = len(os.listdir("/dev/fd"))
        with pytest.raises(OSError, match="Input/output error"):
            fill()
        assert disk.calls.count("write") == min(writes, 2)
        assert "fsync" not in disk.calls
        assert len(os.listdir("/dev/fd")) == open_before

    def test_a_file_system_that_cannot_reserve(self, tmp_path, monkeypatch):
        def refuse(*_):
            raise OSError(errno.ENOTSUP, "Operation not supported")

        monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
        with io.sized_file(tmp_path / "f", 3) as file:
            file.write_at(1, b"xy")
        assert (tmp_path / "f").read_bytes() == b"\0xy"

    def test_a_system_that_cannot_reserve_sets_the_size(self, tmp_path, monkeypatch):
        """As on macOS, whose `os` has no posix_fallocate."""
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
        with io.sized_file(tmp_path / "f", 4) as file:
            assert (tmp_path / "f").stat().st_size == 4
            file.write_at(1, b"xy")
        assert (tmp_path / "f").read_bytes() == b"\0xy\0"

    @pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="macOS cannot reserve space")
    def test_a_disk_without_room_says_so_at_once(self, tmp_path):
        with pytest.raises(OSError, match=r"No space left|File too large"), io.sized_file(tmp_path / "f", 1 << 50):
            pytest.fail("came to write")


class TestDurability:
    """macOS syncs a file only as far as the drive's own cache, unless F_FULLFSYNC asks for more."""

    FULL = 51

    @pytest.fixture
    def flushed(self, monkeypatch):
        """The file descriptors that were flushed to the drive itself."""
        calls = []
        monkeypatch.setattr(fcntl, "F_FULLFSYNC", self.FULL, raising=False)
        monkeypatch.setattr(fcntl, "fcntl", lambda fd, command: calls.append((os.fstat(fd).st_ino, command)))
        return calls

    def test_files_and_directories_are_flushed_to_the_drive(self, tmp_path, flushed):
        io.write_new(tmp_path / "f", b"x")
        io.disk.sync_dir(tmp_path)
        assert flushed == [((tmp_path / "f").stat().st_ino, self.FULL), (tmp_path.stat().st_ino, self.FULL)]

    def test_a_file_system_without_it_is_synced_as_elsewhere(self, tmp_path, flushed, monkeypatch):
        def refuse(fd, command):
            raise OSError(errno.ENOTSUP, "Operation not supported")

        synced = []
        monkeypatch.setattr(fcntl, "fcntl", refuse)
        monkeypatch.setattr(os, "fsync", synced.append)
        io.write_new(tmp_path / "f", b"x")
        assert len(synced) == 1

    def test_a_drive_that_fails_is_an_error(self, tmp_path, flushed, monkeypatch):
        def fail(fd, command):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(fcntl, "fcntl", fail)
        with pytest.raises(OSError, match="Input/output"):
            io.write_new(tmp_path / "f", b"x")


class TestHashing:
    def test_records_come_in_order(self, tmp_path, monkeypatch):
        sizes = [300_000, 0, 5, 1_000_000, 17]
        for i, size in enumerate(sizes):
            (tmp_path / str(i)).write_bytes(bytes([i]) * size)
        found = list(io.file_records(tmp_path / str(i) for i in range(5)))
        assert found == [(hashlib.sha256(bytes([i]) * n).hexdigest(), n) for i, n in enumerate(sizes)]


class TestReplace:
    def test_a_reader_sees_the_old_or_the_new(self, tmp_path):
        path, versions = tmp_path / "f", [bytes([65 + i]) * 5000 for i in range(20)]
        io.replace(path, versions[0])
        seen, done = set(), threading.Event()

        def read():
            while not done.is_set():
                seen.add(path.read_bytes())

        reader = threading.Thread(target=read)
        reader.start()
        for version in versions:
            io.replace(path, version)
        done.set()
        reader.join()
        assert seen <= set(versions)
        assert names(tmp_path) == ["f"]

    def test_content_is_synced_before_it_gets_its_name(self, tmp_path, on_disk):
        disk = on_disk(FaultyDisk())
        io.replace(tmp_path / "f", b"x")
        assert disk.calls == ["create", "write", "fsync", "close", "replace", "sync_dir"]

    @pytest.mark.parametrize("call", ["create", "write", "fsync", "close", "replace"])
    def test_a_failure_keeps_the_old_and_leaves_nothing(self, tmp_path, on_disk, call):
        (tmp_path / "f").write_text("old")
        on_disk(FaultyDisk(fails=call))
        with pytest.raises(OSError, match="Input/output error"):
            io.replace(tmp_path / "f", b"new")
        assert (tmp_path / "f").read_text() == "old"
        assert names(tmp_path) == ["f"]


class TestPublish:
    def test_a_directory_comes_whole(self, tmp_path, on_disk):
        temporary = io.temporary_dir(tmp_path, "final")
        io.write_new(temporary / "f", b"x")
        disk = on_disk(FaultyDisk())
        assert io.publish(temporary, tmp_path / "final")
        assert disk.calls == ["sync_dir", "rename", "sync_dir"]
        assert names(tmp_path) == ["final"]
        assert names(tmp_path / "final") == ["f"]

    def test_the_first_writer_stands(self, tmp_path):
        one, two = io.temporary_dir(tmp_path, "final"), io.temporary_dir(tmp_path, "final")
        io.write_new(one / "f", b"1")
        io.write_new(two / "f", b"2")
        assert io.publish(one, tmp_path / "final")
        assert not io.publish(two, tmp_path / "final")
        assert (tmp_path / "final" / "f").read_bytes() == b"1"

    def test_other_failures_are_reported(self, tmp_path, on_disk):
        temporary = io.temporary_dir(tmp_path, "final")
        on_disk(FaultyDisk(fails="rename", number=errno.EROFS))
        with pytest.raises(OSError, match="Read-only"):
            io.publish(temporary, tmp_path / "final")

    def test_temporary_names_are_nobodys(self, tmp_path):
        made = {io.temporary_dir(tmp_path, "x").name for _ in range(50)}
        assert len(made) == 50
        assert all(name.startswith(io.TEMPORARY) for name in made)

    def test_a_file_system_that_cannot_sync_directories(self, tmp_path, monkeypatch):
        def refuse(fd):
            raise OSError(errno.EINVAL, "Invalid argument")

        monkeypatch.setattr(os, "fsync", refuse)
        io.disk.sync_dir(tmp_path)
        monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
        with pytest.raises(OSError, match="broken"):
            io.disk.sync_dir(tmp_path)


class TestNewDir:
    def test_it_is_there_as_a_whole(self, tmp_path):
        with io.new_dir(tmp_path / "d") as directory:
            io.write_new(directory / "a", b"1")
        assert names(tmp_path) == ["d"]
        assert (tmp_path / "d/a").read_bytes() == b"1"

    def test_nothing_is_left_of_it_after_an_error(self, tmp_path):
        def half(parts):
            with io.new_dir(tmp_path / "d") as directory:
                for name in parts:
                    io.write_new(directory / name, b"1")

        with pytest.raises(FileExistsError):
            half("aa")
        assert names(tmp_path) == []

    def test_the_first_one_stays(self, tmp_path):
        with io.new_dir(tmp_path / "d") as directory:
            (tmp_path / "d").mkdir()
            (tmp_path / "d/first").write_bytes(b"1")
            io.write_new(directory / "a", b"2")
        assert names(tmp_path) == ["d"]
        assert names(tmp_path / "d") == ["first"]


class TestDirectories:
    def test_parents_are_made(self, tmp_path):
        io.make_dirs(tmp_path / "a" / "b" / "c")
        io.make_dirs(tmp_path / "a" / "b" / "c")
        assert (tmp_path / "a" / "b" / "c").is_dir()

    def test_a_new_directory_is_synced_into_its_parent(self, tmp_path, on_disk):
        disk = on_disk(FaultyDisk())
        io.make_dirs(tmp_path / "a" / "b")
        assert disk.calls == ["make_dir", "sync_dir"] * 2

    def test_a_file_in_the_way(self, tmp_path):
        (tmp_path / "a").write_text("")
        with pytest.raises(OSError, match=r"a file stands where a directory is needed"):
            io.make_dirs(tmp_path / "a" / "b")
        with pytest.raises(OSError, match="a file stands where a directory is needed"):
            io.make_dirs(tmp_path / "a")

    def test_another_process_that_makes_the_same(self, tmp_path, on_disk):
        class Slow(io.Disk):
            def make_dir(self, path):
                os.makedirs(path, exist_ok=True)
                super().make_dir(path)

        on_disk(Slow())
        io.make_dirs(tmp_path / "a" / "b")
        assert (tmp_path / "a" / "b").is_dir()

    def test_a_removed_tree_is_gone_from_view_at_once(self, tmp_path, on_disk):
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "f").write_text("")
        disk = on_disk(FaultyDisk(fails="remove_tree"))
        with pytest.raises(OSError, match="Input/output"):
            io.remove_tree(tmp_path / "d")
        assert disk.calls == ["rename", "remove_tree"]
        assert all(name.startswith(io.TEMPORARY) for name in names(tmp_path))
        on_disk(io.Disk())
        io.sweep(tmp_path)
        assert names(tmp_path) == []

    def test_removing_what_is_not_there(self, tmp_path):
        io.remove_tree(tmp_path / "d")

    def test_a_sweep_leaves_the_living_alone(self, tmp_path):
        child = os.fork()
        if child == 0:
            io.temporary_dir(tmp_path, "dead")
            os._exit(0)
        os.waitpid(child, 0)
        (tmp_path / f".tmp-alive-0a1b2c3d-{os.getppid()}").mkdir()
        (tmp_path / f".tmp-earlier-0a1b2c3d-{os.getpid()}").mkdir()  # had our number, as happens in containers
        ours = io.temporary_dir(tmp_path, "ours")
        assert len(names(tmp_path)) == 4
        io.sweep(tmp_path)
        assert names(tmp_path) == [f".tmp-alive-0a1b2c3d-{os.getppid()}", ours.name]

    def test_a_sweep_takes_leftovers_only(self, tmp_path):
        (tmp_path / ".tmp-file").write_text("")
        (tmp_path / ".tmp-dir").mkdir()
        (tmp_path / ".tmp-dir" / "f").write_text("")
        (tmp_path / ".scratch-1").mkdir()
        (tmp_path / "result").mkdir()
        (tmp_path / "x.tmp-y").write_text("")
        io.sweep(tmp_path)
        assert names(tmp_path) == [".scratch-1", "result", "x.tmp-y"]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


class TestJson:
    @settings(deadline=None, derandomize=True, max_examples=40)
    @given(value=json_values, seed=st.integers())
    def test_bytes_depend_on_the_value_alone(self, value, seed):
        shuffled = shuffle(value, random.Random(seed))
        for write in (canonical_json.compact, canonical_json.pretty):
            assert write(shuffled) == write(value)
            assert json.loads(write(value)) == value
        assert canonical_json.digest(shuffled) == canonical_json.digest(value)

    def test_tuples_are_lists(self):
        assert canonical_json.digest({"a": (1, (2,))}) == canonical_json.digest({"a": [1, [2]]})

    @pytest.mark.parametrize(
        "pair", [({"a": 1}, {"a": 1.5}), ({"a": 1}, {"b": 1}), ([1, 2], [2, 1]), ("1", 1), (0, False)]
    )
    def test_other_values_have_other_digests(self, pair):
        assert canonical_json.digest(pair[0]) != canonical_json.digest(pair[1])

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")]])
    @pytest.mark.parametrize("write", [canonical_json.compact, canonical_json.pretty])
    def test_what_json_cannot_say_is_refused(self, write, value):
        with pytest.raises(ValueError, match="Out of range"):
            write(value)


def shuffle(value, draw):
    """The same value with every dictionary filled in another order."""
    if isinstance(value, dict):
        return {k: shuffle(value[k], draw) for k in draw.sample(list(value), len(value))}
    return [shuffle(v, draw) for v in value] if isinstance(value, list) else value
