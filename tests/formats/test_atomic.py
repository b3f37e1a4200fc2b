"""Atomic writing under every failure we can simulate: the old bytes stay, no temporary file does."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from extensions_lib.errors import DiskFullError, ExtensionError, OutputError
from extensions_lib.formats.atomic import remove_leftovers, write_bytes_atomic, write_file_atomic, write_folder_atomic

NEW = b"new bytes"
OLD = b"old bytes"


def failing(number: int):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return fail


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writes_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert write_bytes_atomic(path, NEW) == path
    assert path.read_bytes() == NEW
    assert names(tmp_path) == ["a.json"]


def test_an_existing_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(OLD)
    with pytest.raises(OutputError, match="already exists and was not touched"):
        write_bytes_atomic(path, NEW)
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["a.json"]


def test_a_dangling_link_is_an_existing_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").symlink_to(tmp_path / "gone")
    with pytest.raises(OutputError, match="already exists"):
        write_bytes_atomic(tmp_path / "a.json", NEW)


def test_overwrites_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(OLD)
    write_bytes_atomic(path, NEW, overwrite=True)
    assert path.read_bytes() == NEW
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("number", "error", "text"),
    [
        (errno.ENOSPC, DiskFullError, "no room left"),
        (errno.EDQUOT, DiskFullError, "no room left"),
        (errno.EIO, OutputError, "could not be written: Input/output error"),
        (errno.EROFS, OutputError, "read-only"),
        (errno.EACCES, OutputError, "read-only"),
    ],
)
def test_a_failing_sync(monkeypatch, tmp_path: Path, number: int, error: type, text: str, overwrite: bool) -> None:
    path = tmp_path / "a.json"
    if overwrite:
        path.write_bytes(OLD)
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(error, match=text):
        write_bytes_atomic(path, NEW, overwrite=overwrite)
    assert names(tmp_path) == (["a.json"] if overwrite else [])
    assert not overwrite or path.read_bytes() == OLD


def test_a_full_disk_in_the_middle_of_writing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(OLD)

    def write(file) -> None:
        file.write(NEW)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFullError, match="a.json could not be written: no room"):
        write_file_atomic(path, write, overwrite=True)
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["a.json"]


def test_a_failing_replace_keeps_the_old_file(monkeypatch, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(OLD)
    monkeypatch.setattr(os, "replace", failing(errno.EIO))
    with pytest.raises(OutputError, match="could not be written"):
        write_bytes_atomic(path, NEW, overwrite=True)
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["a.json"]


def test_a_failing_link_leaves_nothing(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "link", failing(errno.EIO))
    with pytest.raises(OutputError, match="could not be written"):
        write_bytes_atomic(tmp_path / "a.json", NEW)
    assert names(tmp_path) == []


def test_file_systems_without_links(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    write_bytes_atomic(tmp_path / "a.json", NEW)
    assert (tmp_path / "a.json").read_bytes() == NEW
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("has_links", [True, False])
def test_a_name_taken_while_writing_is_left_alone(monkeypatch, tmp_path: Path, has_links: bool) -> None:
    path = tmp_path / "a.json"
    if not has_links:
        monkeypatch.setattr(os, "link", failing(errno.EOPNOTSUPP))

    def write(file) -> None:
        file.write(NEW)
        path.write_bytes(OLD)

    with pytest.raises(OutputError, match="not touched"):
        write_file_atomic(path, write)
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["a.json"]


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="The folder .*gone does not exist"):
        write_bytes_atomic(tmp_path / "gone" / "a.json", NEW)
    assert names(tmp_path) == []


def test_a_read_only_folder(monkeypatch, tmp_path: Path) -> None:
    """The system refuses to open the file (simulated: the tests may run as root, whom no mode bits stop)."""
    monkeypatch.setattr(Path, "open", failing(errno.EACCES))
    with pytest.raises(OutputError, match="read-only"):
        write_bytes_atomic(tmp_path / "a.json", NEW)
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_really_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="read-only"):
            write_bytes_atomic(tmp_path / "a.json", NEW)
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_under_that_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write_bytes_atomic(tmp_path / "a.json", NEW, overwrite=True)


def test_a_failing_check_publishes_nothing(tmp_path: Path) -> None:
    def check(temporary: Path) -> None:
        assert temporary.read_bytes() == NEW
        raise OutputError("differs")

    def write(file) -> None:
        file.write(NEW)

    with pytest.raises(OutputError, match="differs"):
        write_file_atomic(tmp_path / "a", write, check)
    assert names(tmp_path) == []


def test_an_interrupt_leaves_no_temporary_file(tmp_path: Path) -> None:
    def write(file) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file_atomic(tmp_path / "a", write)
    assert names(tmp_path) == []


def test_a_stale_temporary_file_is_no_obstacle(tmp_path: Path) -> None:
    """A killed run may leave one, and in a container the next process has the same number."""
    seen = []

    def write(file) -> None:
        seen.append(Path(file.name))
        file.write(NEW)

    write_file_atomic(tmp_path / "a", write)
    seen[0].write_bytes(b"a longer leftover of a killed run")
    write_file_atomic(tmp_path / "b", write)
    write_file_atomic(tmp_path / "a", write, overwrite=True)
    assert (tmp_path / "a").read_bytes() == NEW
    assert seen[0].name.startswith(f"a.tmp-{os.getpid()}")


def test_a_folder_that_cannot_be_synced_does_not_matter(monkeypatch, tmp_path: Path) -> None:
    """Only the second sync, of the folder, fails: the file is complete by then."""
    real, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 1:
            raise OSError(errno.EINVAL, "not here")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_bytes_atomic(tmp_path / "a", NEW)
    assert len(calls) == 2
    assert names(tmp_path) == ["a"]


def test_errors_are_for_users(tmp_path: Path) -> None:
    with pytest.raises(ExtensionError) as caught:
        write_bytes_atomic(tmp_path / "gone" / "a", NEW)
    assert caught.value.hint


def test_a_folder_that_cannot_get_its_name_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"

    def write(folder: Path) -> None:
        (folder / "new").touch()

    write_folder_atomic(path, write)
    (path / "old").touch()
    rename = os.rename

    def failing(source: Path, target: Path) -> None:
        if target == path and not str(source).endswith("-old"):
            raise OSError(13, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OutputError, match="read-only, or in use"):
        write_folder_atomic(path, write, overwrite=True, may_replace=lambda folder: True)
    assert sorted(each.name for each in path.iterdir()) == ["new", "old"] and os.listdir(tmp_path) == ["model"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as ended:
        pass
    dead, own, living = ended.pid, os.getpid(), os.getppid()
    gone = [f"cat.safetensors.tmp-{dead}-1", f"cat.ckpt.tmp-{own}-22"]
    stay = [
        "cat.safetensors", f"cat.safetensors.tmp-{living}-1", f"cats.safetensors.tmp-{dead}-1", "cat.tmp-x-1",
        f"my cat.safetensors.tmp-{dead}-1", f"cat.v2.safetensors.tmp-{dead}-1", f"cat.tmp-{dead}-1-old",
    ]  # fmt: skip
    for name in (*gone, *stay):
        (tmp_path / name).write_bytes(b"x")
    folder = tmp_path / f"cat.tmp-{dead}-2"
    folder.mkdir()
    (folder / "unet").write_bytes(b"x")
    removed = {path.name for path in remove_leftovers(tmp_path, "cat")}
    assert removed == {*gone, folder.name}
    assert {path.name for path in tmp_path.iterdir()} == set(stay)
    assert remove_leftovers(tmp_path / "none", "cat") == []
