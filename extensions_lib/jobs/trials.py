"""Trying a merge or a bake in the host's model before it is saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import HostError
from ..ports import Host
from .submission import prepare_tool

TRIAL_NAME = "trial"


def start_trial(table: Mapping[str, Any], host: Host) -> None:
    """Begin to put what `table` makes into the host's loaded model; it need not name the result.

    `host.trials.current()` says how it goes. Raises HostError where there are no trials, ConfigError with every
    mistake, AccessError, MergeError when the files do not fit each other or the loaded model.
    """
    if host.trials.refusal:
        raise HostError(host.trials.refusal, "Save it as a checkpoint and choose that.")
    config = prepare_tool({**table, "name": table.get("name") or TRIAL_NAME}, host)
    from ..merge.candidate import candidate_of

    host.trials.try_on(candidate_of(config))
