from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from extensions_lib.config.codec import load
from extensions_lib.methods.catalogue import make_method
from extensions_lib.training.results import check_output


def test_two_threads_may_ask_for_one_name_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job that starts and the one that is being submitted under the same name."""
    output = {"folder": str(tmp_path)}
    config = load({"name": "x", "base_model": "m", "dataset": {"folder": "p"}, "method": "lora", "output": output})
    method = make_method(config.method, config.output)
    unlink = Path.unlink

    def unlink_after_the_other(path: Path, **options: Any) -> None:
        monkeypatch.setattr(Path, "unlink", unlink)
        other = threading.Thread(target=check_output, args=(config, method))
        other.start()
        other.join()
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", unlink_after_the_other)
    check_output(config, method)
    assert Path.unlink is unlink
    assert list(tmp_path.iterdir()) == []
