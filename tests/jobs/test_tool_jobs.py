"""Merges and other tools as jobs: the queue, progress, stop, crash and start again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from extensions_lib.config.codec import load
from extensions_lib.config.methods import METHOD_CONFIGS
from extensions_lib.config.tools import TOOLS, load_any_tool
from extensions_lib.control import JobControl
from extensions_lib.errors import ConfigError, JobStateError, MergeError, OutputError
from extensions_lib.events import JobFailed, JobFinished, PauseChanged, PhaseProgress
from extensions_lib.formats.embedding import bundled_tensors
from extensions_lib.formats.hashes import file_sha256
from extensions_lib.formats.safetensors_io import read_header, read_tensors, write_atomic
from extensions_lib.jobs.manager import JobManager
from extensions_lib.jobs.run import resume
from extensions_lib.jobs.store import RunFolder, create_run_folder
from extensions_lib.jobs.submission import prepare_tool
from extensions_lib.ports import Published

from ..merge.conftest import small_lora, small_model, stored
from .conftest import WAIT_SECONDS, assert_in_time, finished, until

MakeTable = Callable[..., dict[str, Any]]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    (tmp_path / "models").mkdir()
    return [stored(tmp_path / "models" / f"{name}.safetensors", small_model(seed)) for seed, name in enumerate("ab")]


@pytest.fixture
def merge_table(tmp_path: Path, models: list[Path]) -> MakeTable:
    def make(**changes: Any) -> dict[str, Any]:
        paths = [{"path": str(model)} for model in models]
        return {"tool": "merge", "name": "mixed", "models": paths, "folder": str(tmp_path / "out"), **changes}

    return make


@pytest.fixture
def working(recording_host: Any) -> tuple[threading.Event, threading.Event]:
    """A tool job sets the first when it is at work, and waits there for the second."""
    begun, go = threading.Event(), threading.Event()

    def wait(path: Path) -> None:
        begun.set()
        assert_in_time(go.wait(WAIT_SECONDS))

    recording_host.on_hash = wait
    return begun, go


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_tools_and_methods_have_different_names() -> None:
    assert not TOOLS.keys() & METHOD_CONFIGS.keys()


def test_a_merge_is_a_job_that_leaves_the_device_to_others(
    manager: JobManager, merge_table: MakeTable, recording_host: Any, tmp_path: Path, models: list[Path]
) -> None:
    recording_host.on_publish = lambda path: Published("in the list", True)
    job_id = manager.submit(load_any_tool(merge_table()))
    done = finished(manager, job_id)
    path = tmp_path / "out" / "mixed.safetensors"
    assert (job_id, done.state, done.method, done.is_tool, done.step) == ("mixed", "completed", "merge", True, 0)
    assert done.sources == tuple(map(str, models))
    assert [(saved.path, saved.published, saved.is_usable) for saved in done.results] == [
        (str(path), "in the list", True)
    ]
    assert recording_host.notes == ["publish checkpoint mixed.safetensors card=False"]
    kinds = [type(event) for event in manager.events(job_id)]
    assert kinds[0] is PhaseProgress and kinds[-1] is JobFinished
    assert files_in(path.parent) == ["mixed.safetensors"]
    assert recording_host.mirrored == manager.events(job_id)
    assert JobManager(recording_host).status(job_id) == done


def test_the_settings_come_back_from_the_run_folder(manager: JobManager, merge_table: MakeTable) -> None:
    config = load_any_tool(merge_table(alpha="0.25"))
    job_id = manager.submit(config)
    finished(manager, job_id)
    folder = manager.folder(job_id)
    assert folder.config() == config
    assert json.loads((folder.path / "job.json").read_text(encoding="utf-8"))["tool"] == "merge"


def test_what_the_host_knows_of_a_file_is_not_read_again(
    manager: JobManager, merge_table: MakeTable, recording_host: Any, models: list[Path], tmp_path: Path
) -> None:
    known = {path: file_sha256(path) for path in models}
    recording_host.on_hash = known.get
    finished(manager, manager.submit(load_any_tool(merge_table())))
    metadata = read_header(tmp_path / "out" / "mixed.safetensors")[1]
    recipe = json.loads(metadata["train_studio.merge"])
    assert [parent["sha256"] for parent in recipe["models"]] == list(known.values())


def test_the_text_of_a_lora_is_told(manager: JobManager, tmp_path: Path) -> None:
    lora = small_lora(tmp_path, "cat.safetensors", ("lora_unet_mid_block_attentions_0_proj_in", 6, 5))
    table = {"tool": "resize", "name": "small", "network": str(lora), "rank": 1, "folder": str(tmp_path / "out")}
    done = finished(manager, manager.submit(load_any_tool(table)))
    assert done.state == "completed", done.error
    assert done.results[0].text.startswith("1 layers of rank 1; left out: ")
    assert (done.results[0].num_modules, done.warnings) == (1, ())


def test_a_result_that_is_not_as_asked_is_a_warning(
    manager: JobManager, merge_table: MakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from extensions_lib.merge import tools

    made = Path(merge_table()["folder"]) / "mixed.safetensors"
    result = tools.ToolResult(made, "checkpoint", "The bytes are not those.", is_as_asked=False)
    monkeypatch.setitem(tools.RUNNERS, "merge", lambda *given: result)
    done = finished(manager, manager.submit(load_any_tool(merge_table())))
    assert (done.state, done.warnings) == ("completed", ("The bytes are not those.",))


def test_what_cannot_work_is_refused_before_it_is_queued(
    manager: JobManager, merge_table: MakeTable, tmp_path: Path, models: list[Path]
) -> None:
    missing = [{"path": str(models[0])}, {"path": str(tmp_path / "none.safetensors")}]
    with pytest.raises(ConfigError, match=r"models\[1\].path: is .*none.safetensors, which is not there"):
        manager.submit(load_any_tool(merge_table(models=missing)))
    other = stored(tmp_path / "models" / "other.safetensors", {"model.diffusion_model.x": small_model(0)["betas"]})
    with pytest.raises(MergeError):
        manager.submit(load_any_tool(merge_table(models=[{"path": str(models[0])}, {"path": str(other)}])))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mixed.safetensors").write_bytes(b"precious")
    with pytest.raises(OutputError, match="already exists and was not touched"):
        manager.submit(load_any_tool(merge_table()))
    assert manager.statuses() == ()
    assert files_in(tmp_path / "out") == ["mixed.safetensors"]


def test_two_waiting_jobs_may_not_write_the_same_file(
    manager: JobManager, merge_table: MakeTable, working: tuple[threading.Event, threading.Event], tmp_path: Path
) -> None:
    begun, go = working
    manager.submit(load_any_tool(merge_table()))
    assert begun.wait(WAIT_SECONDS)
    with pytest.raises(OutputError, match="The job mixed, which is not finished yet, will write mixed in the same"):
        manager.submit(load_any_tool(merge_table()))
    with pytest.raises(OutputError):
        manager.submit(load_any_tool(merge_table(folder=f"{tmp_path}/out/")))
    go.set()
    assert finished(manager, "mixed").state == "completed"


def test_a_merge_behind_a_training_waits(
    manager: JobManager, job: Callable[..., Any], hold: threading.Event, merge_table: MakeTable
) -> None:
    manager.submit(load(job(training={"max_train_steps": 1})))
    until(manager, "zbadge", lambda status: status.state == "preparing")
    manager.submit(load_any_tool(merge_table()))
    assert [(each.job_id, each.state) for each in manager.statuses()] == [("mixed", "queued"), ("zbadge", "preparing")]
    hold.set()
    assert finished(manager, "mixed").state == "completed"
    assert manager.status("zbadge").state == "completed"


def test_stopped_in_the_queue_it_can_be_started_later(
    manager: JobManager, working: tuple[threading.Event, threading.Event], merge_table: MakeTable, tmp_path: Path
) -> None:
    begun, go = working
    manager.submit(load_any_tool(merge_table(name="first")))
    assert begun.wait(WAIT_SECONDS)
    manager.submit(load_any_tool(merge_table()))
    manager.ask("mixed", "stop")
    assert manager.status("mixed").state == "stopped"
    go.set()
    finished(manager, "first")
    assert files_in(tmp_path / "out") == ["first.safetensors"]
    manager.continue_run("mixed")
    assert finished(manager, "mixed").state == "completed"


@pytest.mark.parametrize(("word", "state"), [("stop", "stopped"), ("discard", "discarded")])
def test_stopped_at_work_it_leaves_nothing(
    manager: JobManager,
    working: tuple[threading.Event, threading.Event],
    merge_table: MakeTable,
    tmp_path: Path,
    word: str,
    state: str,
) -> None:
    begun, go = working
    manager.submit(load_any_tool(merge_table()))
    assert begun.wait(WAIT_SECONDS)
    assert manager.status("mixed").state == "working"
    manager.ask("mixed", word)
    go.set()
    done = finished(manager, "mixed")
    assert (done.state, done.results, done.error) == (state, (), "")
    assert files_in(tmp_path / "out") == []
    manager.continue_run("mixed")
    assert finished(manager, "mixed").state == "completed"


def test_paused_it_waits_and_goes_on(
    manager: JobManager, working: tuple[threading.Event, threading.Event], merge_table: MakeTable
) -> None:
    begun, go = working
    manager.submit(load_any_tool(merge_table()))
    assert begun.wait(WAIT_SECONDS)
    manager.ask("mixed", "pause")
    go.set()
    until(manager, "mixed", lambda status: status.state == "paused")
    manager.ask("mixed", "resume")
    assert finished(manager, "mixed").state == "completed"
    told = [event.paused for event in manager.events("mixed") if isinstance(event, PauseChanged)]
    assert told == [True, False]


def test_paused_it_can_be_stopped(
    manager: JobManager, working: tuple[threading.Event, threading.Event], merge_table: MakeTable, tmp_path: Path
) -> None:
    begun, go = working
    manager.submit(load_any_tool(merge_table()))
    assert begun.wait(WAIT_SECONDS)
    manager.ask("mixed", "pause")
    go.set()
    until(manager, "mixed", lambda status: status.state == "paused")
    manager.ask("mixed", "stop")
    assert finished(manager, "mixed").state == "stopped"
    assert files_in(tmp_path / "out") == []


@pytest.mark.parametrize("word", ["save", "preview"])
def test_what_only_trainings_can_do_is_refused(manager: JobManager, merge_table: MakeTable, word: str) -> None:
    finished(manager, manager.submit(load_any_tool(merge_table())))
    accepted = "'Merge checkpoints' has no steps. Accepted are pause, resume, stop, discard"
    with pytest.raises(ConfigError, match=f"request: is '{word}', which is for trainings; {accepted}"):
        manager.ask("mixed", word)


def test_a_finished_one_is_started_again_only_when_its_file_is_gone(
    manager: JobManager, merge_table: MakeTable, tmp_path: Path
) -> None:
    path = tmp_path / "out" / "mixed.safetensors"
    finished(manager, manager.submit(load_any_tool(merge_table())))
    with pytest.raises(JobStateError, match=f"The job mixed is finished: {path} is written."):
        manager.continue_run("mixed")
    path.unlink()
    assert manager.status("mixed").results == ()
    manager.continue_run("mixed")
    assert finished(manager, "mixed").state == "completed" and path.exists()


def test_a_stop_after_the_file_is_written_comes_too_late(
    manager: JobManager, merge_table: MakeTable, recording_host: Any
) -> None:
    def stop(path: Path) -> Published:
        manager.ask("mixed", "stop")
        return Published("visible", True)

    recording_host.on_publish = stop
    done = finished(manager, manager.submit(load_any_tool(merge_table())))
    assert (done.state, done.results[0].published) == ("completed", "visible")


def test_killed_after_the_file_was_written_it_is_complete(
    manager: JobManager, merge_table: MakeTable, recording_host: Any
) -> None:
    finished(manager, manager.submit(load_any_tool(merge_table())))
    log = manager.folder("mixed").event_file
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    log.write_text("".join(line for line in lines if "JobFinished" not in line), encoding="utf-8")
    status = JobManager(recording_host).status("mixed")
    assert (status.state, len(status.results)) == ("completed", 1)
    Path(status.results[0].path).unlink()
    assert JobManager(recording_host).status("mixed").state == "interrupted"


def test_a_tool_has_no_steps_to_extend(manager: JobManager, merge_table: MakeTable, recording_host: Any) -> None:
    create_run_folder(recording_host.folders().runs, load_any_tool(merge_table()))
    with pytest.raises(ConfigError, match="max_train_steps: is 9; this job has no steps"):
        manager.continue_run("mixed", 9)


def test_a_full_disk_fails_the_job_and_leaves_nothing(
    manager: JobManager, merge_table: MakeTable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from extensions_lib.errors import DiskFullError
    from extensions_lib.merge import writing

    def full(*given: Any, **more: Any) -> None:
        raise DiskFullError("The disk is full.", "Free some space.")

    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_tensors_as_made", full)
        done = finished(manager, manager.submit(load_any_tool(merge_table())))
    assert (done.state, done.error, done.hint) == ("failed", "The disk is full.", "Free some space.")
    assert isinstance(manager.events("mixed")[-1], JobFailed)
    assert files_in(tmp_path / "out") == []
    manager.continue_run("mixed")
    done = finished(manager, "mixed")
    assert (done.state, done.error) == ("completed", "")


KILLED = """
import sys, time, json
from pathlib import Path
from extensions_lib.config.tools import load_any_tool
from extensions_lib.control import JobControl
from extensions_lib.events import PhaseProgress
from extensions_lib.jobs.run import resume
from extensions_lib.jobs.store import RunFolder

