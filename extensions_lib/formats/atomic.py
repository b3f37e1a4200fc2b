"""Writing a file so that its name holds either the old bytes or the whole new ones, whatever fails in between."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ..errors import DiskFullError, ExtensionError, OutputError

_NO_ROOM = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
# What file systems without hard links (exFAT, many network shares) answer to os.link.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EMLINK}
_RENAME_HINT = "Choose another name, or allow overwriting."


def write_file_atomic(
    path: Path,
    write: Callable[[BinaryIO], None],
    check: Callable[[Path], None] | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Let `write` fill a temporary file beside `path`, let `check` look at it, and give it its name only then.

    The temporary name is '<name>.tmp-<process>-<thread>', an ending no WebUI lists; it stays behind only when the
    process is killed. On failure an existing `path` keeps its bytes. Raises OutputError when `path` exists (unless
    `overwrite`), or the folder is missing or cannot be written; DiskFullError when there is no room; what `check`
    raises. Returns `path`.
    """
    _refuse_taken_name(path, overwrite)
    temporary = _temporary(path)
    try:
        _write_through(temporary, write)
        if check is not None:
            check(temporary)
        _give_name(temporary, path, overwrite)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    _sync_folder(path.parent)
    return path


def write_bytes_atomic(path: Path, data: bytes, *, overwrite: bool = False) -> Path:
    """Write `data` with the promises of `write_file_atomic`; for JSON, PNG and `.pt` files. Returns `path`."""

    def write(file: BinaryIO) -> None:
        file.write(data)

    return write_file_atomic(path, write, overwrite=overwrite)


def write_folder_atomic(
    path: Path,
    write: Callable[[Path], None],
    *,
    overwrite: bool = False,
    may_replace: Callable[[Path], bool] = lambda path: False,
) -> Path:
    """Let `write` fill a temporary folder beside `path`, which gets its name only then. Returns `path`.

    With `overwrite` a folder of that name is replaced if `may_replace` says that it is of the same kind: what else a
    user keeps in a folder is never lost. Raises OutputError, DiskFullError as `write_file_atomic`; what `write` raises
    leaves no folder, and the old one as it was.
    """
    if os.path.lexists(path) and not (overwrite and path.is_dir() and may_replace(path)):
        hint = _RENAME_HINT if not overwrite else "It is no folder of this kind; choose another name."
        raise OutputError(f"{path} already exists and was not touched.", hint)
    temporary = _temporary(path)
    old = temporary.with_name(f"{temporary.name}-old")
    try:
        temporary.mkdir()
        write(temporary)
        if path.is_dir():
            os.rename(path, old)
        _rename_or_restore(temporary, path, old)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
    _sync_folder(path.parent)
    return path


def remove_leftovers(folder: Path, name: str) -> list[Path]:
    """Delete what a process that was killed left of `name` with any ending in `folder`; returns what is gone.

    Temporary files of processes that live stay.
    """
    wanted = re.compile(re.escape(name) + r"(\.\w+)?\.tmp-(\d+)-\d+")
    found = [(path, match) for path in folder.glob("*.tmp-*") if (match := wanted.fullmatch(path.name))]
    dead = [path for path, match in found if not _is_at_work(int(match[2]))]
    for path in dead:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    return [path for path in dead if not os.path.lexists(path)]


def _is_at_work(process: int) -> bool:
    """Whether another process of this number lives. Windows lets nobody delete its files, so it need not be asked."""
    if process == os.getpid() or os.name == "nt":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp-{os.getpid()}-{threading.get_ident()}")


def _rename_or_restore(temporary: Path, path: Path, old: Path) -> None:
    try:
        os.rename(temporary, path)
    except OSError:
        if old.is_dir():
            os.rename(old, path)
        raise


def _refuse_taken_name(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise OutputError(f"{path} is a folder; a file name is needed.", "Choose another name.")
    if not overwrite and os.path.lexists(path):
        raise OutputError(f"{path} already exists and was not touched.", _RENAME_HINT)


def _write_through(temporary: Path, write: Callable[[BinaryIO], None]) -> None:
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _give_name(temporary: Path, path: Path, overwrite: bool) -> None:
    """Without `overwrite` the name is taken by a hard link, which fails when another process was faster."""
    if overwrite:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise OutputError(f"{path} appeared meanwhile and was not touched.", _RENAME_HINT) from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _refuse_taken_name(path, overwrite)
        os.replace(temporary, path)


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut, where the system can (Windows cannot open a folder)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _explained(error: OSError, path: Path) -> ExtensionError:
    if error.errno in _NO_ROOM:
        return DiskFullError(
            f"{path} could not be written: no room left on the disk.",
            "Free some space; what was there before is intact.",
        )
    if not path.parent.is_dir():
        return OutputError(f"The folder {path.parent} does not exist.", "Create it, or choose another output folder.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(
            f"{path} could not be written: the folder or file is read-only, or in use.", "Choose another output folder."
        )
    return OutputError(
        f"{path} could not be written: {error.strerror or error}.",
        "Check the disk and the name; what was there before is intact.",
    )
