"""The packages a training needs, looked for without importing any of them."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from ..errors import HostError

# Import name to the name in the package index.
PACKAGES = {
    "torch": "torch",
    "transformers": "transformers",
    "safetensors": "safetensors",
    "numpy": "numpy",
    "PIL": "Pillow",
    "open_clip": "open_clip_torch",
    "diffusers": "diffusers==0.31.0",
    "yaml": "PyYAML",
    **({"tomli": "tomli"} if sys.version_info < (3, 11) else {}),
}


def missing_packages() -> tuple[str, ...]:
    """What `pip install --no-deps` would have to be called with; empty when all is there."""
    return tuple(package for name, package in PACKAGES.items() if not _is_there(name))


def missing_error() -> HostError | None:
    """What to say to whoever wants to train; None when nothing is missing."""
    missing = missing_packages()
    if not missing:
        return None
    return HostError(
        f"Training needs packages that are not installed: {', '.join(missing)}.",
        "Start the WebUI once without --skip-install and with a network, or run in its Python environment: "
        f"pip install --no-deps {' '.join(missing)}",
    )


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ValueError:  # a module without a spec: somebody put a stand-in into sys.modules
        return sys.modules.get(name) is not None
