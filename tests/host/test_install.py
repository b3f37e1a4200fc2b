"""What the first start changes in the WebUI's Python environment, seen in a throw-away one laid over it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .server import HostServer, Place, job_table, running, wait_for_state
from .test_start import tab_labels

pytestmark = pytest.mark.timeout(900)

SAYS = "Train Studio installed"


@pytest.fixture(scope="module")
def server(webui_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    server = HostServer(webui_root, Place.make(tmp_path_factory.mktemp("host")))
    server.python = str(laid_over(server.python, tmp_path_factory.mktemp("environment")))
    yield server
    server.stop()


def laid_over(python: str, folder: Path) -> Path:
    """An environment that sees the packages of another one's and keeps its own changes to itself."""
    show = "import sysconfig; print(sysconfig.get_path('purelib'))"
    below = subprocess.run([python, "-c", show], capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run([os.path.realpath(python), "-m", "venv", "--without-pip", folder], check=True)
    new = folder / "bin" / "python"
    own = subprocess.run([new, "-c", show], capture_output=True, text=True, check=True).stdout.strip()
    (Path(own) / "below.pth").write_text(f"{below}\n", encoding="utf-8")
    return new


def freeze(server: HostServer) -> set[str]:
    """What is installed, with versions."""
    command = [server.python, "-m", "pip", "freeze", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {line for line in done.stdout.splitlines() if line}


def without_packages(server: HostServer) -> None:
    """Skip when the environment below has what `install.py` adds."""
    if any(line.startswith("diffusers==") for line in freeze(server)):
        pytest.skip("the environment has all packages already: nothing to see")


def test_statement_03_without_packages_the_tab_says_what_is_missing(server: HostServer):
    without_packages(server)
    with running(server, "--api", "--skip-install"):
        page = server.webui.raw("/").decode("utf-8")
        assert "Training needs packages that are not installed: diffusers==0.31.0" in page
        assert server.webui.draw("a red circle").image.size == (64, 64)
        status, answer, _ = server.status_of("/train-studio/v1/jobs", job_table(server.place, name="bare"))
        if status == 202:
            answer = wait_for_state(server, answer["job_id"], "failed")
        assert "diffusers" in str(answer), answer


def test_statement_02_the_first_start_adds_and_the_second_is_silent(server: HostServer):
    without_packages(server)
    before = freeze(server)
    with running(server, "--api"):
        first = server.text()
        after = freeze(server)
        assert before <= after, f"changed or gone: {before - after}"
        assert SAYS in first
        assert {line.partition("==")[0] for line in after - before} <= {
            "diffusers", "importlib_metadata", "zipp", "tomli", "PyYAML",
        }  # fmt: skip
        status, answer, _ = server.status_of("/train-studio/v1/jobs", job_table(server.place, name="fresh"))
        assert status == 202, answer
        assert wait_for_state(server, answer["job_id"], "completed", "failed")["state"] == "completed"
    with running(server, "--api"):
        assert "Train Studio" not in server.text()
        assert freeze(server) == after


def test_statement_03_with_a_package_that_breaks_at_import_the_tab_is_there(server: HostServer):
    """The one that the first start has added is damaged."""
    [file] = Path(server.python).parents[1].rglob("site-packages/diffusers/__init__.py")
    file.write_text("raise ImportError('this package is broken')\n", encoding="utf-8")
    server.start("--api", "--skip-install")
    assert "Train Studio" in tab_labels(server)
    status, answer, _ = server.status_of("/train-studio/v1/jobs", job_table(server.place, name="broken"))
    if status == 202:
        answer = wait_for_state(server, answer["job_id"], "failed")
    assert "this package is broken" in str(answer), answer
    server.expect_free()
    assert server.webui.draw("a red circle").image.size == (64, 64)
