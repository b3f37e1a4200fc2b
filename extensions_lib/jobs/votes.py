"""Finding block weights by votes: a session is a folder with its votes and the pictures of its pairs.

<work>/votes/<name>/
    session.json      the merge, what is drawn of it, and the votes; everything else follows from these
    <name>-000/       the pictures of the first pair: <prompt>-00-00.png on the left, <prompt>-00-01.png on the right

A pair is drawn by a job of the tool 'grid', so it waits for its turn, and can be stopped, like any other.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.codec import name_problems
from ..config.grid import GridConfig, cells, listed
from ..config.tools import KIND
from ..errors import ConfigError, ExtensionError, JobStateError, OutputError, Problem, UnknownJobError
from ..ports import Host
from .access import check_name
from .status import ACTIVE_STATES
from .submission import prepare_tool

if TYPE_CHECKING:
    from ..merge.search import BlockSearch
    from .manager import JobManager

SESSION = "session.json"
SIDES = ("left", "right")
SET_BY_VOTES = ("x", "x_values", "y", "y_values", "alpha", "folder", "overwrite", KIND)


@dataclass(frozen=True)
class Session:
    """What is kept of a session. `table` has the settings of a grid without those that the votes set; `job_id` is the
    job that draws the pair to be voted on, '' when there is none.
    """

    name: str
    table: Mapping[str, Any]
    family: str
    start: float
    votes: tuple[str, ...] = ()
    job_id: str = ""

    @property
    def search(self) -> BlockSearch:
        """The search at this moment."""
        from ..merge.search import BlockSearch

        return BlockSearch(self.family, self.start, int(self.table.get("picture_seed", 1)), self.votes)

    @property
    def pair_name(self) -> str:
        """The name of the pair to be voted on."""
        return f"{self.name}-{len(self.votes):03}"


class Votes:
    """The sessions of one host. Every method may be called from any thread."""

    def __init__(self, manager: JobManager, host: Host) -> None:
        """`manager` draws the pairs."""
        self._manager = manager
        self._host = host
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """All sessions, that with the newest vote first."""
        files = self._root.glob(f"*/{SESSION}")
        return [file.parent.name for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)]

    def start(self, table: Mapping[str, Any]) -> str:
        """Begin a session and have its first pair drawn; its name. `table`: a grid's settings, and `start`, the weight
        of all blocks before the first vote (0.5).

        Raises ConfigError with every mistake, AccessError, MergeError, OutputError for a name that is taken.
        """
        settings = {key: value for key, value in table.items() if key != "start" and key not in SET_BY_VOTES}
        name = _checked_name(settings.get("name"))
        session = Session(name, settings, "", _checked_start(table.get("start", 0.5)))
        config = self._prepared(session, "0.5")
        from ..merge.candidate import candidate_of

        session = replace(session, family=candidate_of(cells(config)[0].merge).family)
        with self._lock:
            if self._folder(name).exists():
                raise OutputError(f"There is a vote called {name} already.", "Choose another name, or go on with it.")
            self._draw(session)
        return name

    def vote(self, name: str, vote: str, number: int) -> None:
        """Take a vote, 'left', 'right' or 'alike', and have the next pair drawn. `number`: how many there were before.

        Raises UnknownJobError, ConfigError for another word, JobStateError for a pair that is voted on already or not
        drawn yet.
        """
        with self._lock:
            session = self._session(name)
            voted = session.search.voted(vote)
            if number != len(session.votes):
                raise JobStateError(
                    f"This pair was number {number}, the vote is at {len(session.votes)}.", "Look again."
                )
            if self._state(session) != "completed":
                raise JobStateError("The pictures are not drawn yet.", "Wait until they are, or draw them again.")
            self._clear(session)
            self._draw(replace(session, votes=voted.votes, job_id=""))

    def draw_again(self, name: str) -> None:
        """Have the pair drawn that is to be voted on, when its job ended without it. Raises as `vote`."""
        with self._lock:
            session = self._session(name)
            if self._state(session) in ("queued", *ACTIVE_STATES):
                raise JobStateError("The pictures are being drawn.", "Wait for them.")
            self._clear(session)
            self._draw(session)

    def forget(self, name: str) -> None:
        """Delete a session with its pictures. Raises UnknownJobError, JobStateError while a pair is drawn."""
        with self._lock:
            self._clear(self._session(name))
            shutil.rmtree(self._folder(name))

    def status(self, name: str) -> dict[str, Any]:
        """How far a session is: the weights found so far (`alpha`), and the pair to be voted on, if there is one."""
        session = self._session(name)
        search = session.search
        pair = search.pair()
        found = {
            "name": name, "number": len(session.votes), "num_votes": search.num_votes, "votes": list(session.votes),
            "alpha": search.best(), "is_finished": search.is_finished, "pair": None,
        }  # fmt: skip
        if pair is not None:
            prompts = listed(str(session.table.get("prompts", "")))
            found["pair"] = {
                "left": pair[0], "right": pair[1], "job_id": session.job_id, "state": self._state(session),
                "prompts": prompts,
            }  # fmt: skip
        return found

    def picture(self, name: str, side: str, prompt: int) -> Path:
        """The picture of the present pair on that side. Raises UnknownJobError when it is not there (yet)."""
        session = self._session(name)
        path = self._folder(name) / session.pair_name / f"{prompt}-00-{SIDES.index(side):02}.png"
        if not path.is_file():
            raise UnknownJobError(f"There is no picture on the {side} of {name!r}.", "Wait until it is drawn.")
        return path

    def _draw(self, session: Session) -> None:
        """Write down where the session is, and submit its pair if there is one left."""
        pair = session.search.pair()
        self._write(session)
        if pair is not None:
            job_id = self._manager.submit(self._prepared(session, " | ".join(pair)))
            self._write(replace(session, job_id=job_id))

    def _prepared(self, session: Session, values: str) -> GridConfig:
        folder = str(self._folder(session.name))
        own = {KIND: "grid", "name": session.pair_name, "folder": folder, "overwrite": True}
        config: GridConfig = prepare_tool({**session.table, **own, "x": "alpha", "x_values": values}, self._host)
        return config

    def _clear(self, session: Session) -> None:
        """The job of the pair leaves no trace in the history. Raises JobStateError while it works."""
        try:
            self._manager.forget(session.job_id)
        except UnknownJobError:
            return

    def _state(self, session: Session) -> str:
        """Of the job that draws the pair; 'interrupted' when it is not known any more."""
        try:
            return self._manager.status(session.job_id).state
        except ExtensionError:
            return "interrupted"

    @property
    def _root(self) -> Path:
        return self._host.folders().work / "votes"

    def _folder(self, name: str) -> Path:
        return self._root / name

    def _session(self, name: str) -> Session:
        if name not in self.names():
            raise UnknownJobError(f"There is no vote {name!r}.", "Look at the list of votes.")
        table = json.loads((self._folder(name) / SESSION).read_text(encoding="utf-8"))
        return Session(**{**table, "votes": tuple(table["votes"])})

    def _write(self, session: Session) -> None:
        from ..formats.atomic import write_bytes_atomic

        folder = self._folder(session.name)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(session), ensure_ascii=False, indent=1)
        write_bytes_atomic(folder / SESSION, text.encode("utf-8"), overwrite=True)


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or (problems := name_problems("name", name)):
        raise ConfigError(problems if isinstance(name, str) else [Problem("name", "is missing")])
    check_name(name)
    return name


def _checked_start(start: Any) -> float:
    if isinstance(start, bool) or not isinstance(start, (int, float)) or not 0 <= start <= 1:
        raise ConfigError([Problem("start", f"is {start!r}, accepted are 0 to 1")])
    return float(start)
