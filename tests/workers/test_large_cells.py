"""Large cells on their way to workers and back: as small ones, and as in the plain loop."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from large_cells import Keyed, Tick, Whole

from secondpass import App, reference
from secondpass.change import plain_state
from secondpass.codec import BESIDE_FROM, same
from secondpass.engine.bundle import entries_of, lay_beside, parcel, values_beside, values_of
from secondpass.store.format import CellCodec


@pytest.mark.parametrize("size", [10, BESIDE_FROM // 8, BESIDE_FROM])
@pytest.mark.parametrize("kind", [Keyed, Whole])
def test_cells_of_any_size_change_on_workers_as_in_the_plain_loop(kind: Any, size: int) -> None:
    task = kind(size=size)
    events = [Tick(n=n, time=float(n)) for n in range(40)]
    want = reference.run([task], events)
    found: list[Tick] = []
    hubs: list[Any] = []
    app = App("large", source=events, tasks=[task.options(place="workers")], sink=found.append)
    app.run(store=None, workers=2, on_start=hubs.append)
    (stage,) = hubs[0].chain.stages
    assert found == want.outputs
    state = plain_state(task, stage.tables, stage.values, hubs[0].store.progress.now)
    assert same(state, want.state[task.name])
    rests = [e[0] if type(e) is tuple else e for cells in stage.tables.values() for e in cells.values()]
    assert {type(rest) for rest in [*rests, *stage.values.values()]} == {bytes}


def test_what_is_large_lies_beside_and_is_not_copied() -> None:
    codec = CellCodec.of(Whole._shape.tables["rows"])
    with_ttl = CellCodec.of(Keyed._shape.tables["kept"])
    large, small = b"x" * BESIDE_FROM, b"y"
    content = (
        lay_beside([small, large], codec),
        lay_beside([(large, 1.5), (small, 2.0)], with_ttl),
        values_beside({"a": large, "b": small}),
    )
    sent = parcel(content)
    assert [part.obj is large for part in sent.beside] == [True] * 3
    assert len(sent.body) < 200
    import msgspec

    cells, timed, values = msgspec.msgpack.decode(
        sent.body, type=tuple[msgspec.Raw, msgspec.Raw, dict[str, Any]]
    )
    assert entries_of(cells, codec, sent.beside) == [small, large]
    assert entries_of(timed, with_ttl, sent.beside) == [(large, 1.5), (small, 2.0)]
    assert values_of(values, sent.beside) == {"a": large, "b": small}
