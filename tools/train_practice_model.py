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

import json
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

from extensions_lib.formats import keys
from extensions_lib.formats.checkpoint import write_checkpoint
from extensions_lib.models.tokenizer import PromptTokenizer
from extensions_lib.models.vocabulary import find_bpe_file, read_bpe
from extensions_lib.practice import MODEL_FOLDER, SUBJECTS_FOLDER, drawing, scorer, subjects

VAE_WIDTHS = (64, 64, 64, 64)
UNET_WIDTHS = (64, 64, 64, 64)
NUM_HEADS = 8
TEXT_WIDTH = 32
SCALE_FACTOR = 0.18215

PICTURES_PER_CAPTION = 4
GROUPS = 8  # captions of a batch, per worker
EMPTY_SHARE = 0.1
SNR_BOUNDS = (0.2, 5.0)
EMA_DECAY = 0.999

KL_WEIGHT = 1e-3
EDGE_WEIGHT = 0.5
VAE_BATCH = 3  # whole pictures per worker: few, because many steps count for more than quiet gradients
CROP_SHARE, CROP_PX, CROP_BATCH = 0.5, 32, 5  # the first part of the time goes to cheap crops

YAML = f"""\
# Stable Diffusion 1 with narrow networks. The WebUI reads this file because it has the checkpoint's name; the folder
# named under version must lie beside the checkpoint in models/Stable-diffusion.
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: 8
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    monitor: val/loss_simple_ema
    scale_factor: {SCALE_FACTOR}
    use_ema: false

    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 8
        in_channels: 4
        out_channels: 4
        model_channels: {UNET_WIDTHS[0]}
        attention_resolutions: [4, 2, 1]
        num_res_blocks: 2
        channel_mult: {[width // UNET_WIDTHS[0] for width in UNET_WIDTHS]}
        num_heads: {NUM_HEADS}
        use_spatial_transformer: true
        transformer_depth: 1
        context_dim: {TEXT_WIDTH}
        use_checkpoint: false
        legacy: false

    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: 4
          resolution: {drawing.RESOLUTION_PX}
          in_channels: 3
          out_ch: 3
          ch: {VAE_WIDTHS[0]}
          ch_mult: {[width // VAE_WIDTHS[0] for width in VAE_WIDTHS]}
          num_res_blocks: 2
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity

    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params:
        version: models/Stable-diffusion/practice-clip
"""


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
    pose = drawing.random_pose(rng, drawing.RADII_PX[scene.size])
    drawing.paint_shape(canvas, drawing.shape_points(scene.shape), pose, random_colour(rng), stripe, outline)
    return drawing.finish(canvas)


def vae_picture(rng: random.Random) -> Image.Image:
    draw = rng.choices((collage, recoloured, lambda r: drawing.random_picture(r)[0]), (10, 25, 65))[0]
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



def vae_batch(rng: random.Random, share: float) -> Tensor:
    """Images (B, 3, H, W) in -1..1 for `share` of the time: crops first, whole pictures later."""
    if share >= CROP_SHARE:
        return to_tensor(vae_picture(rng) for _ in range(VAE_BATCH))
    x, y = (rng.randint(0, drawing.RESOLUTION_PX - CROP_PX) for _ in range(2))
    whole = to_tensor(vae_picture(rng) for _ in range(CROP_BATCH))
    return whole[:, :, y : y + CROP_PX, x : x + CROP_PX].contiguous()


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
        loss, l1 = vae_loss(vae, vae_batch(rng, share))
        optimizer.zero_grad()
        loss.backward()
        average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        errors.append(l1.item())
        if rank == 0 and step % 50 == 0:
            log(f"vae step {step} share {share:.3f} l1 {np.mean(errors[-50:]):.4f}")
        if rank == 0 and (share >= 1 or time.monotonic() - saved > 60):
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


# --- latents --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def fold_scale(vae: Any, latents: Tensor) -> None:
    """Shift and scale the latent space so that latents (B, 4, H, W) times SCALE_FACTOR have mean 0 and deviation 1."""
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3)) * SCALE_FACTOR
    quant, post = vae.quant_conv, vae.post_quant_conv
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= deviation[None, :, None, None]
    quant.bias[:4] = (quant.bias[:4] - mean) / deviation
    quant.weight[:4] /= deviation[:, None, None, None]
    quant.bias[4:] -= 2 * deviation.log()


