"""The tab without a WebUI: a small host with folders of its own, and the page on the practice model."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.artefacts import ARTEFACTS
from ..events import Event
from ..ports import AccessPolicy, BaseModel, Credentials, HostFolders, NoTrials, Parked, Published
from ..practice import BADGE_FOLDER, SUBJECTS_FOLDER, practice_checkpoint
from .model_files import files_below

if TYPE_CHECKING:
    from ..jobs.manager import JobManager
    from ..ui.page import Served

PRACTICE_TITLE = "Practice model (64 px)"
NOTE = (
    "Practice: the form is filled in for the small practice model and ten pictures of a badge that it does not know. "
    "Press Train; a minute or two later it draws the badge. For a checkpoint of your own, put it into {folder} and "
    "choose start values under 'For'."
)
STOP_SECONDS = 60.0


class StandaloneHost:
    """Results, checkpoints and runs below one folder; `is_open`: other machines reach the page, so no other counts."""

    name = "standalone"
    has_prompt = False
    reads_words_in_loras = True
    trials = NoTrials("This page draws no pictures of its own: there is no model to try it in.")

    def __init__(self, folder: Path, *, is_open: bool = False) -> None:
        self._folder = folder.resolve()
        self._is_open = is_open
        self._lock = threading.Lock()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """One job at a time."""
        with self._lock:
            yield

    def lend(self, parked: Parked) -> None:
        """Nobody else waits for the machine."""

    def publish(self, path: Path, kind: str, num_modules: int) -> Published:
        """Say where the result is; there is no list to put it into."""
        return Published(f"written to {path}", is_usable=True)

    def known_sha256(self, path: Path) -> None:
        """No hashes are kept."""

    def mirror(self, event: Event) -> None:
        """There is no other progress display."""

    def folders(self) -> HostFolders:
        """All below the folder of this host."""
        results = {kind: self._folder / f"{kind}s" for kind in ARTEFACTS}
        return HostFolders(results=results, checkpoints=results["checkpoint"], work=self._folder)

    def base_models(self) -> tuple[BaseModel, ...]:
        """The practice model, and what lies in the folder of checkpoints."""
        own = sorted(self.folders().checkpoints.glob("*.safetensors"))
        return (BaseModel(PRACTICE_TITLE, practice_checkpoint()), *(BaseModel(path.name, path) for path in own))

    def model_files(self, kind: str) -> tuple[BaseModel, ...]:
        """What lies in the folder of a kind: 'loras', 'embeddings', 'vaes', ..."""
        return files_below([self._folder / f"{kind}s"], kind)

    def selected_base_model(self) -> Path:
        """The practice model."""
        return practice_checkpoint()

    def access(self) -> AccessPolicy:
        """Any path for the one user of this machine; for others this host's folder and the practice pictures."""
        if not self._is_open:
            return AccessPolicy()
        return AccessPolicy(roots=(self._folder, SUBJECTS_FOLDER), allow_pickles=False)

    def unusable_methods(self) -> Mapping[str, str]:
        """None: there is no program that would have to load them."""
        return {}


def practice_job() -> dict[str, Any]:
    """A job table to begin with: a LoRA of the badge on the practice model, in a minute or two on a CPU core."""
    # Rates are higher than a real model would bear, and layers this narrow are slower in bf16 and on two threads.
    return {
        "name": "badge",
        "base_model": str(practice_checkpoint()),
        "preset": "lora_quick_look",
        "family": "sd1",
        "dataset": {
            "folder": str(BADGE_FOLDER / "train"),
            "validation_folder": str(BADGE_FOLDER / "held_out"),
            "resolution_px": 64,
            "caption_template": "[filewords]",
        },
        "method": {
            "kind": "lora", "rank": 16, "alpha": 16.0, "train_text_encoder": True, "text_encoder_learning_rate": 1e-3,
        },
        "optimizer": {"learning_rate": 4e-3},
        "training": {
            "max_train_steps": 200, "train_batch_size": 8, "loss_weighting": "none", "mixed_precision": "fp32",
            "num_threads": 1, "validation_every_steps": 50,
        },
        "preview": {"prompts": [
            {"prompt": f"a [name] on a {colour} background", "seed": 7, "guidance_scale": 5.0}
            for colour in ("red", "green")
        ]},
        "output": {"dtype": "fp32", "overwrite": True},
    }  # fmt: skip


class StandalonePage:
    """The page being served, its jobs and their host."""

    def __init__(self, host: StandaloneHost, manager: JobManager, served: Served) -> None:
        self.host = host
        self.manager = manager
        self.url = served.url
        self.app = served.app
        self._close = served.close

    def close(self) -> None:
        """Stop and save the job at work, then end the page."""
        active = self.manager.active()
        if active is not None:
            self.manager.ask(active, "stop")
            self.manager.wait_idle(STOP_SECONDS)
        self._close()


def serve(folder: Path, *, port: int, listen: bool = False, users: Sequence[tuple[str, str]] = ()) -> StandalonePage:
    """Serve the page on `port` and return at once; `listen`: to other machines too. Raises ConfigError."""
    from ..api.routes import add_routes
    from ..jobs.manager import JobManager
    from ..ui.live import LivePage
    from ..ui.page import serve_page, standalone_page
    from ..ui.tab import build_tab

    host = StandaloneHost(folder, is_open=listen)
    for path in host.folders().results.values():
        path.mkdir(parents=True, exist_ok=True)
    manager = JobManager(host)
    credentials = Credentials(users=tuple(users), page_secret=secrets.token_urlsafe(24))
    note = NOTE.format(folder=host.folders().checkpoints)
    tab = build_tab(manager, host, credentials.page_secret, start=practice_job(), note=note)
    served = serve_page(standalone_page(tab, "Train Studio"), "0.0.0.0" if listen else "127.0.0.1", port, users)
    add_routes(served.app, manager, host, credentials, LivePage(manager, host).fragment)
    return StandalonePage(host, manager, served)
