"""The command line.

Exit codes: 0 done; 1 an error that should not happen; 2 wrong arguments or settings; 3 pictures; 4 model files;
5 training; 6 output folder or disk; 7 the file made again is another; 10 stopped early, the result so far is saved.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..config.methods import METHOD_CONFIGS
from ..config.presets import AUTO, FAMILY_NAMES
from ..config.reference import commented_job, presets_table, reference_table
from ..errors import (
    ConfigError,
    DatasetError,
    DiskFullError,
    ExtensionError,
    JobStopped,
    MergeError,
    ModelError,
    OutputError,
    TrainingError,
)
from .console import ConsoleDisplay
from .interrupt import interruptible
from .tools import add_tool_commands

if TYPE_CHECKING:
    from ..jobs.run import Outcome

EXIT_STOPPED = 10
EXIT_DISK = 6
EXIT_CODES: tuple[tuple[type[ExtensionError], int], ...] = (
    (ConfigError, 2),
    (DatasetError, 3),
    (ModelError, 4),
    (MergeError, 4),
    (JobStopped, EXIT_STOPPED),
    (DiskFullError, EXIT_DISK),
    (TrainingError, 5),
    (OutputError, EXIT_DISK),
    (ExtensionError, 1),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # Names of files and tensors may hold what a terminal's encoding does not.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except ExtensionError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(error.hint, file=sys.stderr)
        return next(code for kind, code in EXIT_CODES if isinstance(error, kind))
    except BrokenPipeError:
        # Who read the output, such as `head`, has ended. Python would complain once more at its own end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'A file'}: {error.strerror or error}.", file=sys.stderr)
        print("Check the paths and the disk.", file=sys.stderr)
        return EXIT_DISK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m extensions_lib",
        description="Train Studio: teach a Stable Diffusion checkpoint a subject or a style.",
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=run)
        return added

    train = command("train", _train, "Train from a job file (.toml or .json).")
    train.add_argument("job", type=Path)
    resume = command("resume", _resume, "Go on with a run that was stopped, or that crashed; a tool begins again.")
    resume.add_argument("run", type=Path, help="the run's folder")
    resume.add_argument("--max-train-steps", type=int, help="extend the run to this many steps")
    preview = command("preview", _preview, "Draw pictures with a run's newest state.")
    preview.add_argument("run", type=Path, help="the run's folder")
    preview.add_argument("--prompt", action="append", default=[], help="[name] is the trigger word; may be repeated")
    preview.add_argument("--seed", type=int, default=1)
    preview.add_argument("--output", type=Path, default=Path("preview.png"), help="the grid to write")
    ask = command("ask", _ask, "Ask a run in another process to save, preview, pause, resume, stop or discard.")
    ask.add_argument("run", type=Path, help="the run's folder")
    ask.add_argument("request", choices=("save", "preview", "pause", "resume", "stop", "discard"))
    inspect = command("inspect", _inspect, "Say what a file is, what made it, and what is wrong with it.")
    inspect.add_argument("file", type=Path, help="a model file, or a diffusers folder")
    inspect.add_argument("--check", action="store_true", help="read all numbers: NaN, infinity, damaged positions")
    like = command("like", _like, "Write a job file with the settings that a result or another trainer's config has.")
    like.add_argument("file", type=Path, help="LoRA, embedding, job file, sd-scripts .toml or OneTrainer .json")
    like.add_argument("--num-pictures", type=int, help="how many you have, for settings that are counted in epochs")
    like.add_argument("--output", type=Path, help="the job file to write; without it: the screen")
    add_tool_commands(command)
    init = command("init", _init, "Print a commented job file for a method.")
    init.add_argument("method", choices=tuple(METHOD_CONFIGS))
    init.add_argument("--family", choices=(AUTO, *FAMILY_NAMES), default=AUTO, help="of the base model")
    command("settings", _settings, "Print the reference table of all settings.")
    command("presets", _presets, "Print all start values by purpose and model family, each with its reason.")
    demo = command("demo", _demo, "Train the practice model on its practice subject and draw the result.")
    demo.add_argument("--folder", type=Path, default=Path("demo"))
    page = command("ui", _ui, "Serve the page without a WebUI, filled in for the practice model.")
    page.add_argument("--port", type=int, default=7861)
    page.add_argument("--listen", action="store_true", help="let other machines use it; they see the folder only")
    page.add_argument("--folder", type=Path, default=Path("studio"), help="where results, runs and checkpoints are")
    page.add_argument("--user", type=_user, action="append", default=[], metavar="NAME:PASSWORD", help="a login")
    export = command("export-practice-model", _export, "Copy the practice model into a WebUI's checkpoint folder.")
    export.add_argument("folder", type=Path)
    return parser


def _train(options: argparse.Namespace) -> int:
    from ..jobs.families import read_job
    from ..jobs.run import start

    config = read_job(options.job)

    with interruptible() as control, closing(ConsoleDisplay(sys.stdout)) as display:
        return _exit_code(start(config, control, (display,)))


def _resume(options: argparse.Namespace) -> int:
    from ..jobs.run import resume
    from ..jobs.store import RunFolder

    with interruptible() as control, closing(ConsoleDisplay(sys.stdout)) as display:
        outcome = resume(RunFolder(options.run), control, (display,), max_train_steps=options.max_train_steps)
    return _exit_code(outcome)


def _preview(options: argparse.Namespace) -> int:
    from ..jobs.draw import draw_previews
    from ..jobs.store import RunFolder

    with closing(ConsoleDisplay(sys.stdout)) as display:
        step = draw_previews(RunFolder(options.run), options.prompt, options.seed, options.output, (display,))
    print(f"{options.output}: the model after {step} steps")
    return 0


def _ask(options: argparse.Namespace) -> int:
    from ..jobs.store import RunFolder

    RunFolder(options.run).request(options.request)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from ..formats.inspect import describe_file

    print(json.dumps(describe_file(options.file, with_numbers=options.check), indent=2, ensure_ascii=False))
    return 0


def _like(options: argparse.Namespace) -> int:
    from ..config.job_file import job_toml
    from ..jobs.like import recipe_of_file

    recipe = recipe_of_file(options.file, num_pictures=options.num_pictures)
    content = job_toml(recipe.table, recipe.notes())
    if options.output is None:
        print(content, end="")
        return 0
    from ..formats.atomic import write_bytes_atomic

    write_bytes_atomic(options.output, content.encode("utf-8"), overwrite=False)
    print(*recipe.notes(), f"{options.output}: look at it before you train", sep="\n")
    return 0


def _init(options: argparse.Namespace) -> int:
    print(commented_job(options.method, options.family), end="")
    return 0


def _settings(options: argparse.Namespace) -> int:
    print(reference_table(), end="")
    return 0


def _presets(options: argparse.Namespace) -> int:
    print(presets_table(), end="")
    return 0


def _demo(options: argparse.Namespace) -> int:
    from .demo import show_demo

    with interruptible() as control:
        return show_demo(options.folder, control)


def _export(options: argparse.Namespace) -> int:
    from ..practice.export import export_practice_model

    for path in export_practice_model(options.folder):
        print(path)
    return 0


def _ui(options: argparse.Namespace) -> int:
    from ..host.standalone import serve

    page = serve(options.folder, port=options.port, listen=options.listen, users=options.user)
    asked = _asked_to_end()
    print(f"Train Studio is at {page.url}; Ctrl-C ends it.", flush=True)
    while not asked.wait(0.5):
        pass
    print("\nEnding; a job at work is stopped and saved first. Press Ctrl-C again to end at once.", file=sys.stderr)
    page.close()
    return 0


def _asked_to_end() -> threading.Event:
    """Set by Ctrl-C or when the process is asked to end; both act at once the second time."""
    asked = threading.Event()

    def end(number: int, frame: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    return asked


def _user(text: str) -> tuple[str, str]:
    name, colon, password = text.partition(":")
    if not (name and colon and password):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:PASSWORD")
    return name, password


def _exit_code(outcome: Outcome) -> int:
    return 0 if outcome.reason == "completed" else EXIT_STOPPED
