"""A whole job, as it stands in a job file."""

from __future__ import annotations

from dataclasses import dataclass

from .dataset import DatasetConfig
from .field import option
from .methods import MethodConfig
from .optimizer import OptimizerConfig
from .presets import AUTO, FAMILY_NAMES
from .preview import PreviewConfig
from .prior import PriorConfig
from .training import TrainingConfig
from .words import EmbeddingConfig

SCHEMA_VERSION = 1
# Settings of the output that name the folder for a further file, with the kind of that file.
FOLDERS_BESIDE = {"lora_folder": "lora", "embedding_folder": "embedding"}


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Where results go and what stands beside them."""

    folder: str = option("outputs", help="Folder for the result; in a WebUI its own folder for this kind of file.")
    lora_folder: str = option(
        "", help="Folder for a LoRA that is written with a checkpoint; empty: beside it.", advanced=True
    )
    embedding_folder: str = option(
        "", help="Folder for an embedding that is written with another result; empty: beside it.", advanced=True
    )
    runs_folder: str = option("runs", help="Folder for run folders: state, events, previews.")
    overwrite: bool = option(False, help="Replace a result of the same name.")
    dtype: str = option(
        "fp16",
        help="Number format of a LoRA, hypernetwork or checkpoint; LoHa and LoKr are always fp32.",
        choices=("fp16", "bf16", "fp32"),
        advanced=True,
    )
    file_format: str = option(
        "safetensors",
        help="pt: an embedding the WebUI's own Train tab can go on from. ckpt: a checkpoint for old programs.",
        choices=("safetensors", "pt", "ckpt"),
        advanced=True,
    )
    description: str = option("", help="Shown on the WebUI's card.")
    negative_text: str = option("", help="Put into the negative prompt by the WebUI's card.", advanced=True)
    preferred_weight: float = option(1.0, help="Weight the card puts into the prompt.", min=0.0, max=10.0)
    include_captions: bool = option(True, help="Write tag counts and folder names into the file.", advanced=True)


@dataclass(frozen=True, kw_only=True)
class TrainJobConfig:
    """Everything a run is made from."""

    schema_version: int = option(
        SCHEMA_VERSION, help="Version of this format.", min=1, max=SCHEMA_VERSION, advanced=True
    )
    name: str = option(help="Name of the result: its file, its card, its word in prompts.")
    base_model: str = option(help="The checkpoint to start from: .safetensors, .ckpt or a diffusers folder.")
    vae: str = option("", help="A separate VAE file; empty: the checkpoint's own.", advanced=True)
    preset: str = option("", help="Start values; empty: the method's first preset.")
    family: str = option(
        AUTO,
        help="The model family whose start values the preset gives. auto: the base model's.",
        choices=(AUTO, *FAMILY_NAMES),
        advanced=True,
    )
    dataset: DatasetConfig = option(help="The pictures.")
    method: MethodConfig = option(help="What is trained.")
    training: TrainingConfig = option(factory=TrainingConfig, help="The loop.")
    prior: PriorConfig = option(factory=PriorConfig, help="What keeps the model from forgetting the class.")
    optimizer: OptimizerConfig = option(factory=OptimizerConfig, help="The optimizer.")
    preview: PreviewConfig = option(factory=PreviewConfig, help="Pictures while it trains.")
    output: OutputConfig = option(factory=OutputConfig, help="The result.")

    @property
    def trigger_word(self) -> str:
        """The word that stands for [name]."""
        return self.dataset.trigger_word or self.name

    @property
    def is_negative(self) -> bool:
        """Whether the result belongs into the negative prompt."""
        return getattr(self.method, "is_negative", False)

    @property
    def new_words(self) -> dict[str, int]:
        """How many vectors each word is given that has some of its own in this job, the trigger word first."""
        method = self.method
        if not isinstance(method, EmbeddingConfig):
            return {}
        further = {each.word: each.vectors_per_token for each in method.further_words}
        return {self.trigger_word: method.vectors_per_token, **further}
