"""The kinds of files a training leaves behind, and how the WebUI calls them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ArtefactKind:
    """What all files of one kind share.

    `word` is what users call it. `tag` calls the file named {stem} in a prompt; '' when it is chosen beside the prompt.
    `has_trigger_word`: the prompt needs the word of the captions besides. `suffixes`: the files the WebUI lists.
    """

    word: str
    tag: str
    has_trigger_word: bool
    suffixes: tuple[str, ...]

    def call(self, stem: str, trigger_word: str) -> str:
        """What calls the file `stem` in a prompt: '<lora:cat:1> zcat', an embedding's own name, a checkpoint's word."""
        words = (self.tag.format(stem=stem), trigger_word if self.has_trigger_word else "")
        return " ".join(word for word in words if word)


ARTEFACTS: dict[str, ArtefactKind] = {
    "lora": ArtefactKind("LoRA", "<lora:{stem}:1>", True, (".safetensors", ".pt", ".ckpt")),
    "embedding": ArtefactKind("embedding", "{stem}", False, (".safetensors", ".pt", ".bin")),
    "checkpoint": ArtefactKind("checkpoint", "", True, (".safetensors", ".ckpt")),
    "hypernetwork": ArtefactKind("hypernetwork", "<hypernet:{stem}:1>", True, (".pt",)),
}
