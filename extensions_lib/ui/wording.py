"""What settings, methods and start values are called on the page; what is not named here is called by its own name."""

from __future__ import annotations

METHOD_WORDS = {
    "lora": "LoRA",
    "textual_inversion": "Embedding",
    "pivotal": "LoRA with a word of its own",
    "dreambooth": "Checkpoint (DreamBooth)",
    "hypernetwork": "Hypernetwork",
}
METHOD_TEXTS = {
    "lora": "LoRA: right for most; <lora:name:1> in the prompt.",
    "textual_inversion": "Embedding: a word, tiny, mixes what the checkpoint knows.",
    "pivotal": "LoRA with a word of its own: both in one file.",
    "dreambooth": "Checkpoint: the whole model, gigabytes, learns most.",
    "hypernetwork": "Hypernetwork: an older kind, for styles.",
}
PURPOSES = {
    "lora_character": "Person or character",
    "lora_object": "Object",
    "lora_style": "Style",
    "lora_loha": "Person or character, as LoHa",
    "lora_lokr": "Person or character, as LoKr: a smaller file",
    "lora_quick_look": "Quick look",
    "dreambooth_face": "Person or face",
    "dreambooth_object": "Object",
    "hypernetwork_style": "Style",
    "embedding_subject": "Person, character, object",
    "embedding_style": "Style",
    "embedding_negative": "What pictures should not have (negative)",
    "embedding_quick_look": "Quick look",
    "pivotal_character": "Person, character, object",
    "embedding_webui": "As the WebUI's own Train tab does it",
}
LIKE_TEXT = (
    "Takes over the settings that a LoRA, an embedding, a job file, a config of kohya's sd-scripts (.toml) or of "
    "OneTrainer (.json) speaks of, and lists what does not map."
)
FAMILY_WORDS = {
    "sd1": "Stable Diffusion 1",
    "sd1_v": "Stable Diffusion 1 with v-prediction",
    "sd2": "Stable Diffusion 2",
    "sd2_v": "Stable Diffusion 2 with v-prediction",
    "sdxl": "Stable Diffusion XL",
    "sdxl_v": "Stable Diffusion XL with v-prediction",
}
# What `formats.inspect` calls kinds of files.
KIND_WORDS = {
    "checkpoint": "Checkpoint",
    "unet": "UNet alone",
    "vae": "VAE",
    "text_encoder": "Text encoder alone",
    "lora": "LoRA",
    "embedding": "Embedding",
    "hypernetwork": "Hypernetwork",
    "controlnet": "ControlNet",
    "unknown": "Not known to Train Studio",
}
FILE_WORDS = {
    "checkpoint": "Checkpoint",
    "lora": "LoRA",
    "embedding": "Embedding",
    "hypernetwork": "Hypernetwork",
    "vae": "VAE",
    "model": "File",
}
SECTIONS = {
    "job": "Job",
    "method": "Method",
    "training": "Training",
    "prior": "Prior preservation",
    "optimizer": "Optimizer",
    "dataset": "Pictures and captions",
    "preview": "Previews",
    "output": "Result",
}

