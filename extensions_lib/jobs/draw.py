"""Pictures with what a run has learnt so far, without training."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..config.preview import PreviewPrompt
from ..errors import TrainingError
from ..events import EventStream, Listener
from .store import RunFolder


def draw_previews(
    folder: RunFolder, prompts: Sequence[str], seed: int, output: Path, listeners: Sequence[Listener] = ()
) -> int:
    """Write a grid of the base model's and the run's pictures to `output`; returns the steps the run has behind it.

    Without `prompts` the run's own are drawn, or the trigger word. Raises TrainingError when the run has no state yet,
    ExtensionError when it is that of a tool.
    """
    import torch

    from ..formats.atomic import write_bytes_atomic
    from ..methods.catalogue import make_method
    from ..methods.known_words import with_known_words
    from ..training.build import choose_device, job_precision, load_model
    from ..training.previews import Previewer, no_boundary
    from ..training.run_state import load_newest

    config = folder.training()
    state = load_newest(folder.state)
    if state is None:
        raise TrainingError(f"The run {folder.path} has no saved state yet.", "Start it, or wait for its first save.")
    events = EventStream(folder.job_id, tuple(listeners))
    device = choose_device(config.training.device)
    bundle = load_model(config, device, job_precision(config, device), events)
    asked = tuple(PreviewPrompt(prompt=text, seed=seed) for text in prompts)
    word = PreviewPrompt(prompt="[name]", seed=seed)
    if config.is_negative:
        word = PreviewPrompt(prompt="", negative_prompt="[name]", seed=seed)
    chosen = asked or config.preview.prompts or (word,)
    method = make_method(config.method, config.output)
    with (
        method.attach(bundle, config.trigger_word, torch.Generator().manual_seed(0)) as trainable,
        with_known_words(bundle, trainable, config.dataset.embeddings),
    ):
        trainable.load_state(state.tensors["trainable"])
        with tempfile.TemporaryDirectory() as scratch:
            _, grid = Previewer(config, bundle, trainable, chosen, Path(scratch), no_boundary).draw(state.step)
            write_bytes_atomic(output, grid.read_bytes(), overwrite=True)
    return state.step
