"""Runs in the WebUI's own Python: what the host's own classes make of hypernetworks. No package of ours is imported.

    python hypernetwork_arithmetic.py WEBUI_ROOT CHECKPOINT INPUTS OUTPUT STRENGTH FOLDER OWN

loads CHECKPOINT as the host does, takes FOLDER for its folder of hypernetworks, and calls each one there, as a prompt
does, at STRENGTH. INPUTS (safetensors) holds 'states/<width>' for single networks, and 'x', 'timesteps', 'context' and
for SDXL 'y' for the UNet. OUTPUT gets '<name>/<width>/<part>' for the networks of each file, '<name>/unet' for the UNet
with it, 'unet' for the UNet alone, and for each file with a network of 2048 '<name>/sdxl', the keys and values of one
of SDXL's attentions. At last the host makes a hypernetwork of its own, OWN, whose networks OUTPUT has under 'own'.
"""

import os
import sys
from pathlib import Path

from host_process import load_host

SDXL_WIDTH = 2048


def called(name, strength):
    """The hypernetwork that `<hypernet:name:strength>` puts into force; its file passes the host's check of pickles."""
    from modules import safe, shared
    from modules.hypernetworks import hypernetwork

    safe.check_pt(shared.hypernetworks[name], None)
    hypernetwork.load_hypernetworks([name], [strength])
    (loaded,) = shared.loaded_hypernetworks
    return loaded


def network_outputs(loaded, inputs):
    """{'<width>/<part>': what becomes of the states of that width}."""
    return {
        f"{width}/{part}": network(inputs[f"states/{width}"])
        for width, pair in loaded.layers.items()
        for part, network in enumerate(pair)
    }


def unet_answer(model, inputs):
    """What the host's UNet predicts, with the hypernetworks in force."""
    more = {name: inputs[name] for name in ("y",) if name in inputs}
    return model.model.diffusion_model(inputs["x"], inputs["timesteps"], context=inputs["context"], **more)


def sdxl_keys_and_values(context):
    """What an attention of SDXL's own class makes its keys and values from, as this host calls it."""
    import sgm.modules.attention
    import torch

    attention = sgm.modules.attention.CrossAttention(query_dim=640, context_dim=SDXL_WIDTH, heads=10, dim_head=64)
    seen = []
    for layer in (attention.to_k, attention.to_v):
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    attention(torch.zeros(len(context), 4, 640), context=context)
    return torch.stack(seen)


def own(path, inputs):
    """A hypernetwork as the host makes it, saved to `path`; its networks' outputs."""
    from modules.hypernetworks import hypernetwork

    made = hypernetwork.Hypernetwork(
        name=path.stem, enable_sizes=[32, 64], layer_structure=[1, 2, 2, 1], activation_func="swish",
        weight_init="KaimingNormal", add_layer_norm=True, use_dropout=True, activate_output=True,
    )  # fmt: skip
    made.save(str(path))
    made.eval()
    return network_outputs(made, inputs)


def main():
    root, checkpoint, inputs, output, strength, folder, own_path = sys.argv[1:]
    model = load_host(root, checkpoint, os.path.dirname(output))
    import torch
    from modules import shared
    from safetensors.torch import load_file, save_file

    shared.cmd_opts.hypernetwork_dir = folder
    shared.reload_hypernetworks()
    given, found = load_file(inputs), {}
    with torch.no_grad():
        found["unet"] = unet_answer(model, given)
        for name in shared.hypernetworks:
            loaded = called(name, float(strength))
            results = network_outputs(loaded, given)
            results["unet"] = unet_answer(model, given)
            if SDXL_WIDTH in loaded.layers:
                results["sdxl"] = sdxl_keys_and_values(given[f"states/{SDXL_WIDTH}"])
            found.update({f"{name}/{key}": tensor for key, tensor in results.items()})
        found.update({f"own/{key}": tensor for key, tensor in own(Path(own_path), given).items()})
    save_file({name: tensor.float().contiguous().clone() for name, tensor in found.items()}, output)


main()