def hang(event):
    if isinstance(event, PhaseProgress) and event.phase == "merge" and event.done > 2:
        print("half", flush=True)
        time.sleep(600)

resume(RunFolder(Path(sys.argv[1])), JobControl(), (hang,))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_after_a_crash_it_is_interrupted_and_starts_again(
    manager: JobManager, merge_table: MakeTable, recording_host: Any, tmp_path: Path
) -> None:
    folder = create_run_folder(recording_host.folders().runs, load_any_tool(merge_table()))
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder.path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "half\n"
        assert manager.status("mixed").state == "working"
        with pytest.raises(JobStateError):
            manager.continue_run("mixed")
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    status = JobManager(recording_host).status("mixed")
    assert (status.state, status.results) == ("interrupted", ())
    assert not (tmp_path / "out" / "mixed.safetensors").exists()
    (half,) = files_in(tmp_path / "out")
    assert half.startswith(f"mixed.safetensors.tmp-{process.pid}-")
    manager.continue_run("mixed")
    assert finished(manager, "mixed").state == "completed"
    assert files_in(tmp_path / "out") == ["mixed.safetensors"]


def test_from_the_command_line_a_run_starts_again(merge_table: MakeTable, tmp_path: Path) -> None:
    folder = create_run_folder(tmp_path / "runs", load_any_tool(merge_table()))
    outcome = resume(RunFolder(folder.path), JobControl())
    assert (outcome.reason, outcome.path) == ("completed", tmp_path / "out" / "mixed.safetensors")


