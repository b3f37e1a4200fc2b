"""What the page says after a button: one block, everything escaped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from ..config.foreign.recipe import Recipe
from ..config.job_file import shown
from ..config.presets import preset_reasons
from ..errors import ConfigError, ExtensionError
from .fields import label_of


def done_html(text: str) -> str:
    """A plain sentence."""
    return f'<div class="ts-message" role="status">{escape(text)}</div>'


def warned_html(text: str, warnings: Sequence[str]) -> str:
    """A plain sentence, and below it what should be known besides."""
    items = "".join(f"<li>{escape(each)}</li>" for each in warnings)
    warned = f"<ul>{items}</ul>" if items else ""
    return f'<div class="ts-message{" ts-warning" if items else ""}" role="status">{escape(text)}{warned}</div>'


def recipe_html(recipe: Recipe, filled: str) -> str:
    """What was taken from a file: `filled` says it in a sentence; then what does not map, and what does nearly."""
    parts = [f"<p>{escape(filled)}</p>"]
    for head, remarks in (("Not taken over", recipe.unmapped), ("Taken over about", recipe.approximated)):
        items = "".join(
            f"<li><code>{escape(each.name)}</code> = <code>{escape(shown(each.value))}</code>: {escape(each.text)}</li>"
            for each in remarks
        )
        parts += [f"<strong>{head}:</strong><ul>{items}</ul>"] if items else []
    return f'<div class="ts-message" role="status">{"".join(parts)}</div>'


def reasons_html(preset: str, family: str, kind: str) -> str:
    """The values of a preset for a model family, each with its reason."""
    rows = "".join(
        f"<li><b>{escape(label_of(path, kind) or path)}</b> {escape(shown(each.value))}: {escape(each.reason)}</li>"
        for path, each in preset_reasons(preset, family).items()
    )
    return f'<div class="ts-message"><ul>{rows}</ul></div>'


def error_html(error: ExtensionError, kind: str) -> str:
    """Every problem of an error, with the labels of the controls it names for this method, and what to do."""
    return problems_html(error, lambda path: label_of(path, kind))


def problems_html(error: ExtensionError, label: Callable[[str], str]) -> str:
    """Every problem of an error and what to do; `label` is what the page calls a setting, '' when it has no control."""
    if isinstance(error, ConfigError):
        items = "".join(f"<li>{_problem(each.path, each.text, label(each.path))}</li>" for each in error.problems)
        head = "One setting is wrong:" if len(error.problems) == 1 else f"{len(error.problems)} settings are wrong:"
        body = f"<strong>{head}</strong><ul>{items}</ul>"
    else:
        body = f"<strong>{escape(error.message)}</strong>"
    hint = f"<p>{escape(error.hint)}</p>" if error.hint else ""
    return f'<div class="ts-message ts-error" role="alert">{body}{hint}</div>'


def _problem(path: str, text: str, label: str) -> str:
    name = f"<b>{escape(label)}</b>" if label else f"<code>{escape(path)}</code>"
    return f"{name}: {escape(text)}"
