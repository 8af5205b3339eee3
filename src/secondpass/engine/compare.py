"""At start: the chain in the file against the chain that the store knows (rule 11).

What only changed (settings, code, order, new tasks) is printed and recorded. What could lose state is
never guessed: state that is gone while other state is new needs `--rename Old=New` or `--drop Old`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from secondpass.description import describe
from secondpass.errors import ChainChanged, StoreDamaged
from secondpass.state import TableSpec
from secondpass.store.database import Store, Unreadable
from secondpass.store.format import CellCodec
from secondpass.task import Task

Name = tuple[str, str]


def codecs_of(tasks: tuple[Task[Any], ...]) -> dict[Name, CellCodec]:
    """How every table and value of a chain is stored, by (task, name)."""
    found: dict[Name, CellCodec] = {}
    for task in tasks:
        shape = type(task)._shape
        found.update({(task.name, n): CellCodec.of(s) for n, s in shape.tables.items()})
        found.update({(task.name, n): CellCodec.of_value() for n in shape.values})
    return found


class Comparison:
    """What differs, in words, and how state moves."""

    def __init__(
        self, store: Store, tasks: tuple[Task[Any], ...], rename: dict[str, str], drop: tuple[str, ...]
    ) -> None:
        self.new: list[dict[str, Any]] = [describe(t) for t in tasks]
        self.old: list[dict[str, Any]] | None = store.meta("chain")
        self._aside: dict[str, dict[str, Any]] = store.meta("aside") or {}
        self.changes: list[str] = []
        self.moves: dict[Name, Name | None] = {}
        self.renamed: dict[str, str] = {}
        """Whole tasks that go on under another name; one that stays while its state goes on elsewhere is not."""
        self.expired: dict[Name, list[Any]] = {}
        self._known = {name for name in store.tables() if name[0]}  # those of tasks
        self._wanted = set(codecs_of(tasks))
        self._by_hand(rename, drop)
        if self.old is not None:
            self._refuse_guesses()
            self._list_changes(self.old)

    def _by_hand(self, rename: dict[str, str], drop: tuple[str, ...]) -> None:
        without_state = self._gone_without_state()
        names = {d["name"] for d in self.new}
        self.renamed = {
            old: new
            for old, new in rename.items()
            if new in names and "." not in old and (old not in names or old in rename.values())
        }
        for old, new in rename.items():
            if old in without_state and new in names:
                continue  # its settings go on, and whether it is stopped
            sources = self._named(old, self._known, "--rename")
            for task, name in sources:
                target = (new, name) if "." not in new else _split(new)
                if target not in self._wanted:
                    raise ChainChanged(
                        f"--rename {old}={new}: the app has no state {'.'.join(target)}; it has "
                        f"{_listing(self._wanted)}"
                    )
                self.moves[task, name] = target
            self.changes.append(f"state of {old} goes on as {new}")
        self._refuse_two_on_one(drop)
        for old in drop:
            if old in without_state:
                continue
            for found in self._named(old, self._known, "--drop"):
                self.moves[found] = None
            self.changes.append(f"state of {old} is dropped")

    def _gone_without_state(self) -> set[str]:
        """Tasks that are not there any more and had nothing to remember: to drop them is to let them go."""
        gone = {d["name"] for d in self.old or []} - {d["name"] for d in self.new}
        return gone - {task for task, _ in self._known}

    def _refuse_two_on_one(self, drop: tuple[str, ...]) -> None:
        """Two states cannot go on as one, and state that goes on elsewhere is not dropped."""
        for old, new in self.moves.items():
            if new is None:
                continue
            others = [o for o, n in self.moves.items() if n == new and o != old]
            if new in self._known and new not in self.moves and not {new[0], ".".join(new)} & set(drop):
                others.append(new)
            if others:
                raise ChainChanged(
                    f"--rename {'.'.join(old)}={'.'.join(new)}: {'.'.join(others[0])} has state already; if it is not "
                    f"needed: --drop {'.'.join(others[0])}"
                )

    def _named(self, text: str, among: set[Name], option: str) -> list[Name]:
        found = [n for n in among if n[0] == text or ".".join(n) == text]
        if not found:
            raise ChainChanged(f"{option} {text}: the store has no such state; it has {_listing(among)}")
        return sorted(found)

    def _refuse_guesses(self) -> None:
        removed = {n for n in self._known if n not in self._wanted and n not in self.moves}
        targets = {t for t in self.moves.values() if t is not None}
        added = {n for n in self._wanted if n not in self._known and n not in targets}
        if not removed or not added:
            return
        # State that was put aside earlier, when nothing was added, is no longer a question.
        current = {(d["name"], n) for d in self.old or [] for n in d["state"]}
        removed &= current
        if removed:
            one, other = min(removed), min(added)
            level = 0 if one[0] != other[0] else 1
            shorter = (one[0], other[0]) if level == 0 else (".".join(one), ".".join(other))
            raise ChainChanged(
                f"the app no longer has the state {_listing(removed)} and has new state {_listing(added)}. If it is "
                f"the same under another name: --rename {shorter[0]}={shorter[1]}; if the old one is not needed: "
                f"--drop {shorter[0]}"
            )

    def _list_changes(self, before: list[dict[str, Any]]) -> None:
        new = {d["name"]: d for d in self.new}
        old = {self.renamed.get(str(d["name"]), str(d["name"])): d for d in before}
        self.changes += [
            f"task {found['name']} is called {name} now"
            for name, found in old.items()
            if found["name"] != name
        ]
        self.changes += [f"task {name} added" for name in new if name not in old]
        for name, gone in old.items():
            if name not in new:
                stays = any((name, state) not in self.moves for state in gone["state"])
                kept = " (its state is kept for its return)" if stays else ""
                self.changes.append(f"task {name} removed{kept}")
        for name, now in new.items():
            if name in old:
                self.changes += _task_changes(name, old[name], now)
        shared_old = [n for n in old if n in new]
        shared_new = [n for n in new if n in old]
        if shared_old != shared_new:
            self.changes.append(f"order of tasks changed: {' -> '.join(new)}")

    def expire(self, name: Name, cells: dict[Any, Any], now: float) -> None:
        """Take out what has expired under the old time to live, lest a longer one bring it back."""
        source = next((old for old, new in self.moves.items() if new == name), name)
        before, after = _ttl_of(self._known_before(), source), _ttl_of(self.new, name)
        if before is None or after is None or after <= before:
            return
        expired = [key for key, entry in cells.items() if now - entry[1] >= before]
        if expired:
            self.expired[name] = expired
            for key in expired:
                del cells[key]

    def _known_before(self) -> list[dict[str, Any]]:
        """What there was: the chain, and before it what tasks that left have put aside."""
        aside = [{"name": task, **left} for task, left in self._aside.items()]
        return [*aside, *(self.old or [])]

    def aside(self, tables: Iterable[Name]) -> dict[str, Any]:
        """What tasks that are not there have put aside, of the tables that the store still has."""
        found: dict[str, Any] = {}
        declared = {
            (d["name"], n): (s, d["ttl_s"].get(n))
            for d in self._known_before()
            for n, s in d["state"].items()
        }
        for task, name in tables:
            known = declared.get((task, name))
            if (task, name) in self._wanted or known is None:
                continue
            left = found.setdefault(task, {"state": {}, "ttl_s": {}})
            left["state"][name] = known[0]
            if known[1] is not None:
                left["ttl_s"][name] = known[1]
        return found

    def check_types(self, name: Name, spec: TableSpec | None, cells: dict[Any, Any]) -> None:
        """After a change of type: every stored object must be readable as the new one."""
        old = {d["name"]: d["state"] for d in self._known_before()}.get(name[0], {}).get(name[1])
        if spec is None or old is None or old == spec.describe() or spec.value.scalar:
            return
        for key, entry in cells.items():
            try:
                spec.value.decode(entry[0] if spec.ttl_s is not None else entry)
            except (msgspec.MsgspecError, TypeError, ValueError) as error:
                raise type_changed(name, f"the cell {key!r}: {error}") from None


def type_changed(name: Name, why: str) -> ChainChanged:
    """State that cannot be read as what the app now declares."""
    table = ".".join(name)
    return ChainChanged(
        f"the stored state of {table} does not fit its new declaration ({why}). Give the new table another name and "
        f"fill it anew, go back to the old declaration, or give the state up with --drop {table}"
    )


def load_cells(
    store: Store, comparison: Comparison, tasks: tuple[Task[Any], ...]
) -> dict[Name, dict[Any, Any]]:
    """All cells of the chain at rest, checked against what it declares now."""
    specs: dict[Name, TableSpec] = {(t.name, n): s for t in tasks for n, s in type(t)._shape.tables.items()}
    try:
        cells = store.load(codecs_of(tasks), comparison.moves)
    except Unreadable as error:
        if any(c.startswith(".".join(error.name)) for c in comparison.changes):
            raise type_changed(error.name, error.why) from error
        raise StoreDamaged(f"the cells of {'.'.join(error.name)} cannot be decoded: {error.why}") from error
    for name, found in cells.items():
        comparison.check_types(name, specs.get(name), found)
        comparison.expire(name, found, store.progress.now)
    return cells


def _task_changes(name: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    found: list[str] = []
    for setting in sorted({*old["settings"], *new["settings"]}):
        a, b = old["settings"].get(setting), new["settings"].get(setting)
        if a != b:
            found.append(f"{name}.{setting}: {_brief(a)} -> {_brief(b)}")
    for state in sorted({*old["state"], *new["state"]}):
        a, b = old["state"].get(state), new["state"].get(state)
        if a is not None and b is not None and a != b:
            found.append(f"{name}.{state}: was {_type(a)}, is now {_type(b)}")
    if old["on_error"] != new["on_error"]:
        found.append(f"{name}: on_error {old['on_error']} -> {new['on_error']}")
    if old["code"] != new["code"]:
        found.append(f"{name}: new code")
    return found


def _ttl_of(chain: list[dict[str, Any]], name: Name) -> float | None:
    """The time to live of a table in a described chain, in seconds."""
    found = [d["ttl_s"][name[1]] for d in chain if d["name"] == name[0] and name[1] in d.get("ttl_s", {})]
    return found[-1] if found else None


def _type(state: dict[str, Any]) -> str:
    inner = ", ".join(str(state[k]) for k in ("key", "value") if k in state)
    return f"{state['kind']}({inner}{', ttl' if state.get('ttl') else ''})"


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def _split(name: str) -> Name:
    task, _, state = name.rpartition(".")
    return task, state


def _listing(names: set[Name]) -> str:
    return ", ".join(".".join(n) for n in sorted(names)) or "none"


__all__ = ["Comparison", "codecs_of", "load_cells"]
