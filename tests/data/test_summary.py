from __future__ import annotations

from extensions_lib.data.summary import summarise


def test_summary_in_kohyas_form(make_example) -> None:
    summary = summarise(
        [
            make_example(0, (64, 64), 2, "Red, round,, red", "home/anna/cats/a.png"),
            make_example(1, (48, 96), 2, "red hat", "home/anna/cats/b.png"),
            make_example(2, (64, 64), 1, "", "home/anna/dogs/c.png"),
        ]
    )
    assert summary.num_images == 3
    assert summary.tag_frequency == {"2_cats": {"red": 2, "round": 1, "red hat": 1}, "1_dogs": {}}
    assert summary.bucket_info == {
        "buckets": {"0": {"resolution": [48, 96], "count": 2}, "1": {"resolution": [64, 64], "count": 3}}
    }
    assert summary.dataset_dirs == {
        "2_cats": {"n_repeats": 2, "img_count": 2},
        "1_dogs": {"n_repeats": 1, "img_count": 1},
    }
    assert "anna" not in repr(summary)
