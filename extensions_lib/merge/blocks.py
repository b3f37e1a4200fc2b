"""Ratios by block and by layer: 'one number for everything, but 0.2 in IN04 to IN08 and 1 in the cross attention'.

A text is read from left to right, what stands later wins. Entries are separated by commas, semicolons or lines:

* a number                      the ratio of everything
* 26 numbers (SDXL: 20)         BASE, IN00 to IN11, M00, OUT00 to OUT11 (SDXL: IN00 to IN08, M00, OUT00 to OUT08), with
                                or without a name before them, as preset lists are published
* `IN04=0.2`                    a block; also BASE, M00, TE, VAE and, for SDXL, TE1 and TE2
* `IN04-IN08=0.2`, `OUT=0.2`    blocks in a row, and all whose names begin so; UNET is all but BASE
* `attn2=0.2`                   tensors in whose name the expression (regular, see `re`) is found; between slashes it
                                may hold the separators
* `IN04-IN08:attn2=0.2`         both

TE (text encoders) and VAE are as BASE unless an entry names them, as in published presets, where BASE is everything
outside the UNet. Entries with an expression win over those without. The map is that of SuperMerger's block weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..config.expressions import checked_expression
from ..errors import MergeError

BASE, TEXT, VAE = "BASE", "TE", "VAE"
_MAX_LENGTH = 4000
_ENTRY = re.compile(r"(?:/(?:\\.|[^/\\])*/|[^,;\n/])+")
_SHOWN = 80
_UNET_PREFIX = "model.diffusion_model."


@dataclass(frozen=True)
class BlockMap:
    """The blocks of one family: `unet` in order, and `rules`: which names belong to which; '{}' is a number."""

    title: str
    unet: tuple[str, ...]
    text: tuple[str, ...]
    rules: tuple[tuple[str, str], ...]

    @property
    def preset(self) -> tuple[str, ...]:
        """The blocks of a published preset list, in its order."""
        return (BASE, *self.unet)

    @property
    def names(self) -> tuple[str, ...]:
        """All blocks a tensor can belong to."""
        return (*self.preset, *self.text, VAE)


def _numbered(inputs: int, outputs: int) -> tuple[str, ...]:
    return (*(f"IN{i:02}" for i in range(inputs)), "M00", *(f"OUT{i:02}" for i in range(outputs)))


_NUMBERED_RULES = (
    (r"^model\.diffusion_model\.input_blocks\.(\d+)\.", "IN{:02}"),
    (r"^model\.diffusion_model\.middle_block\.", "M00"),
    (r"^model\.diffusion_model\.output_blocks\.(\d+)\.", "OUT{:02}"),
    (r"^model\.diffusion_model\.(time_embed|label_emb)\.", "IN00"),
    (r"^first_stage_model\.", VAE),
)
_SD = BlockMap(
    "Stable Diffusion 1 and 2",
    _numbered(12, 12),
    (TEXT,),
    (*_NUMBERED_RULES, (r"^model\.diffusion_model\.out\.", "OUT11"), (r"^cond_stage_model\.", TEXT)),
)
_SDXL = BlockMap(
    "Stable Diffusion XL",
    _numbered(9, 9),
    ("TE1", "TE2"),
    (
        *_NUMBERED_RULES,
        (r"^model\.diffusion_model\.out\.", "OUT08"),
        (r"^conditioner\.embedders\.0\.", "TE1"),
        (r"^conditioner\.embedders\.1\.", "TE2"),
    ),
)
BLOCK_MAPS = {"sd1": _SD, "sd2": _SD, "sdxl": _SDXL}

# Lists of other lengths that mean one thing only: family's map -> length -> the blocks, in order; None is not used.
# A list for SD 1 used on SDXL keeps the places that SDXL has.
_SD_FOR_SDXL = tuple(name if name in _SDXL.unet else None for name in _SD.unet)
_OTHER_LISTS: dict[str, dict[int, tuple[str | None, ...]]] = {
    _SD.title: {25: _SD.unet},
    _SDXL.title: {19: _SDXL.unet, 21: (*_SDXL.preset, VAE), 25: _SD_FOR_SDXL, 26: (BASE, *_SD_FOR_SDXL)},
}
# Lists for LoRA files name the blocks that hold attention; a checkpoint has more.
LORA_LISTS: dict[str, dict[int, tuple[str, ...]]] = {
    _SD.title: {
        17: (
            BASE, "IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "M00",
            *(f"OUT{i:02}" for i in range(3, 12)),
        ),
    },
    _SDXL.title: {12: (BASE, "IN04", "IN05", "IN07", "IN08", "M00", *(f"OUT{i:02}" for i in range(6)))},
}  # fmt: skip


@dataclass(frozen=True)
class Override:
    """The ratio of tensors in `blocks` in whose name `pattern` is found."""

    blocks: frozenset[str]
    pattern: re.Pattern[str]
    ratio: float


@dataclass(frozen=True)
class BlockRatios:
    """A ratio for every tensor of a checkpoint of one family."""

    map: BlockMap
    by_block: dict[str, float]
    overrides: tuple[Override, ...] = ()

    def ratio(self, name: str) -> float:
        """The ratio of the tensor called `name`."""
        block = block_of(name, self.map)
        for override in reversed(self.overrides):
            if block in override.blocks and override.pattern.search(name):
                return override.ratio
        return self.by_block[block]


def block_of(name: str, block_map: BlockMap) -> str:
    """The block of a tensor by its name in a checkpoint: 'IN04', 'M00', 'TE', 'VAE', ..., BASE for anything else."""
    for pattern, block in block_map.rules:
        if found := re.match(pattern, name):
            number = found.group(1) if found.lastindex else None
            filled = block.format(int(number)) if number and number.isdigit() else block
            return filled if filled in block_map.names else BASE
    return BASE


def parse_ratios(text: str, block_map: BlockMap, *, for_lora: bool = False) -> BlockRatios:
    """Read a text as the top of this module describes. `for_lora` takes LoRA lists (17 or 12 numbers) too.

    With such a list, blocks it does not name are 0: a file of that kind holds nothing there. Raises MergeError for
    what is none of it, saying what is accepted, and for an empty text.
    """
    if len(text) > _MAX_LENGTH:
        raise MergeError(
            f"The block weights have {len(text)} characters; accepted are up to {_MAX_LENGTH}.", "Give fewer entries."
        )
    entries = list(_entries(text))
    numbers: list[float] = []
    while entries and (number := _number(entries[0])) is not None:
        numbers.append(number)
        entries.pop(0)
    told = _from_list(numbers, block_map, for_lora) if numbers else {}
    overrides: list[Override] = []
    for entry in entries:
        blocks, pattern, ratio = _entry(entry, block_map)
        if pattern is None:
            told |= dict.fromkeys(blocks, ratio)
        else:
            overrides.append(Override(frozenset(blocks), pattern, ratio))
    return BlockRatios(block_map, _complete(told, block_map, text), tuple(overrides))


def _entries(text: str) -> Iterator[str]:
    """Split at separators outside slashes; the name before a published list ('GRAD_V<tab>0,1,...') is left out."""
    text = re.sub(r"^\s*[^\s,;=:/]*[^\s,;=:/\d.+-][^\s,;=:/]*[\t ,]+(?=[-+.\d])", "", text)
    if "/" in _ENTRY.sub("", text):
        raise _unreadable(text, "a slash has no partner; an expression stands between two, as in /attn2/=1")
    for entry in _ENTRY.findall(text):
        if entry.strip():
            yield entry.strip()


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None


def _from_list(numbers: Sequence[float], block_map: BlockMap, for_lora: bool) -> dict[str, float]:
    if len(numbers) == 1:
        return dict.fromkeys(block_map.preset, numbers[0])
    lists: dict[int, tuple[str | None, ...]] = {len(block_map.preset): block_map.preset}
    lists |= _OTHER_LISTS[block_map.title]
    if for_lora:
        lists |= LORA_LISTS[block_map.title]
    if len(numbers) not in lists:
        accepted = ", ".join(str(length) for length in sorted(lists))
        lora_hint = " Lists of 17 or 12 are for LoRA files." if len(numbers) in (12, 17) else ""
        raise MergeError(
            f"A list of {len(numbers)} block weights does not fit {block_map.title}; "
            f"accepted are {accepted}.{lora_hint}",
            f"Give {len(block_map.preset)} numbers: {', '.join(block_map.preset)}.",
        )
    names = lists[len(numbers)]
    told = {name: number for name, number in zip(names, numbers, strict=True) if name is not None}
    is_lora_list = for_lora and len(numbers) in LORA_LISTS[block_map.title]
    return {**(dict.fromkeys(block_map.preset, 0.0) if is_lora_list else {}), **told}


def _entry(entry: str, block_map: BlockMap) -> tuple[tuple[str, ...], re.Pattern[str] | None, float]:
    """'IN04-IN08:attn2=0.2' -> blocks, pattern, ratio; the last sign may be a colon too."""
    found = re.fullmatch(r"(.*\S)\s*[=:]\s*(\S+)", entry)
    ratio = _number(found.group(2)) if found else None
    if found is None or ratio is None:
        raise _unreadable(entry)
    where, colon, layer = found.group(1).partition(":")
    if where.startswith("/"):
        where, colon, layer = found.group(1), "", ""
    blocks = _blocks(where.strip(), block_map)
    if not colon:
        if blocks is not None:
            return blocks, None, ratio
        return block_map.names, _pattern(where.strip(), entry), ratio
    if blocks is None:
        raise _unreadable(entry, f"{where.strip()!r} is no block of {block_map.title}")
    return blocks, _pattern(layer.strip(), entry), ratio


def _blocks(text: str, block_map: BlockMap) -> tuple[str, ...] | None:
    """The blocks that a name, a range or a beginning stands for; None when it is none of them."""
    name = text.upper()
    if name in block_map.names:
        return (name,)
    if name == "UNET":
        return block_map.unet
    if name in ("IN", "OUT", "MID", "M", TEXT):
        return tuple(block for block in block_map.names if block.startswith(name.removesuffix("ID")))
    first, dash, last = (part.strip() for part in name.partition("-"))
    if dash and first in block_map.preset and last in block_map.preset:
        begin, end = block_map.preset.index(first), block_map.preset.index(last)
        if begin <= end:
            return block_map.preset[begin : end + 1]
    if re.fullmatch(r"(IN|M|OUT)\d\d(-(IN|M|OUT)\d\d)?", name):
        raise MergeError(
            f"{text!r} names no blocks of {block_map.title}.",
            f"Its blocks are, in order: {', '.join(block_map.names)}.",
        )
    return None


def _pattern(text: str, entry: str) -> re.Pattern[str]:
    inner = text[1:-1] if len(text) > 1 and text.startswith("/") and text.endswith("/") else text
    try:
        return checked_expression(inner)
    except ValueError as error:
        raise _unreadable(entry, f"{_short(inner)!r}: {error}") from error


def _complete(told: dict[str, float], block_map: BlockMap, text: str) -> dict[str, float]:
    """All blocks, TE and VAE as BASE where they were not told. Without a start value, all UNet blocks must be told."""
    missing = [name for name in block_map.preset if name not in told]
    if missing:
        raise MergeError(
            f"{_short(text)!r} gives no ratio for {', '.join(missing)}.",
            "Begin with a number for everything, such as '0.5, IN04-IN08=0.2'"
            + ("; a list without BASE needs it apart, such as 'BASE=0'." if missing == [BASE] else "."),
        )
    return {name: told.get(name, told[BASE]) for name in block_map.names}


def _unreadable(entry: str, why: str = "it has no number at its end") -> MergeError:
    return MergeError(
        f"The block weights hold {_short(entry)!r}, which cannot be read: {why}.",
        "Accepted are a number, a list of 26 (SDXL: 20), and entries such as IN04-IN08=0.2, attn2=1, IN:attn2=0.5.",
    )


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
