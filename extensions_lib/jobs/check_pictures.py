"""Pictures and captions as the model gets them, by the code the training uses."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.job import TrainJobConfig
from ..errors import DatasetError
from .check_report import PictureCheck
from .clashes import contains

if TYPE_CHECKING:
    from PIL import Image

    from ..data.caption_maker import CaptionMaker
    from ..data.dataset import Dataset
    from ..data.example import Example
    from ..data.fitted import FittedPicture
    from ..models.tokenizer import PromptTokenizer

THUMB_PX = 160
JPEG_QUALITY = 90
MAX_NAMED = 5
NUM_READERS = 4


@dataclass(frozen=True)
class Captions:
    """The texts of all pictures, in order, and their tokens by chunk (no chunks without a tokenizer)."""

    texts: tuple[str, ...]
    chunks: tuple[tuple[tuple[str, ...], ...], ...]
    left_out: tuple[tuple[str, ...], ...]

    @property
    def max_chunks(self) -> int:
        """Chunks of the longest caption."""
        return max(map(len, self.chunks), default=1)


def captions_of(
    config: TrainJobConfig, dataset: Dataset, maker: CaptionMaker, tokenizer: PromptTokenizer | None
) -> Captions:
    """What the model will be told; where captions change from epoch to epoch, those of the first."""
    examples = dataset.examples
    if maker.is_constant:
        texts = maker.all_captions(examples)
    else:
        texts = tuple(maker.caption(example, seed=config.training.seed, epoch=0) for example in examples)
    if tokenizer is None:
        return Captions(texts, tuple(() for _ in texts), tuple(() for _ in texts))
    tokens = _new_tokens(config, tokenizer)
    chunks = tuple(tuple(map(tuple, tokenizer.pieces(text, tokens))) for text in texts)
    return Captions(texts, chunks, tuple(tuple(tokenizer.left_out(text)) for text in texts))


def _new_tokens(config: TrainJobConfig, tokenizer: PromptTokenizer) -> dict[str, list[int]]:
    """The words as the training will attach them."""
    from ..formats.embedding import read_embedding

    files = {each.word: read_embedding(Path(each.path), each.word) for each in config.dataset.embeddings}
    known = {word: len(next(iter(file.vectors.values()))) for word, file in files.items()}
    tokens, first = {}, tokenizer.num_vocabulary
    for word, num_vectors in {**config.new_words, **known}.items():
        tokens[word] = list(range(first, first + num_vectors))
        first += num_vectors
    return tokens


def caption_warnings(
    config: TrainJobConfig, dataset: Dataset, maker: CaptionMaker, captions: Captions, tokenizer: PromptTokenizer
) -> list[str]:
    """Captions that are empty, that go on beyond one chunk or that lack the job's word; and whether they change."""
    names = [example.name for example in dataset.examples]
    words = {word: tokenizer.tokenize(word) for word in (config.new_words or [config.trigger_word])}
    texts = list(zip(names, captions.texts, strict=True))
    present = [_words_in(tokenizer.tokenize(text), words) for text in captions.texts]
    without = [name for (name, text), found in zip(texts, present, strict=True) if text and not found]
    unused = [word for word in words if len(words) > 1 and word not in set().union(*present)]
    may_be_dropped = config.dataset.caption_dropout_rate > 0
    found = {
        "Without any caption": [name for name, text in texts if not (text or may_be_dropped)],
        "With captions of more than 75 tokens, which are read in several parts like long prompts": [
            name for name, chunks in zip(names, captions.chunks, strict=True) if len(chunks) > 1
        ],
        f"With captions that lack {_listed(words)}, so that they do not teach it": without,
    }
    warnings = [f"{what}: {_named(names)}." for what, names in found.items() if names]
    warnings += [f"No caption has the word {word!r}, so that its vectors learn nothing." for word in unused]
    if not maker.is_constant:
        warnings.append("Captions change each time they are used; those of the first epoch are shown.")
    return warnings


def _words_in(ids: Sequence[int], words: Mapping[str, Sequence[int]]) -> set[str]:
    return {word for word, its_ids in words.items() if contains(ids, its_ids)}


def _listed(words: Iterable[str]) -> str:
    quoted = [repr(word) for word in words]
    return f"the word {quoted[0]}" if len(quoted) == 1 else f"each of the words {', '.join(quoted)}"


def _named(names: list[str]) -> str:
    listed = ", ".join(names[:MAX_NAMED])
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{len(names)} picture{'s' if len(names) > 1 else ''} ({listed}{more})"


def bucket_counts(dataset: Dataset) -> dict[str, int]:
    """{'512x512': number of pictures}, the fullest bucket first."""
    counts = Counter("{}x{}".format(*example.bucket) for example in dataset.examples)
    return dict(counts.most_common())


def picture_checks(
    config: TrainJobConfig, dataset: Dataset, captions: Captions, max_pictures: int
) -> tuple[tuple[PictureCheck, ...], tuple[tuple[str, str], ...]]:
    """The first pictures, and (name, reason) of those that could not be read again."""
    from ..data.fitted import load_fitted

    def look(index: int, example: Example) -> PictureCheck | tuple[str, str]:
        try:
            fitted = load_fitted(example, background=dataset.background)
        except DatasetError as error:
            return example.name, error.message
        return _picture(config, example, fitted, captions, index)

    with ThreadPoolExecutor(NUM_READERS) as readers:  # decoding leaves the interpreter free
        looks = list(readers.map(look, range(max_pictures), dataset.examples))
    pictures = tuple(each for each in looks if isinstance(each, PictureCheck))
    return pictures, tuple(each for each in looks if not isinstance(each, PictureCheck))


def _picture(
    config: TrainJobConfig, example: Example, fitted: FittedPicture, captions: Captions, index: int
) -> PictureCheck:
    from ..models.chunking import CHUNK_LENGTH

    thumb = fitted.rgb.copy()
    thumb.thumbnail((THUMB_PX, THUMB_PX))
    chunks = captions.chunks[index]
    left, top, right, bottom = map(round, example.crop.box)
    return PictureCheck(
        name=example.name,
        size_px=(example.width, example.height),
        bucket_px=example.bucket,
        crop_px=(left, top, right, bottom),
        caption=captions.texts[index],
        chunks=chunks,
        num_tokens=sum(map(len, chunks)),
        limit=CHUNK_LENGTH,
        left_out=captions.left_out[index],
        notes=example.notes,
        thumb=_data_uri(thumb),
        thumb_px=thumb.size,
        mask=_mask(config, example, fitted, thumb.size),
    )


def _mask(config: TrainJobConfig, example: Example, fitted: FittedPicture, size: tuple[int, int]) -> str:
    """What counts, in white, by the training's own weights; '' when everything counts alike."""
    if fitted.alpha is None or not config.dataset.use_alpha_masks:
        return ""
    from PIL import Image

    from ..data.masks import alpha_mask

    weights = alpha_mask(fitted.alpha, example.bucket, example.crop, unmasked_weight=config.dataset.unmasked_weight)
    grey = (weights[0] / weights.max() * 255).round().byte().numpy()
    return _data_uri(Image.fromarray(grey, "L").resize(size, Image.Resampling.NEAREST))


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
