from __future__ import annotations

import os
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from extensions_lib.data.dataset import NoUsablePictures, find_pictures, scan_folder
from extensions_lib.data.fitted import load_fitted, to_tensor
from extensions_lib.data.images import UnusablePicture
from extensions_lib.errors import DatasetError, JobStopped


@pytest.fixture
def dirty_folder(tmp_path, noise):
    """A folder as people have them: 15 usable pictures, 11 unusable ones, 7 other files."""
    folder = tmp_path / "my pictures"
    (folder / "sub" / ".thumbs").mkdir(parents=True)

    def save(name: str, image: Image.Image, format: str | None = None, **options) -> None:
        image.save(folder / name, format, **options)

    exif = Image.Exif()
    exif[0x0112] = 6
    save("01 turned.jpg", noise(90, 60, 1), exif=exif)
    alpha = noise(64, 64, 2)
    alpha.putalpha(Image.linear_gradient("L").resize((64, 64)))
    save("alpha.png", alpha)
    save("animated.gif", noise(64, 64, 3), save_all=True, append_images=[noise(64, 64, 4)])
    save("bilevel.png", noise(64, 64, 5).convert("1"))
    save("cmyk.jpg", noise(64, 64, 6).convert("CMYK"))
    save("deep.png", Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16))
    save("float.tif", Image.fromarray(np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)))
    save("grey-alpha.png", alpha.convert("LA"))
    save("huge.png", noise(1000, 750, 7))
    palette = noise(64, 64, 8).convert("P")
    save("palette.png", palette, transparency=palette.getpixel((0, 0)))
    save("panorama.png", noise(2000, 20, 9))
    save("really a png.jpg", noise(64, 64, 10), "PNG")
    save("sub/nested.webp", noise(64, 64, 11))
    save("tiny.png", noise(16, 16, 12))
    save("\u6a2a \u00e9\u00df \U0001f600.png", noise(64, 64, 13))

    good = (folder / "huge.png").read_bytes()
    for name, data in {
        "bad-cut.png": good[: len(good) // 2],
        "bad-copy.png": good,
        "bad-empty.jpg": b"",
        "bad-heic.heic": b"\x00\x00\x00\x18ftypheic" + bytes(40),
        "bad-jxl.jxl": b"\xff\x0a" + bytes(40),
        "bad-text.png": b"<html>not found</html>",
        "bad-zeros.png": bytes(1000),
        "sub/zz again.webp": (folder / "sub" / "nested.webp").read_bytes(),
        "alpha.txt": b"\xef\xbb\xbfa round, red thing",
        "animated.txt": b"caf\xe9",
        "notes.md": b"",
        ".hidden.png": good,
        "Thumbs.db": b"",
        "sub/clip.mp4": b"",
        "sub/list.json": b"",
    }.items():
        (folder / name).write_bytes(data)
    (folder / "sub" / ".thumbs" / "not looked at.png").write_bytes(good)
    save("bad-one.png", noise(1, 1))
    save("bad-thin.png", noise(900, 15))
    (folder / "bad-link.png").symlink_to(folder / "gone.png")
    return folder


SKIPPED = {
    "bad-cut.png": "damaged or truncated: image file is truncated",
    "bad-empty.jpg": "empty file (0 bytes)",
    "bad-heic.heic": "HEIC, AVIF or video cannot be read",
    "bad-jxl.jxl": "JPEG XL cannot be read",
    "bad-link.png": "cannot be opened: No such file or directory",
    "bad-one.png": "too small: 1x1 px, at least 16 px",
    "bad-text.png": "not a picture: the content is none of",
    "bad-thin.png": "too small: 900x15 px, at least 16 px",
    "bad-zeros.png": "not a picture: the content is none of",
    "huge.png": "the same file as bad-copy.png",
    "sub/zz again.webp": "the same file as sub/nested.webp",
}


def test_a_dirty_folder_is_used_or_listed(dirty_folder) -> None:
    dataset = scan_folder(dirty_folder, resolution_px=64)
    # Of two equal files the first by name is used, so 'bad-copy' stands in for 'huge'.
    assert [example.name for example in dataset.examples] == [
        "01 turned.jpg", "alpha.png", "animated.gif", "bad-copy.png", "bilevel.png", "cmyk.jpg", "deep.png",
        "float.tif", "grey-alpha.png", "palette.png", "panorama.png", "really a png.jpg", "sub/nested.webp", "tiny.png",
        "\u6a2a \u00e9\u00df \U0001f600.png",
    ]  # fmt: skip
    reasons = {skipped.name: skipped.reason for skipped in dataset.skipped}
    assert list(reasons) == sorted(SKIPPED)
    assert all(reasons[name].startswith(start) for name, start in SKIPPED.items()), reasons
    assert dataset.num_ignored == 7
    assert [example.index for example in dataset.examples] == list(range(15))
    found = {example.name: example for example in dataset.examples}
    assert (found["01 turned.jpg"].width, found["01 turned.jpg"].height) == (60, 90)
    assert found["01 turned.jpg"].caption == "turned"
    assert {name for name, example in found.items() if example.has_alpha} == {
        "alpha.png", "grey-alpha.png", "palette.png",
    }  # fmt: skip
    assert found["alpha.png"].caption == "a round, red thing"


def test_the_notes_of_a_dirty_folder(dirty_folder) -> None:
    dataset = scan_folder(dirty_folder, resolution_px=64)
    assert dataset.notes == (
        "animated.gif: several frames: the first is used",
        "animated.gif: the caption file is not UTF-8: read as Windows 1252",
        "panorama.png: only 4% of its 2000x20 px fit into 128x32",
        "panorama.png: enlarged 1.6 times, from 2000x20 px to 128x32",
        "tiny.png: enlarged 4.0 times, from 16x16 px to 64x64",
    )


def test_every_used_picture_fits_its_bucket(dirty_folder) -> None:
    dataset = scan_folder(dirty_folder, resolution_px=64)
    for example in dataset.examples:
        tensor = to_tensor(load_fitted(example).rgb)
        assert tensor.shape == (1, 3, example.bucket[1], example.bucket[0]) and tensor.dtype == torch.float32
        assert tensor.min() >= -1 and tensor.max() <= 1


def test_the_folder_is_left_as_it_was(dirty_folder) -> None:
    def listing() -> dict:
        return {path: path.lstat().st_mtime_ns for path in dirty_folder.rglob("*")}

    before = listing()
    scan_folder(dirty_folder, resolution_px=64)
    assert listing() == before


def test_subfolders_are_optional(dirty_folder) -> None:
    paths, num_ignored = find_pictures(dirty_folder, include_subfolders=False)
    assert len(paths) == 24 and num_ignored == 5
    paths, num_ignored = find_pictures(dirty_folder)
    assert len(paths) == 26 and num_ignored == 7
    assert paths == sorted(paths, key=lambda path: path.relative_to(dirty_folder).as_posix())


def test_without_buckets_all_are_squares(dirty_folder) -> None:
    dataset = scan_folder(dirty_folder, resolution_px=64, use_buckets=False)
    assert {example.bucket for example in dataset.examples} == {(64, 64)}


def test_small_pictures_are_enlarged_only_if_allowed(tmp_path, noise) -> None:
    noise(40, 33).save(tmp_path / "a.png")
    assert scan_folder(tmp_path, resolution_px=64).examples[0].bucket == (72, 56)
    example = scan_folder(tmp_path, resolution_px=64, allow_upscale=False).examples[0]
    assert example.bucket == (40, 32) and example.crop.scale == 1.0


def test_settings_reach_the_examples(tmp_path, noise) -> None:
    noise(100, 100).save(tmp_path / "01-red_cat.png")
    dataset = scan_folder(
        tmp_path, resolution_px=128, step_px=64, min_bucket_px=64, max_bucket_px=128, repeats=3,
        background=(1, 2, 3), word_pattern="[a-z]+",
    )  # fmt: skip
    example = dataset.examples[0]
    assert (example.bucket, example.repeats, example.caption) == ((128, 128), 3, "red cat")
    assert dataset.background == (1, 2, 3)
    with pytest.raises(DatasetError, match=r"01-red_cat.png: too small: 100x100 px, at least 101 px"):
        scan_folder(tmp_path, min_side_px=101)


def test_progress_and_stop(tmp_path, noise) -> None:
    for index in range(3):
        noise(32, 32, index).save(tmp_path / f"{index}.png")
    (tmp_path / "3.png").write_bytes(b"")
    calls: list[tuple[int, int]] = []
    scan_folder(tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def stop() -> None:
        raise JobStopped("stopped")

    with pytest.raises(JobStopped):
        scan_folder(tmp_path, boundary=stop)


def test_no_decoded_picture_stays_in_memory(tmp_path) -> None:
    for index in range(4):
        Image.new("RGB", (1500, 1500), (index, 0, 0)).save(tmp_path / f"{index}.bmp")
    tracemalloc.start()
    dataset = scan_folder(tmp_path)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(dataset.examples) == 4
    assert kept < 1e6 and peak < 2 * 1500 * 1500 * 3  # one file at a time, and no picture among the results
    fields = [value for example in dataset.examples for value in vars(example).values()]
    assert not any(isinstance(value, Image.Image | bytes | torch.Tensor) for value in fields)


def test_a_folder_without_usable_pictures_says_what_was_found(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.txt").write_text("cat")
    with pytest.raises(NoUsablePictures) as caught:
        scan_folder(tmp_path)
    assert [str(skipped) for skipped in caught.value.skipped] == ["a.png: empty file (0 bytes)"]
    assert caught.value.num_ignored == 1
    assert caught.value.message == (
        f"The folder {tmp_path} holds no usable picture: 1 unusable (a.png: empty file (0 bytes)) and 1 other files."
    )
    assert caught.value.hint.startswith("Accepted are PNG, JPEG")
    for index in range(12):
        (tmp_path / f"{index}.png").write_bytes(b"")
    with pytest.raises(DatasetError, match="13 unusable .*; and 3 more"):
        scan_folder(tmp_path)


def test_missing_folder_and_file_for_folder(tmp_path) -> None:
    with pytest.raises(DatasetError, match="none does not exist"):
        scan_folder(tmp_path / "none")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DatasetError, match="a.png is a file, not a folder"):
        scan_folder(tmp_path / "a.png")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_name_that_is_no_text_can_be_printed(tmp_path, noise) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    noise(32, 32).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", path)
    example = scan_folder(tmp_path).examples[0]
    assert example.name == "caf\ufffd.png"
    assert load_fitted(example).rgb.size == (512, 512)


def test_a_picture_that_changed_or_vanished_is_named(tmp_path, noise) -> None:
    noise(32, 32).save(tmp_path / "a.png")
    example = scan_folder(tmp_path, resolution_px=64).examples[0]
    noise(32, 32, 1).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="The picture a.png was changed after the folder was read"):
        load_fitted(example)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UnusablePicture, match="a.png: cannot be opened: No such file"):
        load_fitted(example)


def test_the_tensor_is_the_picture(noise) -> None:
    image = noise(8, 16)
    tensor = to_tensor(image)
    assert tensor.shape == (1, 3, 16, 8)
    back = ((tensor[0].permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
    assert np.array_equal(back, np.asarray(image))
    ends = to_tensor(Image.fromarray(np.array([[[0, 255, 51]]], dtype=np.uint8)))
    assert ends.flatten().tolist() == pytest.approx([-1.0, 1.0, -0.6])
