from __future__ import annotations

import re

from extensions_lib.merge.blocks import BLOCK_MAPS, parse_ratios
from extensions_lib.ui.block_editor import SHAPES, block_editor_html
from extensions_lib.ui.file_view import MAX_METADATA_SIGNS, file_html

FACTS = {
    "kind": "lora", "family": "", "variant": "LoHa", "size_bytes": 6_940_000_000, "num_tensors": 3,
    "dtypes": {"F16": 2, "F32": 1}, "details": {"ranks": [8, 16], "alphas": [0.5], "bundled_embeddings": []},
    "trained_on": {"ss_sd_model_name": "<b>"}, "lineage": ["x: TIES", "`-- <a> [123]"], "made_by": ["OneTrainer"],
    "problems": ["<i> is missing"], "metadata": {"note": "<script>"}, "hashes": {"autov2": "0123456789"},
}  # fmt: skip


def test_a_file_is_told_in_words_and_everything_is_escaped() -> None:
    html = file_html("<x>.safetensors", FACTS)
    for text in (
        "LoRA, LoHa", "not to be told from the file", "6.94 GB, 3 tensors, fp16 (2), fp32 (1)", "Ranks</dt><dd>8, 16",
        "Alphas</dt><dd>0.5", "Made by</dt><dd>OneTrainer", "Sd model name", "0123456789", "x: TIES\n`-- &lt;a&gt;",
        "<li>&lt;i&gt; is missing</li>", "Metadata: 1 entry", "note: &lt;script&gt;",
    ):  # fmt: skip
        assert text in html
    assert "Bundled" not in html and not re.search("<(b|i|x|script)>", html)


def test_long_metadata_is_cut() -> None:
    html = file_html("x", FACTS | {"metadata": {"a": "x" * (MAX_METADATA_SIGNS + 7)}})
    assert "10 signs more" in html and len(html) < MAX_METADATA_SIGNS + 3000


def test_every_shape_of_the_sliders_is_a_ratio_that_the_merge_reads() -> None:
    html = block_editor_html({"Alpha": "train_studio_merge_alpha"})
    lists = re.findall(r'<option value="([\d.,]+)">', html)
    assert len(lists) == 2 * len(SHAPES)
    for text, blocks in zip(lists, [BLOCK_MAPS["sd1"]] * len(SHAPES) + [BLOCK_MAPS["sdxl"]] * len(SHAPES), strict=True):
        ratios = parse_ratios(text.replace(",", ", "), blocks)
        assert len(text.split(",")) == len(blocks.preset)
        assert ratios is not None and all(0 <= float(number) <= 1 for number in text.split(","))
    assert html.count('type="range"') == 26 + 20
