"""Large arrays through real workers: the answer is the plain loop's, and no message stays mapped behind."""

import gc
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from array_tasks import Double, Frame, KilledOnce, Look, Seen, Sums, Untyped, message_maps

from secondpass import App, Task, testing
from secondpass.codec import BESIDE_FROM, same

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at maps in /proc")

LARGE = BESIDE_FROM // 8 + 4 * 12


def frames(count: int, size: int = LARGE) -> list[Frame]:
    return [Frame(n=n, time=float(n), pixels=np.arange(n, n + size, dtype="f8")) for n in range(count)]


def run(source: Iterable[Any], tasks: Iterable[Task[Any]], **sinks: Any) -> list[Any]:
    """What an app puts out whose tasks all run on workers."""
    found: list[Any] = []
    placed = [task.options(place="workers") for task in tasks]
    App("arrays", source=source, tasks=placed, sink=found.append, **sinks).run(store=None, workers=2)
    return found


def test_arrays_through_tasks_in_a_row_are_those_of_the_plain_loop() -> None:
    shown: list[Any] = []
    tasks = [Double(), Sums(), Double().options(name="Again")]
    found = run(frames(20), tasks, sinks={"shown": shown.append})
    expected = testing.run(tasks, frames(20))
    assert same(found, expected.outputs)
    assert same(shown, expected.output("shown"))


def test_an_array_is_decoded_where_it_lies_and_taken_as_it_is() -> None:
    for seen in run(frames(12), [Look()]):
        assert (seen.base, seen.owned_as_it_is) == ("SealedMap", True)
    for seen in run(frames(12), [Double(), Look()]):
        assert (seen.base, seen.owned_as_it_is) == ("SealedMap", True)
    for seen in run(frames(12, 100), [Look()]):
        assert (seen.base, seen.owned_as_it_is) == ("bytes", False)


def test_no_message_stays_mapped_longer_than_its_events() -> None:
    seen: list[Seen] = run(frames(60), [Double(), Look()])
    assert max(s.maps for s in seen) <= 3
    kept: list[Frame] = run(frames(3), [Double()])
    assert message_maps() > 0
    copy = kept[0].pixels.copy()
    first = kept[0].pixels
    kept.clear()
    gc.collect()
    assert message_maps() == 1
    assert np.array_equal(first, copy)
    del first
    gc.collect()
    assert message_maps() == 0


def test_a_bundle_whose_worker_was_killed_is_sent_again(tmp_path: Path) -> None:
    flag = tmp_path / "killed"
    found = run(frames(16), [KilledOnce(flag=str(flag))])
    assert flag.exists()
    assert same(found, [frame.replace(pixels=frame.pixels + 1) for frame in frames(16)])


def test_untyped_events_with_arrays_are_those_of_the_plain_loop() -> None:
    source = [{"n": n, "time": float(n), "pixels": np.arange(LARGE) * n} for n in range(6)]
    found = run(source, [Untyped(), Untyped().options(name="Again")])
    assert same(found, testing.run([Untyped(), Untyped().options(name="Again")], source).outputs)
