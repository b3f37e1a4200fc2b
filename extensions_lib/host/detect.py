"""Which WebUI we are in, told by the packages it has: version strings and function names lie on the forks."""

from __future__ import annotations

from importlib.util import find_spec

A1111 = "AUTOMATIC1111"
REFORGE = "reForge"
FORGE = "Forge"


def host_name() -> str:
    """'AUTOMATIC1111', 'reForge' or 'Forge'."""
    if find_spec("modules_forge") is None:
        return A1111
    return FORGE if find_spec("ldm_patched") is None else REFORGE
