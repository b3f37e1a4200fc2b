"""A slider for every block of a model; the page's script writes their numbers into the text of a ratio."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape

from ..merge.blocks import BLOCK_MAPS, BlockMap
from .markup import attributes

START = 0.5
# By where a block stands in the UNet: 0 where pictures come in, 1 where they go out.
SHAPES: dict[str, Callable[[float], float]] = {
    "Even": lambda place: START,
    "Rising": lambda place: place,
    "Falling": lambda place: 1 - place,
    "Valley: most at both ends": lambda place: abs(2 * place - 1),
    "Hill: most in the middle": lambda place: 1 - abs(2 * place - 1),
    "Only blocks in": lambda place: float(place < START),
    "Only the middle": lambda place: float(place == START),
    "Only blocks out": lambda place: float(place > START),
}


def block_editor_html(targets: Mapping[str, str]) -> str:
    """Sliders for each kind of model, closed; `targets` are labels and ids of the texts that they can write."""
    editors = (_editor(blocks, targets) for blocks in dict.fromkeys(BLOCK_MAPS.values()))
    return f'<div class="ts-check">{"".join(editors)}</div>'


def _editor(blocks: BlockMap, targets: Mapping[str, str]) -> str:
    names = blocks.preset
    sliders = "".join(_slider(name) for name in names)
    editor = attributes(class_="ts-blocks", data_ts_blocks=True)
    return (
        f"<details><summary>Sliders for {escape(blocks.title)}: {len(names)} blocks</summary><div{editor}>"
        f"{_choice('Write into', 'target', targets)}{_choice('Shape', 'shape', _shapes(blocks))}"
        f'<div class="ts-sliders">{sliders}</div></div></details>'
    )


def _slider(name: str) -> str:
    slider = attributes(type="range", min=0, max=1, step=0.01, value=START)
    return f"<label><span>{name}</span><input{slider}><output>{START:g}</output></label>"


def _shapes(blocks: BlockMap) -> dict[str, str]:
    """The numbers of each shape, one for each slider; BASE is as what is even."""
    last = len(blocks.unet) - 1
    return {
        label: ",".join(f"{number:.3g}" for number in (START, *(shape(index / last) for index in range(last + 1))))
        for label, shape in SHAPES.items()
    }


def _choice(label: str, name: str, values: Mapping[str, str]) -> str:
    options = "".join(f"<option{attributes(value=value)}>{escape(words)}</option>" for words, value in values.items())
    return f"<label>{escape(label)} <select{attributes(name=name)}>{options}</select></label>"
