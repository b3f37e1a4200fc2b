"""Runs in the WebUI's own Python: what the host's own classes make of LoRA files. No package of ours is imported.

    python lora_arithmetic.py WEBUI_ROOT CHECKPOINT OUTPUT STRENGTH FILE...

loads CHECKPOINT as the host does, then every FILE through the Lora extension's `load_network`. For each module that the
host matched, OUTPUT (safetensors) gets '<number of the file>/<layer name>/weight', what the host would add to the
layer's weight at STRENGTH, and '/bias' where it would change that. Layers of OpenCLIP's attention are given their third
of the joint weight, as the host does.
"""

import os
import sys
from pathlib import Path

from host_process import load_host

THIRDS = {"_q_proj": 0, "_k_proj": 1, "_v_proj": 2}


def base_weight(module):
    """The weight that the host's arithmetic is about."""
    import torch

    layer = module.sd_module
    if not isinstance(layer, torch.nn.MultiheadAttention):
        return layer.weight
    third = next((number for ending, number in THIRDS.items() if module.sd_key.endswith(ending)), None)
    return layer.out_proj.weight if third is None else layer.in_proj_weight.chunk(3, 0)[third]


def changes_of(file, strength):
    """{'<layer name>/weight': tensor} of one file."""
    import network
    import networks
    import torch

    net = networks.load_network(Path(file).stem, network.NetworkOnDisk(Path(file).stem, file))
    net.te_multiplier = net.unet_multiplier = strength
    found = {}
    for module in net.modules.values():
        name = module.network_key.partition(".")[0]
        with torch.no_grad():
            weight, bias = module.calc_updown(base_weight(module))
        found[f"{name}/weight"] = weight.float().contiguous()
        if bias is not None:
            found[f"{name}/bias"] = bias.float().contiguous()
    return found


def main():
    root, checkpoint, output, strength, *files = sys.argv[1:]
    model = load_host(root, checkpoint, os.path.dirname(output))
    import networks
    from safetensors.torch import save_file

    networks.assign_network_names_to_compvis_modules(model)
    found = {}
    for number, file in enumerate(files):
        found.update({f"{number}/{name}": tensor for name, tensor in changes_of(file, float(strength)).items()})
    save_file({name: tensor.clone() for name, tensor in found.items()}, output)


main()
