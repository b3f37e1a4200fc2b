"""The report as HTML: complete, escaped, and nothing that moves or runs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from extensions_lib.jobs.check_report import CheckProblem, CheckReport, DiskRoom, PictureCheck
from extensions_lib.ui.check_view import check_html, summary

ROOT = Path(__file__).parents[2]
PICTURE = PictureCheck(
    name="cat.png",
    size_px=(96, 64),
    bucket_px=(64, 64),
    crop_px=(16, 0, 80, 64),
    caption="zbadge, a cat",
    chunks=(("z", "badge", ",", "a", "cat"),),
    num_tokens=5,
    limit=75,
    left_out=(),
    notes=("enlarged 1.3 times",),
    thumb="data:image/jpeg;base64,AAAA",
    thumb_px=(64, 48),
)
REPORT = CheckReport(
    problems=(),
    warnings=(),
    method="lora",
    max_train_steps=1200,
    pictures=(PICTURE,),
    num_pictures=12,
    skipped=(("a.png", "empty file (0 bytes)"),),
    num_ignored=12,
    buckets={"64x64": 7, "80x48": 4, "48x80": 1},
    epochs=200.0,
    num_samples=2400,
    num_parameters=1234567,
    seconds_per_step=0.7,
    pace_text="as in the earlier run cat-2",
    memory_gib=6.14,
    device="cuda",
    disk=(DiskRoom("results", 20, 5000), DiskRoom("run", 52, 4000)),
)


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed in its turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def changed(**changes: object) -> CheckReport:
    return dataclasses.replace(REPORT, **changes)


def with_picture(**changes: object) -> CheckReport:
    return changed(pictures=(dataclasses.replace(PICTURE, **changes),))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {},
            "12 pictures, 3 buckets, 1 skipped; 2400 samples = 1200 steps = 200 epochs; about 14 min; "
            "about 6.1 GiB of memory",
        ),
        (
            {"seconds_per_step": None, "pace_text": "known after the first steps", "skipped": ()},
            "12 pictures, 3 buckets; 2400 samples = 1200 steps = 200 epochs; time known after the first steps; "
            "about 6.1 GiB of memory",
        ),
        (
            {
                "num_pictures": 1,
                "buckets": {"64x64": 1},
                "max_train_steps": 1,
                "epochs": 0.25,
                "memory_gib": None,
                "num_samples": 1,
            },
            "1 picture, 1 bucket, 1 skipped; 1 sample = 1 step = 0.25 epochs; under a minute",
        ),
        (
            {"num_pictures": 0, "buckets": {}, "epochs": None, "num_samples": None, "skipped": (), "memory_gib": None},
            "0 pictures; 1200 steps; about 14 min",
        ),
    ],
)
def test_the_summary(changes: dict[str, object], line: str) -> None:
    assert summary(changed(**changes)) == line
    assert Reader(check_html(changed(**changes))).texts[0] == line


def test_a_card_shows_sizes_caption_and_tokens() -> None:
    page = Reader(check_html(REPORT))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert images == [
        {"src": PICTURE.thumb, "width": "64", "height": "48", "alt": "cat.png as the model sees it", "loading": "lazy"}
    ]
    for text in ("96x64 px, trained at 64x64; cut off: left 16, right 16", "zbadge, a cat", "5 of 75 tokens",
                 "enlarged 1.3 times", "What the model will see: the first 1 of 12 pictures"):  # fmt: skip
        assert text in page.texts
    start = page.texts.index("5 of 75 tokens")
    assert [text for text in page.texts[start + 1 : start + 10] if text.strip()] == ["z", "badge", ",", "a", "cat"]


def test_a_whole_picture_is_not_called_cut() -> None:
    html = check_html(with_picture(crop_px=(0, 0, 96, 64)))
    assert "96x64 px, trained at 64x64</p>" in html


def test_long_captions_and_masks() -> None:
    report = with_picture(chunks=(("cat",) * 75, ("dog",) * 5), num_tokens=80, mask="data:image/jpeg;base64,BBBB")
    page = Reader(check_html(report))
    assert "80 tokens, read in 2 parts of at most 75" in page.texts
    assert [attributes["src"] for tag, attributes in page.tags if tag == "img"][1] == "data:image/jpeg;base64,BBBB"
    assert check_html(report).count('class="ts-check-tokens"') == 2


def test_what_is_left_out_is_struck_through_and_said() -> None:
    report = with_picture(caption="a <lora:x:1> cat <lora:x:1>", left_out=("<lora:x:1>", "<lora:x:1>"))
    html = check_html(report)
    mark = '<del><span class="ts-for-readers">not read by the model: </span>&lt;lora:x:1&gt;</del>'
    assert f"a {mark} cat {mark}</p>" in html
    Reader(html)


def test_without_a_tokenizer_the_caption_stands_alone() -> None:
    page = Reader(check_html(with_picture(chunks=(), num_tokens=0)))
    assert "zbadge, a cat" in page.texts and "tokens" not in page.text
    assert "no caption" in Reader(check_html(with_picture(caption="", chunks=((),), num_tokens=0))).texts


def test_problems_come_with_labels_and_hints() -> None:
    report = changed(
        problems=(
            CheckProblem("training.device", "training.device: is 'cuda:9'", "Use auto or cpu."),
            CheckProblem("dataset.folder", "The picture folder /x does not exist.", "Give the folder."),
            CheckProblem("placeholder_token", "placeholder_token: '!' has no letters"),
        ),
        warnings=("Captions change.",),
    )
    page = Reader(check_html(report))
    for text in ("3 things stop the start", "Device", ": is 'cuda:9'", "Use auto or cpu.", "Captions change.",
                 "The picture folder /x does not exist.", "placeholder_token: '!' has no letters"):  # fmt: skip
        assert text in page.texts
    assert ("section", {"class": "ts-error", "role": "alert"}) in page.tags
    assert "One thing stops the start" in Reader(check_html(changed(problems=report.problems[:1]))).texts
    assert "ts-error" not in check_html(REPORT) and "ts-warning" not in check_html(REPORT)


def test_numbers_and_skipped_pictures_are_listed() -> None:
    page = Reader(check_html(REPORT))
    for text in (
        "64x64 px: 7, 80x48 px: 4, 48x80 px: 1",
        "2400 in all",
        "1,234,567",
        "about 6.1 GiB on cuda, an estimate",
        "about 0.7 s, as in the earlier run cat-2",
        "20 MiB needed, 5000 MiB free",
        "Skipped: 1 picture",
        "a.png",
        ": empty file (0 bytes)",
        "12 other files (captions among them), not pictures.",
    ):
        assert text in page.texts


def test_everything_is_escaped_and_nothing_runs() -> None:
    evil = '<script>alert("1")</script>\'&'
    report = changed(
        problems=(CheckProblem(evil, f"{evil}: {evil}", evil),),
        warnings=(evil,),
        skipped=((evil, evil),),
        buckets={evil: 1},
        pace_text=evil,
        device=evil,
        disk=(DiskRoom(evil, 1, 1),),
        pictures=(
            dataclasses.replace(
                PICTURE,
                name=evil,
                caption=evil,
                chunks=((evil,),),
                notes=(evil,),
                left_out=(evil,),
                thumb=evil,
                mask=evil,
            ),
        ),
    )
    html = check_html(report)
    page = Reader(html)
    assert "script" not in {tag for tag, _ in page.tags} and '"1"' not in html
    assert page.text.count(evil) == 14
    assert not any(name.startswith("on") or name == "style" for _, attributes in page.tags for name in attributes)


def test_all_classes_are_ours_and_the_block_is_one() -> None:
    html = check_html(changed(warnings=("w",), problems=(CheckProblem("a", "b", "c"),)))
    assert html.startswith('<div class="ts-check">') and html.endswith("</div>")
    classes = {name for _, attributes in Reader(html).tags for name in (attributes.get("class") or "").split()}
    assert classes and all(name.startswith("ts-") for name in classes)
    css = (ROOT / "style.css").read_text(encoding="utf-8")
    assert {name for name in classes if f".{name}" not in css} == set()


def test_the_view_needs_no_gradio() -> None:
    code = "import sys; sys.modules['gradio'] = None; import extensions_lib.ui.check_view; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "extensions_lib.ui.check_view" in done.stdout and "torch" not in done.stdout.split()
