"""UNet and text encoder: their training on the latents of the world."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .autoencoder import PICTURES_PER_CAPTION, load_vae
from .judging import score, token_ids
from .networks import new_text_encoder, new_unet, start_as_zero
from .workers import average_gradients, clock, log, save_atomically, warm_cosine

GROUPS = 8  # captions of a batch, per worker
EMPTY_SHARE = 0.1
SNR_BOUNDS = (0.2, 5.0)
EMA_DECAY = 0.999


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


class HalfAttention:
    """Attention by two matrix products in bfloat16; torch's fused backward is far slower for heads of eight numbers."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            attn.head_to_batch_dim(layer(x))
            for layer, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
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


def diffusion_loss(
    model: Model, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator
) -> tuple[Tensor, float]:
    """Weighted loss and plain mean squared error of the predicted noise; timesteps spread evenly over the batch."""
    latents, tokens, rows = batch
    size = len(latents)
    spread = (torch.randperm(size, generator=generator) + torch.rand(size, generator=generator)) / size
    timesteps = (spread * 1000).long().clamp(max=999)
    noise = torch.randn(latents.shape, generator=generator)
    alpha = alphas_cumprod()[timesteps].view(-1, 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        states = model.encode_text(tokens)[rows]
        predicted = model.unet(
            alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, timesteps, states, return_dict=False
        )[0]
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
