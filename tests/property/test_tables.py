"""A table behaves like a dict, in every form that the engine gives it.

The same random operations go to a plain dict (the model), to the careful `state.Table`, and to each fast
form; in between time moves, epochs settle and are applied or forgotten, and the table is loaded anew.
"""

from __future__ import annotations

import collections
import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondpass import codec
from secondpass.engine.overlay import Cells, Delta, Layered, Mirror, Overlay, overlay_for
from secondpass.state import MISSING, Moment, Table, TableSpec

KEYS = st.integers(0, 4)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), KEYS, st.integers(0, 9)),
        st.tuples(st.just("change"), KEYS, st.integers(0, 9)),
        st.tuples(
            st.sampled_from(["delete", "get", "item", "in", "pop", "pop default", "default"]),
            KEYS,
            st.just(0),
        ),
        st.tuples(st.just("setdefault"), KEYS, st.integers(0, 9)),
        st.tuples(
            st.sampled_from(["iterate", "length", "items", "values", "equal", "repr"]), st.just(0), st.just(0)
        ),
        st.tuples(
            st.sampled_from(["popitem", "clear", "update", "or", "ror", "copy", "bool"]),
            KEYS,
            st.integers(0, 9),
        ),
        st.tuples(st.just("wait"), st.just(0), st.integers(0, 12)),
        st.tuples(st.sampled_from(["commit", "commit", "forget", "reload"]), st.just(0), st.just(0)),
    ),
    max_size=40,
)


class Model:
    """What a table means: a dict of (value, written)."""

    def __init__(self, make: Any, default: Any, ttl_s: float | None) -> None:
        self.make, self.default, self.ttl_s = make, default, ttl_s
        self.cells: dict[int, tuple[Any, float]] = {}
        self.kept: dict[int, tuple[Any, float]] = {}
        self.now = 0.0

    def live(self) -> dict[int, Any]:
        found = {
            k: v
            for k, (v, written) in self.cells.items()
            if self.ttl_s is None or self.now - written < self.ttl_s
        }
        return dict(sorted(found.items()))

    def put(self, key: int, new: Any) -> None:
        self.cells[key] = (copy.deepcopy(new), self.now)


class Careful:
    """`state.Table` over a delta over committed cells, every operation a call of its own."""

    def __init__(self, spec: TableSpec, ttl_s: float | None) -> None:
        self.base: dict[Any, Any] = {}
        self.delta = Delta({}, set())
        self.moment = Moment()
        self.table: Any = Table(spec, {}, self.moment, ttl_s)
        self._lay()

    def _lay(self) -> None:
        self.table._cells = Layered(self.base, self.delta)

    def at(self, now: float) -> None:
        self.moment.now = now

    def end_call(self) -> None:
        self.table.check()
        self.table.keep()

    def commit(self) -> None:
        self.base.update(self.delta.changed)
        for key in self.delta.gone:
            self.base.pop(key, None)
        self.forget()

    def forget(self) -> None:
        self.delta = Delta({}, set())
        self._lay()

    def reload(self) -> None:
        self.base = _stored(self.base)
        self._lay()


class Fast:
    """A fast form over committed cells, operations one after the other."""

    def __init__(self, make: Any, spec: TableSpec, ttl_s: float | None) -> None:
        self.make, self.spec, self.ttl_s = make, spec, ttl_s
        self.clock = Moment()
        self.clock.now = 0.0
        self.base: dict[Any, Any] = {}
        self.table: Any = make(spec, self.base, self.clock, ttl_s)

    def at(self, now: float) -> None:
        self.clock.now = now

    def end_call(self) -> None:
        pass

    def commit(self) -> None:
        delta = self.table.settle()
        assert not set(delta.changed) & delta.gone
        self.base.update(delta.changed)
        for key in delta.gone:
            del self.base[key]
        self.table.rollback()

    def forget(self) -> None:
        self.table.rollback()

    def reload(self) -> None:
        self.base = _stored(self.base)
        self.table = self.make(self.spec, self.base, self.clock, self.ttl_s)


def _stored(base: dict[Any, Any]) -> dict[Any, Any]:
    """What a store gives back, in another order; pairs are pairs again."""
    rows = sorted(base.items(), reverse=True)
    return {k: tuple(v) if isinstance(v, tuple) else v for k, v in rows}


def outcome(action: Any) -> Any:
    """What an operation gives: its value, encoded so that it is a value, or the kind of error."""
    try:
        found = action()
    except KeyError:
        return KeyError
    return copy.deepcopy(found)


def operate(table: Any, step: tuple[str, int, int], new: Any, change: Any, default: Any) -> Any:
    """One operation on something that behaves like a dict."""
    name, key, _ = step
    match name:
        case "set":
            table[key] = new
        case "change":
            if key in table:
                change(table, key)
        case "delete":
            del table[key]
        case "get":
            return table.get(key), table.get(key, "none")
        case "item" | "default":
            return table[key]
        case "in":
            return key in table
        case "pop":
            return table.pop(key)
        case "pop default":
            return table.pop(key, None)
        case "setdefault":
            return table.setdefault(key, new)
        case "iterate":
            return list(table), list(table.keys())
        case "length":
            return len(table)
        case "items":
            return list(table.items())
        case "values":
            return list(table.values())
        case "equal":
            return table == dict(table.items()), table != {99: default}, table == {}
        case "repr":
            return repr(table)
        case "popitem":
            return table.popitem()
        case "clear":
            table.clear()
        case "update":
            table.update({key: new, key + 1: new})
            table.update([(key, new)])
        case "or":
            return table | {key: new}
        case "ror":
            return {key: new} | table
        case "copy":
            return table.copy()
        case "bool":
            return bool(table)
    return None


