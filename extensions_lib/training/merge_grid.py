"""The sheet of `config.grid`: every merge drawn from memory, one PNG of all and the pictures beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..config.grid import Cell, GridConfig, cells, listed
from ..control import JobControl
from ..errors import OutputError
from ..events import EventStream, PhaseProgress
from ..formats.atomic import write_bytes_atomic
from ..merge.candidate import candidate_of
from ..ports import Surroundings
from ..preview.grid import render_grid
from .candidates import Scene, easel
from .previews import png_bytes

CELL_PX = 384
_PICTURES = "[0-9]*-[0-9][0-9]*-[0-9][0-9]*.png"


@dataclass(frozen=True)
class Drawn:
    """The written sheet, and the single pictures."""

    path: Path
    pictures: tuple[Path, ...]


def draw_grid(config: GridConfig, control: JobControl, events: EventStream, surroundings: Surroundings) -> Drawn:
    """Draw all and write them at the end; or nothing, with an error or when asked to stop.

    The same settings and models give the same pictures on the same device. Raises ExtensionError.
    """
    output = check_grid(config)
    found, prompts = cells(config), listed(config.prompts)
    drawn: dict[tuple[int, int, int], Image.Image] = {}
    total = len(found) * len(prompts)
    device, precision = config.device, config.precision
    with easel(found[0].merge, control, events, surroundings, device=device, precision=precision) as board:
        for cell in found:
            board.put(cell.merge)
            for number, prompt in enumerate(prompts):
                events.emit(PhaseProgress(phase="draw", done=len(drawn), total=total))
                drawn[number, cell.row, cell.column] = board.draw(_scene(config, prompt))
    events.emit(PhaseProgress(phase="draw", done=total, total=total))
    return _write(config, output, found, prompts, drawn)


def check_grid(config: GridConfig) -> Path:
    """Where the sheet will be, once everything that headers show is looked at. Raises OutputError, and as a merge."""
    output = Path(config.folder) / f"{config.name}.png"
    for path in (output, _folder(output)):
        if path.exists() and not config.overwrite:
            raise OutputError(f"{path} already exists and was not touched.", "Choose another name.")
    for cell in cells(config):
        candidate_of(cell.merge)
    return output


def _folder(output: Path) -> Path:
    return output.with_suffix("")


def _scene(config: GridConfig, prompt: str) -> Scene:
    return Scene(
        prompt=prompt,
        negative_prompt=config.negative_prompt,
        seed=config.picture_seed,
        width_px=config.width_px,
        height_px=config.height_px,
        num_steps=config.num_steps,
        guidance_scale=config.guidance_scale,
        sampler=config.sampler,
        clip_skip=config.clip_skip,
    )


def _write(
    config: GridConfig,
    output: Path,
    found: list[Cell],
    prompts: list[str],
    drawn: dict[tuple[int, int, int], Image.Image],
) -> Drawn:
    columns = list(dict.fromkeys((cell.column, cell.x_label) for cell in found))
    rows = list(dict.fromkeys((cell.row, cell.y_label) for cell in found))
    sheet = [
        (_row_label(label, prompt, len(prompts)), [drawn[number, row, column] for column, _ in columns])
        for number, prompt in enumerate(prompts)
        for row, label in rows
    ]
    image = render_grid([label for _, label in columns], sheet, min(CELL_PX, max(config.width_px, config.height_px)))
    folder = _folder(output)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(_PICTURES):  # of a larger sheet of this name
        old.unlink()
    pictures = [
        write_bytes_atomic(folder / f"{number}-{row:02}-{column:02}.png", png_bytes(picture))
        for (number, row, column), picture in sorted(drawn.items())
    ]
    write_bytes_atomic(output, png_bytes(image), overwrite=config.overwrite)
    return Drawn(output, tuple(pictures))


def _row_label(label: str, prompt: str, num_prompts: int) -> str:
    """The setting, and which prompt where there are several."""
    short = prompt if len(prompt) <= 24 else f"{prompt[:21]}..."
    return ", ".join(text for text in (label, short if num_prompts > 1 else "") if text)
