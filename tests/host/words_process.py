"""Runs in the WebUI's own Python: what the host makes of embeddings, and of LoRAs with words in them.

    python words_process.py WEBUI_ROOT CHECKPOINT OUTPUT EMBEDDINGS LORAS PROMPT

loads CHECKPOINT as the host does, takes EMBEDDINGS for its folder of embeddings and LORAS for that of LoRAs. OUTPUT
(safetensors) gets 'embedding/<name>/<key>' and 'lora/<file>/<word>/<key>' for the vectors as the host reads them,
'placed/<name>/<key>' for what its own layer makes of them, and what PROMPT tells the UNet: 'states' and 'pooled'
without LoRA, '<file>/states' and so on with each, 'after/states' when they are gone. The file beside it, OUTPUT with
the ending .json, tells what the host says of them.
"""

import json
import os
import sys
from pathlib import Path

from host_process import load_host


def by_key(embedding):
    """The vectors of an embedding: one of them, or one for each text encoder."""
    return embedding.vec if isinstance(embedding.vec, dict) else {"": embedding.vec}


def put_in_place(embedding):
    """What the host's layer makes of five words at whose second the embedding stands, for each text encoder."""
    import torch
    from modules import sd_hijack

    found = {}
    for key, vectors in by_key(embedding).items():
        words = torch.nn.Embedding.from_pretrained(torch.zeros(9, vectors.shape[1]))
        fixes = type("Fixes", (), {"fixes": [[(1, embedding)]]})()
        found[key] = sd_hijack.EmbeddingsWithFixes(words, fixes, key or "clip_l")(torch.arange(9)[None])[0]
    return found


def states(model, prompt):
    """What the UNet would be told: 'states', and for SDXL 'pooled', the pooled state with the sizes behind it."""
    from modules.prompt_parser import SdConditioning

    told = model.get_learned_conditioning(SdConditioning([prompt], width=64, height=64))
    if isinstance(told, dict):
        return {"states": told["crossattn"][0], "pooled": told["vector"][0]}
    return {"states": told[0]}


def read_embeddings(folder):
    """The embeddings of a folder by name, and what the host has listed, or skipped for their width."""
    from modules import sd_hijack

    database = sd_hijack.model_hijack.embedding_db
    database.add_embedding_dir(folder)
    database.load_textual_inversion_embeddings(force_reload=True)
    facts = {"listed": {}, "skipped": {}}
    for part, known in (("listed", database.word_embeddings), ("skipped", database.skipped_embeddings)):
        facts[part] = {name: [each.vectors, each.shape] for name, each in known.items()}
    return {**database.word_embeddings, **database.skipped_embeddings}, facts


def call(networks, names):
    networks.load_networks(names, [1.0] * len(names), [1.0] * len(names), [None] * len(names))


def with_each_lora(model, folder, prompt, found):
    """The words that each LoRA of a folder brings along, and the states with it; they leave together with it."""
    import network
    import networks
    from modules import sd_hijack, shared

    # Options that the extension's script would add.
    shared.opts.data |= {"lora_in_memory_limit": 0, "lora_bundled_ti_to_infotext": True}
    database, facts = sd_hijack.model_hijack.embedding_db, {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        on_disk = network.NetworkOnDisk(path.stem, str(path))
        networks.available_networks[path.stem] = networks.available_network_aliases[path.stem] = on_disk
        before = set(database.word_embeddings)
        call(networks, [path.stem])
        (loaded,) = networks.loaded_networks
        facts[path.stem] = {
            "modules": len(loaded.modules),
            "words": {name: [each.vectors, each.shape] for name, each in loaded.bundle_embeddings.items()},
            "called": sorted(set(database.word_embeddings) - before),
        }
        for name, embedding in loaded.bundle_embeddings.items():
            found.update({f"lora/{path.stem}/{name}/{key}": vec for key, vec in by_key(embedding).items()})
        found.update({f"{path.stem}/{key}": tensor for key, tensor in states(model, prompt).items()})
        call(networks, [])
        facts[path.stem]["left"] = sorted(set(database.word_embeddings) - before)
    return facts


def main():
    root, checkpoint, output, embeddings, loras, prompt = sys.argv[1:]
    model = load_host(root, checkpoint, os.path.dirname(output))
    import torch
    from safetensors.torch import save_file

    found = {}
    with torch.no_grad():
        known, facts = read_embeddings(embeddings)
        for name, embedding in known.items():
            found.update({f"embedding/{name}/{key}": vec for key, vec in by_key(embedding).items()})
            found.update({f"placed/{name}/{key}": rows for key, rows in put_in_place(embedding).items()})
        found.update(states(model, prompt))
        facts["loras"] = with_each_lora(model, loras, prompt, found)
        found.update({f"after/{key}": tensor for key, tensor in states(model, prompt).items()})
    save_file({name: tensor.float().contiguous().clone() for name, tensor in found.items()}, output)
    Path(output).with_suffix(".json").write_text(json.dumps(facts), encoding="utf-8")


main()