LABELS = {
    "job.base_model": "Base checkpoint",
    "job.vae": "VAE file",
    "dataset.folder": "Pictures: a folder",
    "dataset.validation_folder": "Folder of pictures to measure with",
    "dataset.recursive": "Sub-folders too",
    "dataset.repeats": "Repeats of each picture",
    "dataset.use_buckets": "Keep the shape of pictures",
    "dataset.allow_upscale": "Enlarge small pictures",
    "dataset.flip": "Mirror pictures at random",
    "dataset.use_alpha_masks": "Use transparency as a mask",
    "dataset.unmasked_weight": "Weight of the transparent part",
    "dataset.background_color": "Background colour",
    "textual_inversion.is_negative": "Negative embedding",
    "textual_inversion.further_words": "Further words, one a line",
    "textual_inversion.relative_learning_rate": "Learning rate relative to the model's own words",
    "textual_inversion.start_from": "Embedding to go on from",
    "pivotal.embedding_learning_rate": "Learning rate of the vectors",
    "pivotal.embedding_until": "Train the vectors until",
    "pivotal.embedding_files": "Where the words are written",
    "pivotal.start_from": "LoRA with a word to go on from",
    "pivotal.embedding_start_from": "Embedding for its word to go on from",
    "hypernetwork.start_from": "Hypernetwork to go on from",
    "lora.start_from": "LoRA to go on from",
    "dreambooth.start_from": "Checkpoint to go on from",
    "dreambooth.train_text_encoder": "Train the text encoder as well",
    "dreambooth.text_encoder_learning_rate": "Learning rate of the text encoder",
    "dreambooth.difference_rank": "Rank of a LoRA with the difference",
    "dreambooth.weight_dtype": "Number format of the trained weights",
    "dreambooth.text_encoder_until": "Share of the run for the text encoder",
    "lora.alpha": "Alpha",
    "lora.train_text_encoder": "Train the text encoder too",
    "prior.kind": "Keep what the model knows of the class",
    "prior.folder": "Class pictures: a folder",
    "prior.num_class_images": "Class pictures to draw",
    "prior.num_steps": "Denoising steps of class pictures",
    "prior.guidance_scale": "Guidance scale of class pictures",
    "prior.sampler": "Sampler of class pictures",
    "lora.dora": "DoRA",
    "lora.rs_lora": "rs-LoRA scaling",
    "lora.lora_plus_ratio": "LoRA+ ratio",
    "lora.max_norm": "Limit of a layer's change",
    "lora.module_dropout": "Layer dropout",
    "lora.lokr_factor": "LoKr factor",
    "lora.lokr_whole": "LoKr with a whole matrix",
    "lora.layers": "Layers",
    "lora.train_norms": "Norm layers too",
    "lora.block_ranks": "Ranks of some layers",
    "lora.block_rates": "Learning rates of some layers",
    "training.num_samples": "Length of the run",
    "training.max_train_steps": "Length of the run",
    "training.train_batch_size": "Batch size",
    "training.gradient_accumulation_steps": "Gradient accumulation",
    "training.save_every_steps": "Save a result every",
    "training.state_every_steps": "Save the state every",
    "training.validation_every_steps": "Measure the loss every",
    "training.num_threads": "CPU threads",
    "training.max_grad_norm": "Gradient norm limit",
    "training.min_snr_gamma": "Min-SNR gamma",
    "training.ema_decay": "EMA decay",
    "optimizer.lr_scheduler": "Learning rate schedule",
    "optimizer.lr_warmup_ratio": "Warm-up ratio",
    "optimizer.min_lr_ratio": "Lowest learning rate ratio",
    "optimizer.lr_num_cycles": "Cycles of the schedule",
    "optimizer.lr_power": "Power of the schedule",
    "preview.every_steps": "Preview every",
    "preview.enabled": "Draw previews",
    "preview.at_start": "Preview before the first step",
    "preview.prompts": "Preview prompts, one a line",
    "prompt.num_steps": "Denoising steps",
    "output.overwrite": "Replace a result of the same name",
    "output.dtype": "Number format of the file",
    "output.description": "Description on the card",
    "output.negative_text": "Negative text of the card",
    "output.preferred_weight": "Weight on the card",
    "output.include_captions": "Write tag counts into the file",
}
FOLDERS_TEXT = "One a line; folders in them are searched too. Empty: where the checkpoints and LoRAs are."
# Settings of tools, whichever tool has them, or of one.
TOOL_LABELS = {
    "rebuild.models": "Folders with its models",
    "overwrite": "Replace a file of the same name",
    "grid.x": "Columns",
    "grid.x_values": "Values of the columns",
    "grid.y": "Rows",
    "grid.y_values": "Values of the rows",
    "model": "Checkpoint",
    "ema": "Averaged weights (EMA)",
    "nan": "Broken numbers (NaN)",
    "leave_out_vae": "Leave out the VAE",
    "leave_out_text_encoder": "Leave out the text encoders",
    "private": "Take out what is private",
    "remove": "Keys to take out",
    "pairs": "Further entries",
    "base": "Base checkpoint",
    "tuned": "Tuned checkpoint",
    "network": "LoRA",
    "networks": "LoRAs",
    "bake_vae": "VAE to bake in",
    "dtype": "Number format",
    "vae_dtype": "Number format of the VAE",
    "unet": "UNet",
    "vae": "VAE",
    "discard": "Tensors to leave out",
    "ignore_unknown": "Leave out layers that do not fit",
}
# What a list, one entry a line, shows while it is empty.
EXAMPLES = {"prompts": "a photo of [name]", "further_words": "zhat: 4, red hat"}
PREVIEW_PROMPTS_TEXT = (
    "[name] becomes the trigger word. Empty: one picture of '[name]'. A line such as "
    '{"prompt": "a [name]", "seed": 3} has settings of its own.'
)


def words_of(name: str, unit: str) -> str:
    """'Bucket step' for 'bucket_step_px': a setting's name as words, without its unit."""
    words = name.removesuffix(f"_{unit}") if unit else name
    words = words.removeprefix("num_").replace("_", " ")
    return words[:1].upper() + words[1:]
