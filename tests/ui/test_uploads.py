from __future__ import annotations

from pathlib import Path

import pytest

from extensions_lib.errors import ConfigError, OutputError
from extensions_lib.ui.uploads import keep_uploads, safe_name


def dropped(folder: Path, **contents: bytes) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for name, content in contents.items():
        path = folder / name.replace("_DOT_", ".")
        path.write_bytes(content)
        paths.append(path)
    return paths


def test_the_same_files_give_the_same_folder(tmp_path: Path) -> None:
    files = dropped(tmp_path / "temp", a_DOT_PNG=b"picture", a_DOT_txt=b"a cat")
    folder = keep_uploads(files, tmp_path / "uploads", "my cat")
    assert folder.parent == tmp_path / "uploads"
    assert folder.name.startswith("my cat-")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a.png": b"picture", "a.txt": b"a cat"}
    assert keep_uploads(files[::-1], tmp_path / "uploads", "my cat") == folder
    files[1].write_bytes(b"a dog")
    assert keep_uploads(files, tmp_path / "uploads", "my cat") != folder
    assert sorted(path.name[:7] for path in folder.parent.iterdir()) == ["my cat-", "my cat-"]


def test_all_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    files = dropped(tmp_path / "temp", a_DOT_png=b"1", b_DOT_zip=b"2", c_DOT_exe=b"3")
    with pytest.raises(ConfigError) as raised:
        keep_uploads([*files, *dropped(tmp_path / "more", A_DOT_png=b"4")], tmp_path / "uploads", "x")
    assert [problem.text for problem in raised.value.problems] == [
        "'b.zip' is neither a picture nor a caption (.txt)",
        "'c.exe' is neither a picture nor a caption (.txt)",
        "'A.png' is there twice, or has no name",
    ]
    assert not (tmp_path / "uploads").exists()
    with pytest.raises(ConfigError, match="no picture is among"):
        keep_uploads(dropped(tmp_path / "text", a_DOT_txt=b"1"), tmp_path / "uploads", "x")


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    files = dropped(tmp_path / "temp", a_DOT_png=b"1")
    (tmp_path / "uploads").write_bytes(b"a file")
    with pytest.raises(OutputError, match="cannot be kept"):
        keep_uploads(files, tmp_path / "uploads", "x")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../etc/passwd", "_.._etc_passwd"),
        ("a\\b:c*?", "a_b_c__"),
        ("Кошка 1", "Кошка 1"),
        ("\uff43at", "cat"),
        ("CON", "_CON"),
        ("lpt1.txt", "_lpt1.txt"),
        (" . ", ""),
        ("x" * 200, "x" * 80),
        ("a\nb\0", "a_b_"),
    ],
)
def test_names_are_plain(name: str, expected: str) -> None:
    assert safe_name(name) == expected
