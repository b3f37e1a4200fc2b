"""Make the practice model: draw a world, train a small Stable Diffusion 1 on it, and write one checkpoint.

    python tools/train_practice_model.py vae        autoencoder           (12 minutes on two cores)
    python tools/train_practice_model.py latents    encode the pictures   (2 minutes)
    python tools/train_practice_model.py unet       UNet and text encoder (70 minutes)
    python tools/train_practice_model.py export     practice.safetensors and practice.yaml
    python tools/train_practice_model.py score      draw 200 prompts and judge them from their pixels
    python tools/train_practice_model.py subjects   the two practice subjects

Every command reads and writes `--out` and can be interrupted and started again: it continues where it was.
Training is planned in minutes, not steps: the learning rate follows the share of the time that is used up.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads steal the cores from the other worker

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from extensions_lib.practice import drawing

VAE_WIDTHS = (64, 64, 64, 64)
KL_WEIGHT = 1e-3
EDGE_WEIGHT = 0.5
VAE_BATCH = 8  # pictures per worker


# --- pictures for the autoencoder: the world, the world in any colours, and collages --------------------------------


def random_colour(rng: random.Random) -> drawing.Colour:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def collage(rng: random.Random) -> Image.Image:
    """Bands, polygons and thick lines in any colours, so that the autoencoder knows more than the world."""
    canvas = drawing.blank_canvas(random_colour(rng))
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.randint(1, 5)):
        shape = drawing.shape_points(rng.choice(drawing.SHAPES))
        pose = drawing.Pose(rng.uniform(0, 64), rng.uniform(0, 64), rng.uniform(6, 40), rng.uniform(-180, 180))
        if rng.random() < 0.3:
            draw.line(drawing.placed(shape[:3], pose), fill=random_colour(rng), width=rng.randint(6, 24))
        else:
            stripe, outline = (random_colour(rng) if rng.random() < 0.4 else None for _ in range(2))
            drawing.paint_shape(canvas, shape, pose, random_colour(rng), stripe, outline)
    return drawing.finish(canvas)


def recoloured(rng: random.Random) -> Image.Image:
    """A picture of the world in any colours."""
    scene = drawing.random_scene(rng)
    canvas = drawing.blank_canvas(random_colour(rng))
    stripe = random_colour(rng) if scene.stripe else None
    outline = random_colour(rng) if scene.outline else None
    pose = drawing.random_pose(rng, scene.size)
    drawing.paint_shape(canvas, drawing.shape_points(scene.shape), pose, random_colour(rng), stripe, outline)
    return drawing.finish(canvas)


def vae_picture(rng: random.Random) -> Image.Image:
    draw = rng.choices((collage, recoloured, lambda r: drawing.random_picture(r)[0]), (25, 25, 50))[0]
    return draw(rng)


def to_tensor(pictures: Iterable[Image.Image]) -> Tensor:
    """Pictures as float (B, 3, H, W) in -1..1."""
    stacked = np.stack([np.asarray(picture, dtype=np.float32) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).div(127.5).sub(1).contiguous()


def to_pictures(images: Tensor) -> list[Image.Image]:
    """Float (B, 3, H, W) in -1..1 as pictures."""
    bytes_ = ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array) for array in bytes_]


def sheet(pictures: list[Image.Image], columns: int, zoom: int = 2) -> Image.Image:
    """Pictures of one size side by side."""
    side = pictures[0].width * zoom
    rows = math.ceil(len(pictures) / columns)
    result = Image.new("RGB", (columns * side, rows * side))
    for index, picture in enumerate(pictures):
        place = (index % columns * side, index // columns * side)
        result.paste(picture.resize((side, side), Image.Resampling.NEAREST), place)
    return result


# --- training on two cores: one process per core, gradients averaged ------------------------------------------------


class _ContiguousGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous()


def _group_norm(self: nn.GroupNorm, x: Tensor) -> Tensor:
    weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
    return _ContiguousGradient.apply(F.group_norm(x.contiguous(), self.num_groups, weight, bias, self.eps))


def use_fast_group_norm() -> None:
    """torch's GroupNorm backward is 80 times slower on channels-last bfloat16 than on contiguous tensors."""
    nn.GroupNorm.forward = _group_norm  # type: ignore[method-assign]


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Average the gradients over the workers, in one message."""
    if dist.get_world_size() == 1:
        return
    flat = torch.cat([p.grad.flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters])):
        parameter.grad.copy_(piece.view_as(parameter))


def clock(minutes: float, spent: float) -> Iterator[float]:
    """The share of `minutes` used up, 0..1, agreed between the workers; `spent` minutes came before."""
    started = time.monotonic()
    while True:
        share = torch.tensor(min((spent + (time.monotonic() - started) / 60) / minutes, 1.0))
        dist.broadcast(share, 0)
        yield share.item()
        if share >= 1:
            return


def warm_cosine(share: float, peak: float, warmup: float = 0.03, floor: float = 0.01) -> float:
    """Learning rate at `share` 0..1 of the time: a linear rise, then half a cosine down to floor * peak."""
    if share < warmup:
        return peak * max(share / warmup, 0.01)
    return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup))) / 2)


def spawn(worker: Callable[[int, Any], None], args: Any) -> None:
    """Run `worker(rank, args)` in `args.workers` processes that can talk to each other."""
    torch.multiprocessing.spawn(_enter, (worker, args), nprocs=args.workers)


def _enter(rank: int, worker: Callable[[int, Any], None], args: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1000 * args.seed + rank)
    store = f"file://{args.out}/rendezvous-{os.getppid()}"
    dist.init_process_group("gloo", store, rank=rank, world_size=args.workers)
    use_fast_group_norm()
    worker(rank, args)
    dist.destroy_process_group()


def save_atomically(value: Any, path: Path) -> None:
    part = path.with_suffix(".part")
    torch.save(value, part)
    os.replace(part, path)


def log(message: str) -> None:
    print(time.strftime("%H:%M:%S"), message, flush=True)


# --- the autoencoder ------------------------------------------------------------------------------------------------


def new_vae() -> Any:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=VAE_WIDTHS,
        layers_per_block=2,
        latent_channels=4,
        sample_size=drawing.RESOLUTION_PX,
    )
    start_as_identity(vae)
    return vae


@torch.no_grad()
def start_as_identity(vae: Any) -> None:
    """Let colours pass from the start: residual branches at zero, resampling that only averages or repeats, no noise.

    GroupNorm over two channels removes a flat picture's colour, so from a random start the first thousand steps are lost.
    """
    for name, module in vae.named_modules():
        if name.endswith(("conv2", "to_out.0")):
            nn.init.zeros_(module.weight)
        elif name.endswith("downsamplers.0.conv"):
            nn.init.dirac_(module.weight)
            module.weight.copy_(module.weight.amax(dim=(2, 3), keepdim=True) / 9)
        elif name.endswith("upsamplers.0.conv"):
            nn.init.dirac_(module.weight)
    nn.init.dirac_(vae.quant_conv.weight)
    nn.init.dirac_(vae.post_quant_conv.weight)
    nn.init.constant_(vae.quant_conv.bias[4:], -6.0)



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
    """Train the autoencoder for `args.minutes`; `vae.pt` holds the model, the optimizer and the minutes spent."""
    vae = new_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    path, spent, step = args.out / "vae.pt", 0.0, 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        spent, step = state["share"] * args.minutes, state["step"]
    parameters = list(vae.parameters())
    for parameter in parameters:
        dist.broadcast(parameter.data, 0)
    rng = random.Random(f"vae {args.seed} {rank} {step}")
    errors, saved = [], time.monotonic()
    for share in clock(args.minutes, spent):
        optimizer.param_groups[0]["lr"] = warm_cosine(share, args.vae_learning_rate)
        loss, l1 = vae_loss(vae, to_tensor(vae_picture(rng) for _ in range(VAE_BATCH)))
        optimizer.zero_grad()
        loss.backward()
        average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        errors.append(l1.item())
        if rank == 0 and step % 50 == 0:
            log(f"vae step {step} share {share:.3f} l1 {np.mean(errors[-50:]):.4f}")
        if rank == 0 and (share >= 1 or time.monotonic() - saved > 120):
            state = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "share": share, "step": step}
            save_atomically(state, path)
            show_reconstructions(vae, args.out / "vae.png")
            saved = time.monotonic()


@torch.no_grad()
def show_reconstructions(vae: Any, path: Path) -> None:
    rng = random.Random("reconstructions")
    pictures = [drawing.random_picture(rng)[0] for _ in range(12)] + [collage(rng) for _ in range(6)]
    images = to_tensor(pictures)
    decoded = to_pictures(vae.decode(vae.encode(images).latent_dist.mean, return_dict=False)[0])
    sheet([p for pair in zip(pictures, decoded) for p in pair], 12).save(path)


# --- commands -------------------------------------------------------------------------------------------------------


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["vae"])
    parser.add_argument("--out", type=Path, default=Path("practice_out"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--vae-learning-rate", type=float, default=1e-3)
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    {"vae": lambda: spawn(train_vae, args)}[args.command]()


if __name__ == "__main__":
    main()
