"""Adds the packages Train Studio needs and the WebUI does not have. Never changes a package that is there.

The WebUI runs this at every start, before it loads anything; it must be quick and silent when nothing is to be done.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from importlib import metadata, util
from pathlib import Path

# Distribution, import name, what to install. All of diffusers' own needs are here, so that none is looked for.
NEEDED = (
    ("diffusers", "diffusers", "diffusers==0.31.0"),
    ("importlib_metadata", "importlib_metadata", "importlib_metadata"),
    ("zipp", "zipp", "zipp"),
    ("PyYAML", "yaml", "PyYAML"),
    *((("tomli", "tomli", "tomli"),) if sys.version_info < (3, 11) else ()),
)
SKIP_FLAGS = {"--skip-install", "--skip-prepare-environment"}


def absent() -> list[str]:
    """What has to be installed, for pip."""
    return [wanted for distribution, module, wanted in NEEDED if not _is_installed(distribution, module)]


def _is_installed(distribution: str, module: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return util.find_spec(module) is not None
    return True


def constraints() -> str:
    """Everything that is installed, pinned to the version it has."""
    installed = {found.metadata["Name"]: found.version for found in metadata.distributions()}
    pins = (f"{name}=={version}" for name, version in installed.items() if name and version)
    return "\n".join(sorted(pins)) + "\n"


def install(wanted: list[str], constraint_file: Path) -> subprocess.CompletedProcess[str]:
    """Run pip, which reads its own PIP_* variables; INDEX_URL is the WebUI's. A second attempt is not worth a start."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--prefer-binary", "--no-input", "--retries", "1"]
    command += ["--disable-pip-version-check", "--constraint", str(constraint_file)]
    if os.environ.get("INDEX_URL"):
        command += ["--index-url", os.environ["INDEX_URL"]]
    return subprocess.run([*command, *wanted], capture_output=True, encoding="utf-8", errors="replace", check=False)


def say(text: str) -> None:
    """The WebUI prints what its installers write."""
    sys.stdout.write(f"{text}\n")


def main() -> None:
    """Install what is absent; a failure is two lines, and the WebUI starts without us being able to train."""
    wanted = absent()
    if not wanted or SKIP_FLAGS & set(shlex.split(os.environ.get("COMMANDLINE_ARGS", ""))):
        return
    with tempfile.TemporaryDirectory() as folder:
        constraint_file = Path(folder) / "installed.txt"
        constraint_file.write_text(constraints(), encoding="utf-8")
        done = install(wanted, constraint_file)
    if done.returncode == 0:
        say(f"Train Studio installed {', '.join(wanted)}")
        return
    reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
    say(f"Train Studio could not install {', '.join(wanted)}: {reason}")
    say(f"Until they are there nothing can be trained: {shlex.join([*('pip', 'install', '--no-deps'), *wanted])}")


if __name__ == "__main__":
    main()
