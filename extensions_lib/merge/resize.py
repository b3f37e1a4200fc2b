"""A LoRA made smaller: in each layer the nearest factors with fewer directions, whatever algorithm it was made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..config.networks import ResizeConfig
from ..control import JobControl
from ..errors import MergeError
from ..formats.network import LayerChange
from .layer_sums import Part, nearest_change
from .lora_files import LoraWriting, WrittenLora, output_path, read_lora_file, refuse_doras, write_lora
from .plan import check_output
from .progress import Emit, Progress
from .ranks import Lengths, rank_text
from .recipe import Recipe, source_paths
from .writing import HashOf


def resize(
    config: ResizeConfig,
    control: JobControl,
    emit: Emit,
    *,
    hash_of: HashOf = lambda path: None,
    recipe: Recipe | None = None,
) -> WrittenLora:
    """Write the smaller LoRA; complete under its name, or nothing. `hash_of` and `recipe` as in `write_lora`.

    Raises MergeError for a DoRA, a file without layers that have factors, and numbers that are not finite; otherwise as
    `read_network`, `check_output` and `write_lora`.
    """
    (path,) = source_paths(config)
    given = read_lora_file(path)
    refuse_doras(given)
    check_output(output_path(config), [path], 0, overwrite=config.overwrite)
    progress, lengths, changes = Progress("resize", len(given.changes), control, emit), Lengths(), []
    for change in given.changes.values():
        changes.append(nearest_change([Part(change)], config, lengths))
        progress.advance()
    if all(change.algorithm != "LoRA" for change in changes):
        raise MergeError(
            f"{path.name} holds no layer that could have factors: norm layers and biases only.",
            "Drop the biases, or choose another file.",
        )
    writing = LoraWriting(
        config,
        changes,
        sources=[path],
        headers=[given.metadata],
        told=lambda recipe: _told(recipe, given.metadata, changes),
        method=rank_text(config),
        error=lengths.error,
        words=given.words,
        family=given.family,
    )
    return write_lora(writing, control, emit, hash_of=hash_of, recipe=recipe)


def _told(recipe: Recipe, kept: Mapping[str, str], changes: Sequence[LayerChange]) -> dict[str, str]:
    """The header of the file, with the new size."""
    largest = str(max(change.rank for change in changes if change.algorithm == "LoRA"))
    told = {key: value for key, value in kept.items() if key != "ss_network_args"}
    return {
        **told,
        "ss_network_module": "networks.lora",
        "ss_network_dim": largest,
        "ss_network_alpha": f"{largest}.0",
        "ss_output_name": recipe.settings["name"],
    }
