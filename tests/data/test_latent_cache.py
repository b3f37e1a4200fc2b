from __future__ import annotations

import os
import types

import pytest
import torch
from PIL import Image

from extensions_lib.data.dataset import scan_folder
from extensions_lib.data.encode import sample_latents, vae_fingerprint
from extensions_lib.data.fitted import load_fitted, to_tensor
from extensions_lib.data.latent_cache import cache_latents
from extensions_lib.data.masks import alpha_mask
from extensions_lib.data.stream import ExampleRef
from extensions_lib.errors import DatasetError, JobStopped, OutOfMemoryError, OutputError, is_out_of_memory
from extensions_lib.formats.safetensors_io import read_header, read_tensors, write_atomic


@pytest.fixture(scope="module")
def vae():
    """A tiny AutoencoderKL with weights by formula."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            values = torch.arange(parameter.numel(), dtype=torch.float64) + number
            parameter.copy_((values.sin() * 0.15).reshape(parameter.shape))
    return model.eval().requires_grad_(False)


@pytest.fixture
def pictures(tmp_path, noise):
    """Two opaque pictures in different buckets and one with transparency."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    noise(64, 64, 1).save(folder / "a.png")
    noise(100, 50, 2).save(folder / "b.png")
    alpha = noise(64, 64, 3)
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 16, 64))
    alpha.putalpha(mask)
    alpha.save(folder / "c.png")
    return folder