def expect(model: Model, step: tuple[str, int, int], new: Any, change: Any) -> Any:
    """The same operation on the model."""
    name, key, _ = step
    live = model.live()
    if name in ("item", "default") and model.default is not MISSING and key not in live:
        model.put(key, copy.deepcopy(model.default))
        return copy.deepcopy(model.default)
    if name == "popitem" and live:
        first = next(iter(live))
        del model.cells[first]
        return first, live[first]
    before = dict(live)
    found = operate(live, step, copy.deepcopy(new), change, None)
    for gone in before.keys() - live.keys():
        del model.cells[gone]
    if name == "change" and key in before:
        model.cells[key] = (copy.deepcopy(live[key]), model.now if model.make is int else model.cells[key][1])
    elif name in ("set", "setdefault", "update"):
        for k, v in live.items():
            if k not in before or (name != "setdefault" and k in (key, key + 1 if name == "update" else key)):
                model.put(k, v)
    return found


def _scalar_change(table: Any, key: int) -> None:
    table[key] += 1


def _object_change(table: Any, key: int) -> None:
    table[key].append(7)


def _mirror(spec: TableSpec, base: Any, clock: Any, ttl_s: float | None) -> Cells:
    return Mirror(spec, base, clock, ttl_s)


def _overlay(spec: TableSpec, base: Any, clock: Any, ttl_s: float | None) -> Cells:
    return Overlay(spec, base, clock, ttl_s)


@pytest.mark.parametrize("ttl_s", [None, 10.0], ids=["kept", "fading"])
@pytest.mark.parametrize("kind", ["scalar", "object"])
@pytest.mark.parametrize("with_default", [False, True], ids=["dict", "defaultdict"])
@given(steps=OPERATIONS)
def test_every_form_of_a_table_behaves_like_a_dict(
    steps: list[tuple[str, int, int]], with_default: bool, kind: str, ttl_s: float | None
) -> None:
    scalar = kind == "scalar"
    spec = TableSpec(
        int,
        int if scalar else list[int],
        5 if with_default and scalar else MISSING,
        None if scalar or not with_default else (lambda: [5]),
        ttl_s,
    )
    spec.name, spec.owner = "cells", "Task"
    change = _scalar_change if scalar else _object_change
    model = Model(int if scalar else list, (5 if scalar else [5]) if with_default else MISSING, ttl_s)
    forms: list[Any] = [Careful(spec, ttl_s), Fast(overlay_for, spec, ttl_s)]
    if scalar and ttl_s is None:
        forms += [Fast(_mirror, spec, ttl_s), Fast(_overlay, spec, ttl_s)]
    for form in forms:
        form.at(0.0)
    for step in steps:
        name, _, n = step
        if name == "wait":
            model.now += n
            for form in forms:
                form.at(model.now)
            continue
        if name in ("commit", "forget", "reload"):
            if name == "forget":
                model.cells = copy.deepcopy(model.kept)
            else:
                model.kept = copy.deepcopy(model.cells)
            for form in forms:
                form.forget() if name == "forget" else form.commit()
                if name == "reload":
                    form.reload()
            continue
        want = outcome(lambda step=step, n=n: expect(model, step, n if scalar else [n], change))
        for form in forms:
            given_ = n if scalar else [n]
            got = outcome(lambda f=form, s=step, g=given_: operate(f.table, s, g, change, None))
            if not scalar:
                given_.append(99)  # what was given is no longer the table's
            form.end_call()
            assert codec.same(got, want) or got == want, (type(form.table).__name__, step, want, got)
            assert dict(form.table.items()) == model.live(), (type(form.table).__name__, step)
            form.end_call()


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["add", "most", "clear"]), st.integers(0, 3)),
        max_size=20,
    ),
    st.integers(1, 5),
)
def test_cells_of_other_kinds_survive_any_cut(steps: list[tuple[str, str, int]], size: int) -> None:
    specs = {
        "counter": TableSpec(str, collections.Counter[int], MISSING, collections.Counter, None),
        "deque": TableSpec(str, collections.deque[int], MISSING, lambda: collections.deque(maxlen=2), None),
    }
    for name, spec in specs.items():
        spec.name, spec.owner = name, "Task"
        model: Any = collections.defaultdict(spec.new_default)
        form = Fast(overlay_for, spec, None)
        for i, (key, what, n) in enumerate(steps):
            for table in (model, form.table):
                cell = table[key]
                if what == "clear":
                    cell.clear()
                elif name == "counter":
                    cell[n] += 1
                else:
                    cell.append(n)
            if i % size == 0:
                form.commit()
                form.reload()
        assert codec.same(dict(form.table.items()), dict(sorted(model.items())))
