"""What a result file tells about the pictures it was trained on, in kohya's form, which the WebUI shows.

Only the base names of folders appear, never a path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from .captions import split_tags
from .example import Example


@dataclass(frozen=True)
class DatasetSummary:
    """Three tables; folders are named as in "10_cats", repeats before the name.

    `tag_frequency` {folder: {tag: number of pictures}};
    `bucket_info` {"buckets": {"0": {"resolution": [width, height], "count": pictures times repeats}}};
    `dataset_dirs` {folder: {"n_repeats": repeats, "img_count": pictures}}.
    """

    num_images: int
    tag_frequency: dict[str, dict[str, int]]
    bucket_info: dict[str, dict[str, dict[str, object]]]
    dataset_dirs: dict[str, dict[str, int]]


def summarise(examples: Iterable[Example]) -> DatasetSummary:
    """The summary of `examples`; folders and buckets in order of first appearance and of size."""
    examples = tuple(examples)
    tags: dict[str, Counter[str]] = {}
    folders: dict[str, dict[str, int]] = {}
    sizes: Counter[tuple[int, int]] = Counter()
    for example in examples:
        folder = f"{example.repeats}_{example.path.parent.name}"
        tags.setdefault(folder, Counter()).update(tag.lower() for tag in split_tags(example.caption))
        entry = folders.setdefault(folder, {"n_repeats": example.repeats, "img_count": 0})
        entry["img_count"] += 1
        sizes[example.bucket] += example.repeats
    buckets = {
        str(number): {"resolution": list(size), "count": sizes[size]} for number, size in enumerate(sorted(sizes))
    }
    return DatasetSummary(
        len(examples), {folder: dict(counts) for folder, counts in tags.items()}, {"buckets": buckets}, folders
    )
