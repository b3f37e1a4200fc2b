"""Which pictures, and what the model is told about each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from .field import option


@dataclass(frozen=True, kw_only=True)
class KnownEmbedding:
    """An embedding whose word the captions may use."""

    path: str = option(help="The file; its name without the ending is the word.", file="embedding")

    @property
    def word(self) -> str:
        """What captions and prompts call it."""
        return PurePath(self.path).stem


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """The training pictures and their captions."""

    folder: str = option(help="Folder with the training pictures.")
    validation_folder: str = option(
        "", help="Folder with pictures kept out of the training, to measure with; empty: the training pictures."
    )
    recursive: bool = option(True, help="Use pictures in sub-folders too.", advanced=True)
    repeats: int = option(1, help="How often each picture occurs in an epoch.", min=1, max=10_000, advanced=True)
    resolution_px: int = option(
        512, help="Side of the square whose area the pictures are brought to.", unit="px", min=32, max=4096
    )
    bucket_step_px: int = option(
        0,
        help="Sides of the aspect-ratio buckets are multiples of this; 0: 64, or 8 below 256 px.",
        unit="px",
        min=0,
        max=256,
        advanced=True,
    )
    use_buckets: bool = option(
        True, help="Keep the shape of each picture. Off: every picture is cropped to a square.", advanced=True
    )
    allow_upscale: bool = option(True, help="Enlarge pictures that are smaller than their bucket.", advanced=True)
    trigger_word: str = option(
        "", help="The word that calls the result in a prompt; replaces [name]. Empty: the name of the job."
    )
    caption_template: str = option(
        "[name], [filewords]",
        help="Text with [name] and [filewords], the name of a built-in template (subject, style, "
        "subject_filewords, style_filewords, filewords) or the path of a template file.",
    )
    embeddings: tuple[KnownEmbedding, ...] = option(
        (),
        help="Embedding files that stay as they are and whose words captions and prompts may use, as in the WebUI. "
        "One a line.",
        item=KnownEmbedding,
        of_line=lambda line: {"path": line.strip()},
        to_line=lambda entry: entry["path"],
        advanced=True,
    )
    shuffle_tags: bool = option(False, help="Shuffle comma-separated tags each time a caption is used.")
    keep_first_tags: int = option(1, help="How many leading tags stay in place when shuffling.", min=0, max=100)
    tag_dropout_rate: float = option(0.0, help="Share of the other tags left out each time.", min=0.0, max=1.0)
    caption_dropout_rate: float = option(0.0, help="Share of captions replaced by the empty text.", min=0.0, max=1.0)
    flip: bool = option(False, help="Mirror pictures at random. Wrong for faces with a parting and for text.")
    use_alpha_masks: bool = option(False, help="Learn mainly from the opaque part of pictures with transparency.")
    unmasked_weight: float = option(
        0.1, help="Weight of the transparent part when masks are used.", min=0.0, max=1.0, advanced=True
    )
    background_color: str = option("#ffffff", help="Colour put behind transparent pictures.", advanced=True)
    latent_sampling: str = option(
        "random",
        help="random: a fresh sample of the encoder's distribution each time. mean: always its mean.",
        choices=("random", "mean"),
        advanced=True,
    )
