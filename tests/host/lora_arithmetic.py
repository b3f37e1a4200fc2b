"""Runs in the WebUI's own Python: what the host's own classes make of LoRA files. No package of ours is imported.

    python lora_arithmetic.py WEBUI_ROOT CHECKPOINT OUTPUT STRENGTH FILE...

loads CHECKPOINT as the host does, then every FILE through the Lora extension's `load_network`. For each module that the
host matched, OUTPUT (safetensors) gets '<number of the file>/<layer name>/weight', what the host computes as the change
of the layer's weight at STRENGTH, '/bias' where that would change, and '/applied', the weight before and after the host
applied the file to its model, less each other. Of OpenCLIP's joint attention weights a layer has its third.
"""

import os
import sys
from pathlib import Path

from host_process import load_host

THIRDS = {"_q_proj": 0, "_k_proj": 1, "_v_proj": 2}


def weight_of(module):
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
    found, before = {}, {}
    for module in net.modules.values():
        name = module.network_key.partition(".")[0]
        with torch.no_grad():
            weight, bias = module.calc_updown(weight_of(module))
        before[name] = weight_of(module).detach().clone()
        found[f"{name}/weight"] = weight.float().contiguous()
        if bias is not None:
            found[f"{name}/bias"] = bias.float().contiguous()
    apply(net.modules.values(), [net])
    for module in net.modules.values():
        name = module.network_key.partition(".")[0]
        found[f"{name}/applied"] = (weight_of(module).detach() - before[name]).contiguous()
    apply(net.modules.values(), [])
    for module in net.modules.values():
        assert torch.equal(weight_of(module).detach(), before[module.network_key.partition(".")[0]])
    return found


def apply(modules, nets):
    """Make `nets` the networks in use, for the layers of `modules`.

    The host does so when a layer is called. That inside OpenCLIP's attention never is: the attention changes it.
    """
    import networks
    import torch

    networks.loaded_networks[:] = nets
    inner = torch.nn.modules.linear.NonDynamicallyQuantizableLinear
    with torch.no_grad():
        for layer in {id(module.sd_module): module.sd_module for module in modules}.values():
            if not isinstance(layer, inner):
                networks.network_apply_weights(layer)


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
