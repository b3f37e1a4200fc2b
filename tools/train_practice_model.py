"""Make the practice model: draw a world, train a small Stable Diffusion 1 on it, and write one checkpoint.

    python tools/train_practice_model.py vae --minutes 16     autoencoder
    python tools/train_practice_model.py latents              encode the pictures
    python tools/train_practice_model.py unet --minutes 56    UNet and text encoder
    python tools/train_practice_model.py decoder --minutes 6  the autoencoder's decoder alone, once more
    python tools/train_practice_model.py models               averaged weights as three diffusers files
    python tools/train_practice_model.py export               practice.safetensors, practice.yaml, practice-clip
    python tools/train_practice_model.py score                draw 200 prompts and judge them from their pixels
    python tools/train_practice_model.py curve --target FILE  the loss as a picture
    python tools/train_practice_model.py subjects             the two practice subjects
    python tools/train_practice_model.py families             small random checkpoints of every family, in `--out`

Set PYTHONPATH=. first. Every command reads and writes `--out`, and continues where it was interrupted.
Training is planned in minutes, not steps: the learning rate follows the share of the time that is used up.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads steal the cores from the other worker

from practice_model.autoencoder import make_latents, train_decoder, train_vae
from practice_model.curve import draw_curve
from practice_model.diffusion import save_models, train_unet
from practice_model.export import export
from practice_model.judging import score
from practice_model.workers import log, spawn

from extensions_lib.practice import MODEL_FOLDER, SUBJECTS_FOLDER, families, subjects

COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "vae": lambda args: spawn(train_vae, args),
    "latents": lambda args: spawn(make_latents, args),
    "unet": lambda args: spawn(train_unet, args),
    "decoder": lambda args: spawn(train_decoder, args),
    "models": lambda args: save_models(args.out),
    "export": lambda args: export(args.out, args.target),
    "score": lambda args: score(args.out, args.prompts, args.seed),
    "curve": lambda args: draw_curve(args.out / "loss.csv", args.target),
    "subjects": lambda args: subjects.write_subjects(SUBJECTS_FOLDER),
    "families": lambda args: write_families(args.out / "families"),
}


def write_families(folder: Path) -> None:
    """A checkpoint with its yaml for each variant of each family."""
    for name in families.VARIANTS:
        log(str(families.write_family_model(name, folder)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
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
    COMMANDS[args.command](args)


if __name__ == "__main__":
    main()
