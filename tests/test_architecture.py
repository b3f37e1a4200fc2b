"""The rooms of the house: who may import whom, and what may be loaded when. Compare docs/architecture.md."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "extensions_lib"

# A room may import those on the lines above its own. On one line the rooms do not know each other.
FLOORS = (
    ("errors",),
    ("events", "control", "registry", "config"),
    ("ports",),
    ("diffusion", "formats", "adapters"),
    ("data", "models"),
    ("merge", "methods", "preview"),
    ("training",),
    ("jobs",),
    ("ui", "api"),
    ("host",),
    ("cli",),
)
RANKS = {room: rank for rank, floor in enumerate(FLOORS) for room in floor}

# Not rooms of the house: the version, the door of `python -m extensions_lib`, and the practice model.
DOORS = ("__init__", "__main__")
PRACTICE = "practice"

# Third-party packages that only some rooms may know; True: inside functions only.
RESERVED = {
    "gradio": ({"ui"}, False),
    "modules": ({"host"}, False),
    "fastapi": ({"api"}, False),
    "pydantic": ({"api"}, False),
    "diffusers": ({"models", "preview"}, True),
    "transformers": ({"models", "preview"}, True),
}
WITHOUT_TORCH = (
    "errors", "events", "control", "ports", "config", "registry", "jobs", "host", "ui", "api", "cli",
)  # fmt: skip


@dataclass(frozen=True)
class Import:
    """One import: `importer` and `imported` are dotted module names, `at_import` is false inside a function."""

    importer: str
    imported: str
    line: int
    at_import: bool
    for_types_only: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def room_of(module: str) -> str:
    """'models' for 'extensions_lib.models.text', '__init__' for the package itself."""
    return [*module.split("."), "__init__"][1]


def module_name(path: Path) -> str:
    """The dotted name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    """Whether a dotted name of our package is a file or folder rather than something inside one."""
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports_of(path: Path) -> Iterator[Import]:
    """Every import of a file, relative ones resolved."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def visit(node: ast.AST, at_import: bool, for_types_only: bool) -> Iterator[Import]:
        for imported in imported_names(node, package):
            yield Import(name, imported, node.lineno, at_import, for_types_only)
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typing_block = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_import and not inside, for_types_only or typing_block)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), True, False)


def imported_names(node: ast.AST, package: str) -> list[str]:
    """The modules an import statement names; empty for any other node."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        base = importlib.util.resolve_name("." * node.level + base, package)
    if base.split(".")[0] != PACKAGE.name:
        return [base]
    names = [f"{base}.{alias.name}" for alias in node.names]
    return [name if is_module(name) else base for name in names]


SOURCES = sorted(PACKAGE.rglob("*.py"))
ALL_IMPORTS = [found for path in SOURCES for found in imports_of(path)]
OWN = [found for found in ALL_IMPORTS if found.imported.split(".")[0] == PACKAGE.name]
FOREIGN = [found for found in ALL_IMPORTS if found not in OWN]


def breaches(wrong: list[Import]) -> list[str]:
    return [str(found) for found in wrong]


def test_the_walk_sees_what_it_should() -> None:
    """The checks below would pass on an empty list."""
    found = {(each.importer, each.imported, each.at_import) for each in ALL_IMPORTS}
    assert ("extensions_lib.preview.schedulers", "extensions_lib.errors", True) in found
    assert ("extensions_lib.preview.schedulers", "diffusers", False) in found
    assert ("extensions_lib.preview.sampler", "extensions_lib.models.text", True) in found


def test_every_module_has_its_room() -> None:
    rooms = {room_of(module_name(path)) for path in SOURCES}
    assert rooms <= {*RANKS, *DOORS, PRACTICE}, sorted(rooms - {*RANKS, *DOORS, PRACTICE})


def test_imports_go_one_way() -> None:
    wrong = [
        found
        for found in OWN
        if room_of(found.importer) in RANKS
        and room_of(found.imported) in RANKS
        and room_of(found.imported) != room_of(found.importer)
        and RANKS[room_of(found.imported)] >= RANKS[room_of(found.importer)]
    ]
    assert breaches(wrong) == []


def test_only_the_command_line_and_the_standalone_page_know_the_practice_model() -> None:
    wrong = [
        found
        for found in OWN
        if room_of(found.imported) == PRACTICE and room_of(found.importer) not in (PRACTICE, "cli", "host")
    ]
    assert breaches(wrong) == []


def test_third_party_packages_stay_in_their_rooms() -> None:
    wrong = []
    for found in FOREIGN:
        rooms, inside_functions = RESERVED.get(found.imported.split(".")[0], (None, False))
        outside = rooms is not None and room_of(found.importer) not in rooms
        too_early = inside_functions and found.at_import and not found.for_types_only
        if outside or too_early:
            wrong.append(found)
    assert breaches(wrong) == []


def test_no_torch_at_the_top_of_the_light_rooms() -> None:
    wrong = [
        found
        for found in FOREIGN
        if found.imported.split(".")[0] == "torch"
        and room_of(found.importer) in WITHOUT_TORCH
        and found.at_import
        and not found.for_types_only
    ]
    assert breaches(wrong) == []


HEAVY = ("torch", "diffusers", "transformers")
LIGHT_MODULES = [name for path in SOURCES if room_of(name := module_name(path)) in WITHOUT_TORCH]
IMPORT_WITHOUT_HEAVY = """
import importlib, sys
for name in {heavy}:
    sys.modules[name] = None
for name in {light}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in {heavy}:
            print(name, "needs", error.name)
print("done")
"""


def test_light_modules_can_be_imported_without_torch() -> None:
    """In a fresh interpreter that refuses the heavy packages. The WebUI's own packages may be missing."""
    script = IMPORT_WITHOUT_HEAVY.format(heavy=HEAVY, light=LIGHT_MODULES)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines() == ["done"]
