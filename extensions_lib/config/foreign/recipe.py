"""From another program's settings to a partial job, with a list of what it does not say and what it says only about.

Each program has a table of rules. A rule reads one or more of its settings and answers with `Said`. What the rules
put together is checked by the same strict reader as any job; a value that is not accepted is listed, never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import ConfigError
from ..codec import check_partial
from ..job_file import shown
from ..presets import default_preset

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Remark:
    """A setting of the file that was left out or only met about: its name and value there, and why."""

    name: str
    value: Any
    text: str


@dataclass(frozen=True)
class Recipe:
    """What a file says of a training, in our words.

    `source` names the kind of file. `table` is a partial job that `codec.check_partial` accepts; it names a method.
    `base_model` is what the file calls its checkpoint and `base_hash` the start of its sha256, '' when unknown.
    """

    source: str
    table: dict[str, Any]
    unmapped: tuple[Remark, ...] = ()
    approximated: tuple[Remark, ...] = ()
    base_model: str = ""
    base_hash: str = ""

    def notes(self) -> list[str]:
        """A line for each remark, for the top of a job file; empty when everything was taken over."""
        lines = [f"The settings of {self.source}."]
        if self.base_model:
            lines.append(f"Its base model is called {self.base_model}.")
        for head, remarks in (("Not taken over:", self.unmapped), ("Taken over about:", self.approximated)):
            told = [f"  {each.name} = {shown(each.value)}: {each.text}" for each in remarks]
            lines += [head, *told] if told else []
        return lines

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        remarks = {
            key: [{"name": each.name, "value": each.value, "text": each.text} for each in found]
            for key, found in (("unmapped", self.unmapped), ("approximated", self.approximated))
        }
        named = {"base_model": self.base_model, "base_hash": self.base_hash}
        return {"source": self.source, "job": self.table, **named, **remarks}


@dataclass(frozen=True)
class Said:
    """A rule's answer: settings by path ('training.seed'), a note when they are only about right, or a reason why not.

    All empty: the setting needs no word, because it is off or only about speed.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Rule:
    """What `names` together mean. `say` gets their values in that order, None for a missing one, then all facts.

    It is asked when at least one of them is among the facts. It may raise ValueError for what it cannot read.
    """

    names: tuple[str, ...]
    say: Callable[..., Said]


NOTHING = Said()


def set_to(path: str, read: Callable[[Any], Any]) -> Callable[..., Said]:
    """For a setting that is the same as ours once `read`; not given or None: nothing is said."""
    return lambda value, facts: NOTHING if value is None else Said({path: read(value)})


def one_of(path: str, words: Mapping[str, Any], reason: str) -> Callable[..., Said]:
    """For a choice: `words` are theirs with ours; another one is left out for `reason`."""

    def say(value: Any, facts: Facts) -> Said:
        if value is None:
            return NOTHING
        word = str(value).strip().lower()
        return Said({path: words[word]}) if word in words else Said(reason=reason)

    return say


def missing(reason: str, off: Sequence[Any] = (None, False, 0, "")) -> Callable[..., Said]:
    """For a setting we have nothing like: listed for `reason` unless it is one of `off`."""
    return lambda value, facts: NOTHING if value in off else Said(reason=reason)


def rule(name: str, say: Callable[..., Said]) -> Rule:
    """A rule of one setting."""
    return Rule((name,), say)


def silent(*names: str) -> tuple[Rule, ...]:
    """For settings that change speed, logging or file names only, or that a rule on others speaks for."""
    return tuple(Rule((name,), lambda value, facts: NOTHING) for name in names)


def translate(source: str, facts: Facts, rules: Sequence[Rule], kind: str) -> Recipe:
    """The recipe that `rules` make of `facts` for a job of method `kind`; facts without a rule are listed too."""
    said: dict[str, tuple[Remark, Any]] = {}
    unmapped: list[Remark] = []
    noted: list[tuple[Remark, Facts]] = []
    known: set[str] = set()
    for each in rules:
        known.update(each.names)
        given = {name: facts[name] for name in each.names if name in facts}
        if not given:
            continue
        name, value = _told(given)
        try:
            answer = each.say(*(given.get(one) for one in each.names), facts)
        except (ValueError, TypeError, ArithmeticError, LookupError) as error:
            answer = Said(reason=f"cannot be read: {error}")
        if answer.reason:
            unmapped.append(Remark(name, value, answer.reason))
        if answer.note:
            noted.append((Remark(name, value, answer.note), answer.settings))
        for path, ours in answer.settings.items():
            said[path] = (Remark(name, value, ""), ours)
    others = [name for name in facts if name not in known and facts[name] not in (None, False, "", [], {})]
    unmapped += [Remark(name, facts[name], "is not known to Train Studio") for name in others]
    table, kept, refused = _accepted(said, kind)
    approximated = tuple(remark for remark, settings in noted if not settings or kept & set(settings))
    return Recipe(source, table, (*unmapped, *refused), approximated)


def _told(given: Facts) -> tuple[str, Any]:
    """The name and value a remark shows: those of all settings that say something, or of the first."""
    telling = {name: value for name, value in given.items() if value is not None} or dict([next(iter(given.items()))])
    value = next(iter(telling.values())) if len(telling) == 1 else telling
    return ", ".join(telling), value


def _accepted(said: Mapping[str, tuple[Remark, Any]], kind: str) -> tuple[dict[str, Any], set[str], list[Remark]]:
    """The table of those settings that the strict reader accepts, their paths, and a remark for each of the others."""
    kept = dict(said)
    refused: list[Remark] = []
    while True:
        table = _table(kept, kind)
        try:
            check_partial(table)
            return table, set(kept), refused
        except ConfigError as error:
            found = {path: each.text for each in error.problems for path in _about(each.path, kept)}
            if not found:  # a mistake of the preset, not of the file
                raise
        for path, text in found.items():
            origin, _ = kept.pop(path)
            refused.append(Remark(origin.name, origin.value, _why(path, text, kind)))


def _why(path: str, text: str, kind: str) -> str:
    if text.startswith("is not a setting"):
        return f"{path} is no setting of the method {kind}"
    return f"{path} {text}"


def _about(path: str, kept: Mapping[str, Any]) -> list[str]:
    """The settings that a problem is about: 'preview.prompts' for 'preview.prompts[0].seed'.

    A problem of a setting that was not taken over comes from those of its section that were.
    """
    plain = path.partition("[")[0]
    section = plain.rpartition(".")[0]
    return [plain] if plain in kept else [each for each in kept if section and each.rpartition(".")[0] == section]


def _table(kept: Mapping[str, tuple[Remark, Any]], kind: str) -> dict[str, Any]:
    table: dict[str, Any] = {"preset": default_preset(kind), "method": {"kind": kind}}
    for path, (_, value) in kept.items():
        section, _, name = path.rpartition(".")
        (table.setdefault(section, {}) if section else table)[name] = value
    return table