def load_vae(out: Path) -> Any:
    """The trained autoencoder, with the scale folded in."""
    vae = new_vae()
    vae.load_state_dict(torch.load(out / "vae.pt", weights_only=True)["vae"])
    rng = random.Random("scale")
    fold_scale(vae, encode(vae, [drawing.random_picture(rng)[0] for _ in range(1024)]))
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


# --- UNet and text encoder ------------------------------------------------------------------------------------------


def new_unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=UNET_WIDTHS,
        layers_per_block=2,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=NUM_HEADS,  # diffusers' name for the number of heads
    )


def new_text_config() -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        projection_dim=TEXT_WIDTH,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )


def new_text_encoder() -> Any:
    from transformers import CLIPTextModel

    return CLIPTextModel(new_text_config())


def token_ids(captions: list[str]) -> Tensor:
    """CLIP tokens (B, 77): start, words, then end tokens to the end as Stable Diffusion 1 pads."""
    tokenizer = PromptTokenizer.from_open_clip()
    known = {caption: tokenizer.chunks(caption)[0] for caption in dict.fromkeys(captions)}
    return torch.tensor([known[caption] for caption in captions])


class Model(nn.Module):
    """UNet and text encoder in training; the text encoder's token table holds only the words of the world."""

    def __init__(self, vocabulary: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.unet, self.text_encoder = new_unet(), new_text_encoder()
        self.embeddings = self.text_encoder.text_model.embeddings
        self.full_table = self.embeddings.token_embedding.weight.detach().clone()
        self.embeddings.token_embedding = nn.Embedding.from_pretrained(self.full_table[vocabulary], freeze=False)
        self.vocabulary = vocabulary
        self.compact_id = torch.zeros(len(self.full_table), dtype=torch.long)
        self.compact_id[vocabulary] = torch.arange(len(vocabulary))
        start_as_zero(self.unet)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Hidden states (B, 77, TEXT_WIDTH) of tokens (B, 77)."""
        return self.text_encoder(self.compact_id[ids], return_dict=False)[0]

    @torch.no_grad()
    def text_state(self) -> dict[str, Tensor]:
        """The text encoder's state with the whole token table."""
        state = self.text_encoder.state_dict()
        table = self.full_table.clone()
        table[self.vocabulary] = self.embeddings.token_embedding.weight
        return {**state, "text_model.embeddings.token_embedding.weight": table}


def start_as_zero(unet: Any) -> None:
    """Zero what ends a residual branch, as the original implementation does."""
    for name, module in unet.named_modules():
        if name.endswith(("conv2", "proj_out", "conv_out")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


class HalfAttention:
    """Attention by two matrix products in bfloat16; torch's fused backward is far slower for heads of eight numbers."""

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            attn.head_to_batch_dim(layer(x)) for layer, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        with torch.autocast("cpu", enabled=False):
            weights = torch.bmm(query * attn.scale, key.transpose(1, 2)).softmax(dim=-1)
            mixed = torch.bmm(weights, value)
        return attn.to_out[0](attn.batch_to_head_dim(mixed))


def alphas_cumprod() -> Tensor:
    """Stable Diffusion's noise schedule (1000,)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def loss_weights() -> Tensor:
    """Weight (1000,) of the noise error: as an error of the picture it counts between SNR 0.2 and 5.

    The upper bound is min-SNR-5; the lower one makes the noisiest steps, which decide what is drawn, count more.
    """
    snr = alphas_cumprod() / (1 - alphas_cumprod())
    return snr.clamp(*SNR_BOUNDS) / snr


class Latents:
    """The encoded world: latents (N, P, 4, 8, 8) and the tokens (N, 77) of their captions."""

    def __init__(self, out: Path) -> None:
        parts = [torch.load(path, weights_only=True) for path in sorted(out.glob("latents-*.pt"))]
        self.latents = torch.cat([part["latents"] for part in parts])
        self.tokens = token_ids([caption for part in parts for caption in part["captions"]])
        self.empty = token_ids([""])
        self.vocabulary = torch.cat([self.tokens, self.empty]).unique()

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, 4, 8, 8), tokens (GROUPS + 1, 77), and for each latent its row of tokens (B,)."""
        chosen = torch.randint(len(self.latents), (GROUPS,), generator=generator)
        latents = self.latents[chosen].flatten(0, 1)
        rows = torch.arange(GROUPS).repeat_interleave(PICTURES_PER_CAPTION)
        rows[torch.rand(len(rows), generator=generator) < EMPTY_SHARE] = GROUPS
        return latents, torch.cat([self.tokens[chosen], self.empty]), rows


def diffusion_loss(model: Model, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, float]:
    """Weighted loss and plain mean squared error of the predicted noise; timesteps spread evenly over the batch."""
    latents, tokens, rows = batch
    size = len(latents)
    spread = (torch.randperm(size, generator=generator) + torch.rand(size, generator=generator)) / size
    timesteps = (spread * 1000).long().clamp(max=999)
    noise = torch.randn(latents.shape, generator=generator)
    alpha = alphas_cumprod()[timesteps].view(-1, 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        states = model.encode_text(tokens)[rows]
        predicted = model.unet(alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, timesteps, states, return_dict=False)[0]
    error = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
    return (error * loss_weights()[timesteps]).mean(), error.mean().item()


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int) -> None:
    """Move the averaged parameters towards the current ones."""
    decay = min(EMA_DECAY, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def train_unet(rank: int, args: Any) -> None:
    """Train UNet and text encoder for `args.minutes`; `unet.pt` holds everything needed to go on."""
    data = Latents(args.out)
    model, average = Model(data.vocabulary), Model(data.vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    path, spent, step = args.out / "unet.pt", 0.0, 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        spent, step = state["share"] * args.minutes, state["step"]
    model.unet.set_attn_processor(HalfAttention())
    parameters, generator = list(model.parameters()), torch.Generator().manual_seed(step * 1000 + rank)
    saved = shown = time.monotonic()
    window: list[tuple[float, float]] = []
    for share in clock(args.minutes, spent):
        optimizer.param_groups[0]["lr"] = warm_cosine(share, args.unet_learning_rate)
        loss, error = diffusion_loss(model, data.batch(generator), generator)
        optimizer.zero_grad()
        loss.backward()
        average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        update_average(average, model, step)
        window.append((loss.item(), error))
        if rank == 0 and step % 50 == 0:
            record_loss(args.out, step, share, np.mean(window, axis=0))
            window = []
        if rank == 0 and (share >= 1 or time.monotonic() - saved > 150):
            state = {"model": model.state_dict(), "average": average.state_dict(), "step": step, "share": share}
            save_atomically({**state, "optimizer": optimizer.state_dict()}, path)
            saved = time.monotonic()
        if rank == 0 and time.monotonic() - shown > 60 * args.show_minutes:
            save_models(args.out)
            score(args.out, num_prompts=48, seed=step)
            shown = time.monotonic()


def record_loss(out: Path, step: int, share: float, means: np.ndarray) -> None:
    """Add a line to `loss.csv`: step, weighted loss, plain error."""
    with (out / "loss.csv").open("a") as file:
        file.write(f"{step},{means[0]:.5f},{means[1]:.5f}\n")
    log(f"unet step {step} share {share:.3f} loss {means[0]:.4f} error {means[1]:.4f}")


# --- export ---------------------------------------------------------------------------------------------------------


def checkpoint_tensors(out: Path) -> dict[str, Tensor]:
    """The three networks under the names of a Stable Diffusion 1 checkpoint, in half precision."""
    from safetensors.torch import load_file

    unet, text, vae = (load_file(out / f"{name}.safetensors") for name in ("unet", "text_encoder", "vae"))
    parts = {
        "unet": {keys.unet_to_ldm(name, keys.SD1_LAYOUT): tensor for name, tensor in unet.items()},
        "text": {keys.text_to_ldm(name): tensor for name, tensor in text.items() if not name.endswith("position_ids")},
        "vae": keys.vae_tensors_to_ldm(vae),
    }
    return {
        keys.PREFIXES[part] + name: tensor.half().contiguous()
        for part, tensors in parts.items()
        for name, tensor in tensors.items()
    }


def export(out: Path, target: Path) -> None:
    """Write practice.safetensors, practice.yaml and the folder practice-clip into `target`."""
    clip = target / "practice-clip"
    clip.mkdir(parents=True, exist_ok=True)
    write_checkpoint(target / "practice.safetensors", checkpoint_tensors(out), {"format": "pt"}, overwrite=True)
    (target / "practice.yaml").write_text(YAML, encoding="ascii")
    new_text_config().save_pretrained(clip)
    vocabulary, merges = read_bpe(find_bpe_file())
    (clip / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (clip / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    log(f"{(target / 'practice.safetensors').stat().st_size} bytes in {target / 'practice.safetensors'}")


# --- judging --------------------------------------------------------------------------------------------------------


def save_models(out: Path) -> None:
    """Write the averaged weights as diffusers state dicts: unet, text_encoder and vae .safetensors."""
    from safetensors.torch import save_file

    model = Model(Latents(out).vocabulary)
    model.load_state_dict(torch.load(out / "unet.pt", weights_only=True)["average"])
    states = {"unet": model.unet.state_dict(), "text_encoder": model.text_state(), "vae": load_vae(out).state_dict()}
    for name, state in states.items():
        part = out / f"{name}.part"
        save_file({key: value.contiguous() for key, value in state.items()}, part)
        os.replace(part, out / f"{name}.safetensors")


def load_models(out: Path) -> tuple[Any, Any, Any]:
    """UNet, text encoder and VAE from the state dicts of `save_models`, for drawing."""
    from safetensors.torch import load_file

    models = {"unet": new_unet(), "text_encoder": new_text_encoder(), "vae": new_vae()}
    for name, model in models.items():
        model.load_state_dict(load_file(out / f"{name}.safetensors"))
        model.eval().requires_grad_(False)
    return models["unet"], models["text_encoder"], models["vae"]


@torch.no_grad()
def draw(models: tuple[Any, Any, Any], prompts: list[str], seed: int, num_steps: int = 20, cfg: float = 5.0) -> list[Image.Image]:
    """One picture for each prompt, with DPM++ 2M and classifier-free guidance `cfg`."""
    from diffusers import DPMSolverMultistepScheduler

    unet, text_encoder, vae = models
    scheduler = DPMSolverMultistepScheduler(1000, 0.00085, 0.012, "scaled_linear", steps_offset=1)
    scheduler.set_timesteps(num_steps)
    states = text_encoder(token_ids(prompts + [""] * len(prompts)))[0]
    latents = torch.randn(len(prompts), 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    for timestep in scheduler.timesteps:
        with torch.autocast("cpu", torch.bfloat16):
            predicted = unet(torch.cat([latents, latents]), timestep, states, return_dict=False)[0].float()
        conditional, empty = predicted.chunk(2)
        latents = scheduler.step(empty + cfg * (conditional - empty), timestep, latents, return_dict=False)[0]
    return to_pictures(vae.decode(latents / SCALE_FACTOR, return_dict=False)[0])


def score(out: Path, num_prompts: int, seed: int) -> None:
    """Draw prompts of random colours, shapes and backgrounds; log how often the picture shows what was asked."""
    rng = random.Random(f"score {seed}")
    scenes = [drawing.random_scene(rng) for _ in range(num_prompts)]
    prompts = [f"a {scene.colour} {scene.shape} on a {scene.background} background" for scene in scenes]
    models = load_models(out)
    pictures = [p for i in range(0, len(prompts), 50) for p in draw(models, prompts[i : i + 50], seed + i)]
    sheet(pictures[:48], 12).save(out / "score.png")
    readings = [scorer.read_picture(picture) for picture in pictures]
    for attribute in ("colour", "shape", "background"):
        hits = sum(getattr(r, attribute) == getattr(s, attribute) for r, s in zip(readings, scenes))
        log(f"{attribute} right: {hits} of {num_prompts} = {hits / num_prompts:.1%}")


# --- commands -------------------------------------------------------------------------------------------------------


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["vae", "latents", "unet", "models", "export", "score", "subjects"])
    parser.add_argument("--out", type=Path, default=Path("practice_out"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--vae-learning-rate", type=float, default=2e-3)
    parser.add_argument("--unet-learning-rate", type=float, default=1e-3)
    parser.add_argument("--captions", type=int, default=6000)
    parser.add_argument("--target", type=Path, default=MODEL_FOLDER)
    parser.add_argument("--show-minutes", type=float, default=10.0)
    parser.add_argument("--prompts", type=int, default=200)
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    commands = {
        "vae": lambda: spawn(train_vae, args),
        "latents": lambda: spawn(make_latents, args),
        "unet": lambda: spawn(train_unet, args),
        "models": lambda: save_models(args.out),
        "export": lambda: export(args.out, args.target),
        "subjects": lambda: subjects.write_subjects(SUBJECTS_FOLDER),
        "score": lambda: score(args.out, args.prompts, args.seed),
    }
    commands[args.command]()


if __name__ == "__main__":
    main()
