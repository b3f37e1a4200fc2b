from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from extensions_lib.cli.main import main
from extensions_lib.config.codec import read_job_file
from extensions_lib.config.reference import reference_table
from extensions_lib.formats.embedding import embedding_tensors
from extensions_lib.formats.safetensors_io import write_atomic
from extensions_lib.jobs.store import RunFolder


def job_file(tmp_path: Path, pictures: Path, model: Path, **changes: Any) -> Path:
    table = {
        "name": "zbadge",
        "base_model": str(model),
        "dataset": {"folder": str(pictures), "resolution_px": 64},
        "method": {"kind": "lora", "rank": 1, "layer_filter": "attn2.to_k", "train_text_encoder": False},
        "training": {"max_train_steps": 2, "train_batch_size": 1, "num_threads": 1, "mixed_precision": "fp32"},
        "preview": {"enabled": False},
        "output": {"folder": str(tmp_path / "out"), "runs_folder": str(tmp_path / "runs")},
        **changes,
    }
    path = tmp_path / "job.json"
    path.write_text(json.dumps(table), encoding="utf-8")
    return path


def test_train_resume_and_preview(
    tmp_path: Path, pictures: Path, practice_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(job_file(tmp_path, pictures, practice_model))]) == 0
    assert "completed at step 2" in capsys.readouterr().out
    assert main(["resume", str(tmp_path / "runs" / "zbadge")]) == 5
    assert "is finished: 2 of 2 steps are done." in capsys.readouterr().err
    assert main(["resume", str(tmp_path / "runs" / "zbadge"), "--max-train-steps", "3"]) == 0
    capsys.readouterr()
    picture = tmp_path / "drawn.png"
    assert main(["preview", str(tmp_path / "runs" / "zbadge"), "--prompt", "a [name]", "--output", str(picture)]) == 0
    assert f"{picture}: the model after 3 steps" in capsys.readouterr().out
    assert picture.exists()


def test_all_mistakes_of_a_job_file_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "job.toml"
    path.write_text('name = "x"\nmethod = "lora"\nbase_modle = "m"\n[dataset]\nfolder = 3\n', encoding="utf-8")
    assert main(["train", str(path)]) == 2
    text = capsys.readouterr().err
    assert "error: 3 settings are wrong:" in text
    for expected in (
        "base_modle: is not a setting; did you mean 'base_model'?",
        "base_model: is missing",
        "dataset.folder: must be a text, is 3",
    ):
        assert expected in text


def test_exit_codes_of_pictures_model_and_output(
    tmp_path: Path, pictures: Path, practice_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = {"folder": str(tmp_path / "none"), "resolution_px": 64}
    assert main(["train", str(job_file(tmp_path, pictures, practice_model, dataset=missing))]) == 3
    assert main(["train", str(job_file(tmp_path, pictures, tmp_path / "none.safetensors"))]) == 4
    (tmp_path / "out" / "zbadge.safetensors").write_bytes(b"mine")
    assert main(["train", str(job_file(tmp_path, pictures, practice_model))]) == 6
    errors = capsys.readouterr().err
    assert "does not exist" in errors
    assert "exists already. \nChoose another name" in errors.replace("already.\n", "already. \n")


def test_an_embedding_as_base_model_is_one_clear_sentence(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_atomic(tmp_path / "cat.safetensors", embedding_tensors("cat", torch.ones(2, 768)), {})
    assert main(["train", str(job_file(tmp_path, pictures, path))]) == 4
    assert "embedding" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["lora", "textual_inversion"])
def test_init_prints_a_valid_job(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", method]) == 0
    path = tmp_path / "job.toml"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert read_job_file(path).method.kind == method


def test_settings_prints_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings"]) == 0
    assert capsys.readouterr().out == reference_table()


def test_inspect_says_what_a_file_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_atomic(tmp_path / "cat.safetensors", embedding_tensors("cat", torch.ones(2, 768)), {"step": "30"})
    assert main(["inspect", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "embedding"
    assert main(["inspect", str(tmp_path / "none.safetensors")]) == 4


def test_like_writes_a_job_that_can_be_read_and_says_what_does_not_map(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "kohya.toml"
    config.write_text(
        'network_module = "networks.lora"\nnetwork_dim = 6\nmax_train_epochs = 3\nrandom_crop = true\n'
        '[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = "cats"\n', encoding="utf-8"
    )  # fmt: skip
    assert main(["like", str(config)]) == 0
    printed = tmp_path / "printed.toml"
    printed.write_text(capsys.readouterr().out, encoding="utf-8")
    job = read_job_file(printed)
    assert (job.name, job.base_model, job.dataset.folder, job.method.rank) == (
        "my-subject", "model.safetensors", "cats", 6,
    )  # fmt: skip
    assert "random_crop = true: pictures are cropped at their middle here" in printed.read_text(encoding="utf-8")
    written = tmp_path / "job.toml"
    assert main(["like", str(config), "--num-pictures", "8", "--output", str(written)]) == 0
    said = capsys.readouterr().out
    assert "3 epochs as 24 samples" in said
    assert "look at it before you train" in said
    assert read_job_file(written).training.num_samples == 24
    assert main(["like", str(config), "--output", str(written)]) == 6
    assert main(["like", str(tmp_path / "none.safetensors")]) == 4
    assert main(["like", str(tmp_path / "notes.txt")]) == 2


def test_ask_leaves_a_request(tmp_path: Path) -> None:
    assert main(["ask", str(tmp_path), "pause"]) == 0
    assert [path.name for path in RunFolder(tmp_path).requests.iterdir()] == ["pause"]


def test_wrong_arguments_are_exit_code_2() -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train"])


def test_the_practice_model_is_exported_with_all_a_webui_needs(
    tmp_path: Path, practice_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export-practice-model", str(tmp_path)]) == 0
    clip = tmp_path / "practice-clip"
    assert (tmp_path / "practice.safetensors").read_bytes() == practice_model.read_bytes()
    assert "version: models/Stable-diffusion/practice-clip" in (tmp_path / "practice.yaml").read_text(encoding="utf-8")
    assert {path.name for path in clip.iterdir()} == {
        "config.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer_config.json",
        "vocab.json",
    }
    from transformers import CLIPTokenizer

    assert CLIPTokenizer.from_pretrained(str(clip))("a cat")["input_ids"] == [49406, 320, 2368, 49407]


def test_ui_serves_the_page_until_it_is_ended(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-W", "ignore", "-m", "extensions_lib", "ui", "--port", str(port), "--folder", str(tmp_path),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in process.stdout if line.startswith("Train Studio is at"))
        assert line == f"Train Studio is at http://127.0.0.1:{port}/; Ctrl-C ends it.\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert "Ending; a job at work is stopped and saved first." in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("user", ["ann", "ann:", ":word"])
def test_a_login_without_name_or_password_is_refused(user: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["ui", "--user", user])
    assert f"{user!r} is not NAME:PASSWORD" in capsys.readouterr().err


def test_ctrl_c_once_stops_and_saves(tmp_path: Path, pictures: Path, practice_model: Path) -> None:
    steps = {"max_train_steps": 100_000, "num_threads": 1, "mixed_precision": "fp32"}
    command = [
        sys.executable, "-m", "extensions_lib", "train",
        str(job_file(tmp_path, pictures, practice_model, training=steps)),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = RunFolder(tmp_path / "runs" / "zbadge")
    deadline = time.monotonic() + 120
    while not any(type(event).__name__ == "StepCompleted" for event in folder.events()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 10
    assert "Stopping after this step and saving" in err
    assert "stopped at step" in out
    assert (tmp_path / "out" / "zbadge.safetensors").exists()
