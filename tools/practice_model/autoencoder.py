"""The autoencoder: its training, its scale, and the latents of the world."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from extensions_lib.practice import drawing

from .networks import SCALE_FACTOR, new_vae
from .pictures import collage, sheet, to_pictures, to_tensor, vae_picture
from .workers import average_gradients, clock, log, save_atomically, warm_cosine

KL_WEIGHT = 1e-3
EDGE_WEIGHT = 0.5
VAE_BATCH = 3  # whole pictures per worker: few, because many steps count for more than quiet gradients
CROP_SHARE, CROP_PX, CROP_BATCH = 0.5, 32, 5  # the first part of the time goes to cheap crops
PICTURES_PER_CAPTION = 4


def vae_batch(rng: random.Random, whole: bool) -> Tensor:
    """Whole images (B, 3, H, W) in -1..1, or more and smaller pieces cut from images."""
    if whole:
        return to_tensor(vae_picture(rng) for _ in range(VAE_BATCH))
    x, y = (rng.randint(0, drawing.RESOLUTION_PX - CROP_PX) for _ in range(2))
    images = to_tensor(vae_picture(rng) for _ in range(CROP_BATCH))
    return images[:, :, y : y + CROP_PX, x : x + CROP_PX].contiguous()


def vae_loss(vae: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and plain L1 of `images` (B, 3, H, W): L1, L1 of the edges, and a small pull of the latents to N(0, 1)."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample(), return_dict=False)[0].float()
    l1 = F.l1_loss(decoded, images)
    edges = F.l1_loss(decoded.diff(dim=2), images.diff(dim=2)) + F.l1_loss(decoded.diff(dim=3), images.diff(dim=3))
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return l1 + EDGE_WEIGHT * edges + KL_WEIGHT * kl, l1.detach()


def train_vae(rank: int, args: Any) -> None:
    """Train the whole autoencoder for `args.minutes`: `vae.pt`."""
    _train(rank, args, new_vae(), "vae", CROP_SHARE)


def train_decoder(rank: int, args: Any) -> None:
    """Train the decoder alone for `args.minutes`, which leaves all latents as they are: `decoder.pt`."""
    vae = new_vae()
    vae.load_state_dict(torch.load(args.out / "vae.pt", weights_only=True)["vae"])
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    _train(rank, args, vae, "decoder", 0.0)


def _train(rank: int, args: Any, vae: Any, name: str, crop_share: float) -> None:
    """The loop of both; the file `<name>.pt` holds the model, the optimizer and the share of the time spent."""
    parameters = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    path, spent, step = args.out / f"{name}.pt", 0.0, 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        spent, step = state["share"] * args.minutes, state["step"]
    for parameter in parameters:
        dist.broadcast(parameter.data, 0)
    rng = random.Random(f"{name} {args.seed} {rank} {step}")
    errors, saved = [], time.monotonic()
    for share in clock(args.minutes, spent):
        optimizer.param_groups[0]["lr"] = warm_cosine(share, args.vae_learning_rate)
        loss, l1 = vae_loss(vae, vae_batch(rng, whole=share >= crop_share))
        optimizer.zero_grad()
        loss.backward()
        average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        errors.append(l1.item())
        if rank == 0 and step % 50 == 0:
            log(f"{name} step {step} share {share:.3f} l1 {np.mean(errors[-50:]):.4f}")
        if rank == 0 and (share >= 1 or time.monotonic() - saved > 60):
            state = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "share": share, "step": step}
            save_atomically(state, path)
            show_reconstructions(vae, args.out / f"{name}.png")
            saved = time.monotonic()


@torch.no_grad()
def show_reconstructions(vae: Any, path: Path) -> None:
    rng = random.Random("reconstructions")
    pictures = [drawing.random_picture(rng)[0] for _ in range(12)] + [collage(rng) for _ in range(6)]
    images = to_tensor(pictures)
    decoded = to_pictures(vae.decode(vae.encode(images).latent_dist.mean, return_dict=False)[0])
    sheet([p for pair in zip(pictures, decoded, strict=True) for p in pair], 12).save(path)


def latent_scale(vae: Any, path: Path) -> tuple[Tensor, Tensor]:
    """Mean and deviation (4,) of the world's latents before scaling, measured once and kept in `path`."""
    if not path.exists():
        rng = random.Random("scale")
        latents = encode(vae, [drawing.random_picture(rng)[0] for _ in range(1024)])
        save_atomically({"mean": latents.mean(dim=(0, 2, 3)), "deviation": latents.std(dim=(0, 2, 3))}, path)
    scale = torch.load(path, weights_only=True)
    return scale["mean"], scale["deviation"]


@torch.no_grad()
def fold_scale(vae: Any, mean: Tensor, deviation: Tensor) -> None:
    """Shift and scale the latent space (4,), so that latents times SCALE_FACTOR have mean 0 and deviation 1."""
    factor = deviation * SCALE_FACTOR
    quant, post = vae.quant_conv, vae.post_quant_conv
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= factor[None, :, None, None]
    quant.bias[:4] = (quant.bias[:4] - mean) / factor
    quant.weight[:4] /= factor[:, None, None, None]
    quant.bias[4:] -= 2 * factor.log()


def load_vae(out: Path) -> Any:
    """The trained autoencoder, with the better decoder if there is one, and with the scale folded in."""
    path = out / "decoder.pt" if (out / "decoder.pt").exists() else out / "vae.pt"
    vae = new_vae()
    vae.load_state_dict(torch.load(path, weights_only=True)["vae"])
    fold_scale(vae, *latent_scale(vae, out / "scale.pt"))
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def encode(vae: Any, pictures: list[Image.Image]) -> Tensor:
    """Mean latents (B, 4, 8, 8) of `pictures`, before the scale factor."""
    batches = (pictures[i : i + 64] for i in range(0, len(pictures), 64))
    with torch.autocast("cpu", torch.bfloat16):
        return torch.cat([vae.encode(to_tensor(batch)).latent_dist.mean.float() for batch in batches])


def group_of(index: int, seed: int) -> tuple[str, list[Image.Image]]:
    """Caption number `index` and PICTURES_PER_CAPTION pictures that it describes."""
    rng = random.Random(f"world {seed} {index}")
    scene = drawing.random_scene(rng)
    caption = drawing.caption_of(scene, rng)
    scenes = [scene] + [drawing.vary_unsaid(scene, caption, rng) for _ in range(PICTURES_PER_CAPTION - 1)]
    return caption, [drawing.render(s, drawing.random_pose(rng, drawing.RADII_PX[s.size])) for s in scenes]


def make_latents(rank: int, args: Any) -> None:
    """Encode this worker's share of `args.captions` captions into `latents-<rank>.pt`."""
    vae, captions, parts = load_vae(args.out), [], []
    indices = list(range(rank, args.captions, args.workers))
    for start in range(0, len(indices), 64):
        groups = [group_of(index, args.seed) for index in indices[start : start + 64]]
        captions += [caption for caption, _ in groups]
        parts.append(encode(vae, [p for _, pictures in groups for p in pictures]) * SCALE_FACTOR)
        if rank == 0 and start % 1024 == 0:
            log(f"latents {start * args.workers} of {args.captions} captions")
    latents = torch.cat(parts).view(len(captions), PICTURES_PER_CAPTION, 4, 8, 8)
    log(f"latents mean {latents.mean():.4f} deviation {latents.std():.4f}")
    save_atomically({"captions": captions, "latents": latents}, args.out / f"latents-{rank}.pt")
