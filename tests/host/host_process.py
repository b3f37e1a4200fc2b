"""For scripts that run in the WebUI's own Python: its modules and its model. No package of ours is imported."""

import os
import sys


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
    return sd_models.load_model(sd_models.CheckpointInfo(checkpoint))
