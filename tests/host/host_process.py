"""For scripts that run in the WebUI's own Python: its modules and its model. No package of ours is imported."""

import os
import sys

OPEN_CLIP = {"cond_stage_model.model.": "ViT-H-14", "conditioner.embedders.1.model.": "ViT-bigG-14"}
HEAD_WIDTH = 64


def load_host(root, checkpoint, data):
    """The host's modules and its model, without page and server; what it writes goes to the folder `data`."""
    os.chdir(root)
    sys.path[:0] = [root, os.path.join(root, "extensions-builtin", "Lora")]
    flags = "--use-cpu all --no-half --precision full --no-hashing --skip-install --skip-torch-cuda-test"
    sys.argv = ["webui.py", *flags.split(), "--no-download-sd-model", "--data-dir", data, "--ckpt", checkpoint]
    from modules import initialize

    initialize.imports()
    from modules import initialize_util, sd_models

    initialize_util.fix_torch_version()
    sd_models.list_models()
    size_open_clip(checkpoint)
    return sd_models.load_model(sd_models.CheckpointInfo(checkpoint))


def size_open_clip(checkpoint):
    """Give open_clip's text model of that name the sizes of the checkpoint's: a yaml can only name it."""
    import open_clip
    from safetensors import safe_open

    with safe_open(checkpoint, framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
    for prefix, arch in OPEN_CLIP.items():
        if prefix + "ln_final.weight" not in shapes:
            continue
        width = shapes[prefix + "ln_final.weight"][0]
        layers = {name[len(prefix) :].split(".")[2] for name in shapes if name.startswith(prefix + "transformer.")}
        config = open_clip.factory._MODEL_CONFIGS[arch]
        config["embed_dim"] = shapes.get(prefix + "text_projection", [width, width])[1]
        config["text_cfg"].update(width=width, heads=width // HEAD_WIDTH, layers=len(layers))
        config["vision_cfg"].update(layers=1, width=HEAD_WIDTH, head_width=HEAD_WIDTH, mlp_ratio=1.0)