def test_forget_deletes_the_run_and_leaves_the_file(manager: JobManager, merge_table: MakeTable) -> None:
    finished(manager, manager.submit(load_any_tool(merge_table())))
    result = Path(manager.status("mixed").results[0].path)
    assert manager.delete_results("mixed", 0) == []
    manager.forget("mixed")
    assert manager.statuses() == ()
    assert result.exists()


def test_words_taken_out_of_a_lora_are_published_as_embeddings(
    manager: JobManager, recording_host: Any, tmp_path: Path
) -> None:
    lora = small_lora(tmp_path, "cat.safetensors", ("lora_te_text_model_encoder_layers_0_mlp_fc1", 3072, 768))
    words = bundled_tensors("zcat", {"": torch.ones(2, 768)})
    path = write_atomic(tmp_path / "both.safetensors", {**read_tensors(lora), **words}, {})
    table = {"tool": "convert-lora", "name": "plain", "network": str(path), "family": "sd1", "embeddings": "beside"}
    config = prepare_tool(table, recording_host)
    results = recording_host.folders().results
    assert config.embeddings_folder == str(results["embedding"])
    done = finished(manager, manager.submit(config))
    assert done.state == "completed", done.error
    assert done.results[0].beside == (str(results["embedding"] / "zcat.safetensors"),)
    assert recording_host.notes == [
        "publish embedding zcat.safetensors card=False",
        "publish lora plain.safetensors card=False",
    ]