def files(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_latents_are_the_vaes(pictures, vae, tmp_path) -> None:
    dataset = scan_folder(pictures, resolution_px=64)
    cached = cache_latents(dataset, vae, tmp_path / "cache", flip=True)
    assert len(cached) == cached.num_encoded == 6
    for example in dataset.examples:
        pixels = to_tensor(load_fitted(example).rgb)
        for flip in (False, True):
            expected = vae.encode(pixels.flip(-1) if flip else pixels).latent_dist
            stats = cached.get(example.index, flip)
            assert torch.equal(stats.mean, expected.mean[0]) and torch.equal(stats.std, expected.std[0])
            assert stats.mean.shape == (4, example.bucket[1] // 8, example.bucket[0] // 8)
            assert stats.mean.dtype == torch.float32 and not stats.mean.requires_grad
    assert not torch.equal(cached.get(0, False).mean, cached.get(0, True).mean.flip(-1))


def test_a_second_run_reads_what_the_first_wrote(pictures, vae, tmp_path) -> None:
    dataset = scan_folder(pictures, resolution_px=64)
    first = cache_latents(dataset, vae, tmp_path / "cache", flip=True)
    second = cache_latents(dataset, vae, tmp_path / "cache", flip=True)
    assert (first.num_encoded, second.num_encoded) == (6, 0)
    for key in ((0, False), (1, True), (2, True)):
        assert torch.equal(first.get(*key).mean, second.get(*key).mean)
        assert torch.equal(first.get(*key).std, second.get(*key).std)
    assert torch.equal(first.get(2, True).alpha, second.get(2, True).alpha)
    assert len(files(tmp_path / "cache")) == 6
    assert files(pictures) == ["a.png", "b.png", "c.png"]


def test_exactly_what_changed_is_encoded_again(pictures, vae, tmp_path, noise) -> None:
    cache = tmp_path / "cache"

    def num_encoded(resolution_px: int = 64, **options) -> int:
        background = options.pop("background", (255, 255, 255))
        dataset = scan_folder(pictures, resolution_px=resolution_px, background=background)
        return cache_latents(dataset, vae, cache, **options).num_encoded

    assert num_encoded() == 3 and num_encoded() == 0
    (pictures / "a.txt").write_text("another caption")
    assert num_encoded() == 0
    (pictures / "a.png").rename(pictures / "z.png")
    assert num_encoded() == 0
    before = (pictures / "b.png").stat()
    image = Image.open(pictures / "b.png").convert("RGB")
    image.putpixel((50, 25), (0, 0, 0))
    image.save(pictures / "b.png")
    os.utime(pictures / "b.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert num_encoded() == 1
    assert num_encoded(background=(0, 0, 0)) == 1  # only the transparent one
    assert num_encoded(128) == 3
    assert num_encoded(flip=True) == 3
    assert num_encoded(vae_hash="another vae") == 3


def test_the_fingerprint_is_that_of_the_encoder(vae) -> None:
    def changed(name: str) -> str:
        weights = {key: value.clone() for key, value in vae.state_dict().items()}
        weights[name].view(-1)[0] += 1
        return vae_fingerprint(types.SimpleNamespace(state_dict=lambda: weights))

    assert vae_fingerprint(vae) == changed("decoder.conv_in.weight") == changed("post_quant_conv.bias")
    assert len({vae_fingerprint(vae), changed("encoder.conv_in.weight"), changed("quant_conv.bias")}) == 3
    assert len(vae_fingerprint(vae)) == 64


@pytest.mark.parametrize(
    "damage", ["cut", "empty", "text", "flipped byte", "metadata", "shape", "nan", "other picture"]
)
def test_a_damaged_or_foreign_file_is_not_trusted(pictures, vae, tmp_path, damage) -> None:
    cache = tmp_path / "cache"
    dataset = scan_folder(pictures, resolution_px=64)
    first = cache_latents(dataset, vae, cache)
    by_picture = {read_header(path)[1]["picture_sha256"]: path for path in cache.iterdir()}
    path, other = (by_picture[dataset.examples[index].sha256] for index in (0, 2))
    data, tensors, metadata = path.read_bytes(), read_tensors(path), read_header(path)[1]
    if damage == "cut":
        path.write_bytes(data[:-4])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_bytes(b"hello" * 100)
    elif damage == "flipped byte":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "metadata":
        write_atomic(path, tensors, {**metadata, "flip": "True"}, overwrite=True)
    elif damage == "shape":
        write_atomic(path, {**tensors, "mean": tensors["mean"][:, :4].clone()}, metadata, overwrite=True)
    elif damage == "nan":
        write_atomic(path, {**tensors, "mean": tensors["mean"] * torch.nan}, metadata, overwrite=True)
    else:
        path.write_bytes(other.read_bytes())
    again = cache_latents(dataset, vae, cache)
    assert again.num_encoded == 1
    assert torch.equal(again.get(0).mean, first.get(0).mean)
    assert path.read_bytes() == data
    assert cache_latents(dataset, vae, cache).num_encoded == 0


def test_micro_batches_are_stacked(pictures, vae, tmp_path) -> None:
    dataset = scan_folder(pictures, resolution_px=64)
    cached = cache_latents(dataset, vae, tmp_path / "cache", flip=True)
    refs = [ExampleRef(0), ExampleRef(2), ExampleRef(2, repeat=1, flip=True)]
    mean, std = cached.stack(refs)
    assert mean.shape == std.shape == (3, 4, 8, 8)
    assert torch.equal(mean[2], cached.get(2, True).mean) and torch.equal(std[1], cached.get(2, False).std)
    weights = cached.stack_weights(refs, unmasked_weight=0.2)
    assert weights.shape == (3, 1, 8, 8)
    assert weights[0].eq(1).all()
    example = dataset.examples[2]
    expected = alpha_mask(load_fitted(example).alpha, example.bucket, example.crop, unmasked_weight=0.2)
    assert torch.equal(weights[1], expected)
    assert weights[1, 0, 0].tolist() == pytest.approx([2.5, 2.5] + [0.5] * 6)
    assert torch.allclose(weights[2], expected.flip(-1))


def test_mirrored_latents_must_be_asked_for(pictures, vae, tmp_path) -> None:
    cached = cache_latents(scan_folder(pictures, resolution_px=64), vae, tmp_path / "cache")
    with pytest.raises(KeyError):
        cached.get(0, True)


def test_progress_and_stop_keep_what_is_done(pictures, vae, tmp_path) -> None:
    dataset = scan_folder(pictures, resolution_px=64)
    calls: list[object] = []

    def boundary() -> None:
        if calls.count("boundary") == 2:
            raise JobStopped("stopped")
        calls.append("boundary")

    def progress(done: int, total: int) -> None:
        calls.append((done, total))

    with pytest.raises(JobStopped):
        cache_latents(dataset, vae, tmp_path / "cache", boundary=boundary, progress=progress)
    assert calls == ["boundary", (1, 3), "boundary", (2, 3)]
    assert cache_latents(dataset, vae, tmp_path / "cache").num_encoded == 1


class Broken:
    """A VAE that answers with `mean` and `std` everywhere, or raises `error`."""

    dtype = torch.float16
    device = torch.device("cpu")

    def __init__(self, mean: float = 0.0, std: float = 0.0, error: Exception | None = None) -> None:
        self.mean, self.std, self.error = mean, std, error

    def encode(self, x):
        if self.error is not None:
            raise self.error
        assert x.dtype == torch.float16 and not torch.is_grad_enabled()
        latents = torch.ones((1, 4, x.shape[2] // 8, x.shape[3] // 8), dtype=torch.float16)
        return types.SimpleNamespace(
            latent_dist=types.SimpleNamespace(mean=latents * self.mean, std=latents * self.std)
        )

    def state_dict(self):
        return {"weight": torch.zeros(1)}


@pytest.mark.parametrize(("mean", "std"), [(torch.nan, 0.0), (torch.inf, 0.0), (0.0, torch.inf)])
def test_latents_that_are_not_finite_name_the_picture(pictures, tmp_path, mean, std) -> None:
    with pytest.raises(DatasetError) as caught:
        cache_latents(scan_folder(pictures, resolution_px=64), Broken(mean, std), tmp_path / "cache")
    assert caught.value.message == (
        "The latents of a.png are not finite (NaN or infinity); the VAE computes in float16."
    )
    assert "float32" in caught.value.hint
    assert files(tmp_path / "cache") == []


def test_the_vae_works_in_its_own_dtype_and_the_cache_in_float32(pictures, tmp_path) -> None:
    cached = cache_latents(scan_folder(pictures, resolution_px=64), Broken(0.5), tmp_path / "cache")
    assert cached.get(0).mean.dtype == torch.float32 and cached.get(0).mean.eq(0.5).all()


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    ],
)
def test_too_little_memory_names_picture_and_size(pictures, tmp_path, error) -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        cache_latents(scan_folder(pictures, resolution_px=64), Broken(error=error), tmp_path / "cache")
    assert caught.value.message == "There is too little memory on cpu to encode a.png at 64x64 px."
    assert "smaller resolution" in caught.value.hint
    assert is_out_of_memory(error)


def test_other_faults_of_the_vae_are_not_hidden(pictures, tmp_path) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        cache_latents(
            scan_folder(pictures, resolution_px=64), Broken(error=RuntimeError("shapes cannot be multiplied")),
            tmp_path / "cache",
        )  # fmt: skip


def test_a_cache_folder_that_cannot_be_made(pictures, vae, tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="The cache folder .* cannot be made"):
        cache_latents(scan_folder(pictures, resolution_px=64), vae, tmp_path / "file" / "cache")


def test_samples_have_the_posteriors_mean_and_deviation() -> None:
    mean, std = torch.full((4, 50, 50), 2.0), torch.full((4, 50, 50), 0.5)
    generator = torch.Generator().manual_seed(3)
    sample = sample_latents(mean, std, generator, 0.5)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    assert torch.equal(sample, (mean + std * noise) * 0.5)
    assert not torch.equal(sample, sample_latents(mean, std, generator, 0.5))
    assert sample_latents(mean, std, None, 0.18215).eq(2.0 * 0.18215).all()
