"""At the next start: what commands made of the chain, and what `--rename` and `--drop` make of that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from live_app import Count, Marked, seen
from test_commands import stored

from secondpass import App, Task
from secondpass.control import Control
from secondpass.errors import ChainChanged

TASKS = (Count(), Marked())


class Ran:
    """An app that runs again and again, over ten more events each time."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.events = 0
        self.control = Control(store)

    def __call__(self, *tasks: Task[Any], **options: Any) -> list[str]:
        self.events += 10
        app = App("live", source=seen(self.events), tasks=tasks)
        return app.run(store=self.store, workers=0, **options).changes

    @property
    def last(self) -> str:
        return stored(self.store)[-1].by


@pytest.fixture
def run(tmp_path: Path) -> Ran:
    return Ran(tmp_path / "store")


def test_a_task_that_a_command_brought_can_be_let_go_whether_it_has_state_or_not(run: Ran) -> None:
    run(*TASKS)
    run.control.add(Marked(mark="new").options(name="New"))
    run.control.add(Count().options(name="More"))
    run(*TASKS)
    assert run.last == "Count20 mnewMore10 "
    told = run(*TASKS, drop=("New",))
    assert "task New removed" in told
    assert run.last == "Count30 mMore20 "
    told = run(*TASKS, drop=("More",))
    assert "state of More is dropped" in told
    assert run.last == "Count40 m"
    with pytest.raises(ChainChanged, match="--drop Nobody: the store has no such state"):
        run(*TASKS, drop=("Nobody",))


def test_what_was_set_and_stopped_stays_with_a_task_that_is_renamed_in_the_file(run: Ran) -> None:
    run(*TASKS)
    run.control.set("Count", step=5)
    run.control.stop("Marked")
    run(*TASKS)
    renamed = (Count().options(name="Counted"), Marked().options(name="Mark"))
    told = run(*renamed, rename={"Count": "Counted", "Marked": "Mark"})
    assert "Counted.step stays 5, as set while it ran" in told
    assert "task Mark stays stopped" in told
    assert run.last == "Counted110 "


def test_a_task_that_a_command_brought_and_that_the_file_has_under_another_name_comes_once(run: Ran) -> None:
    run(*TASKS)
    run.control.add(Count().options(name="More"))
    run(*TASKS)
    run(*TASKS, Count().options(name="Most"), rename={"More": "Most"})
    assert run.last == "Count30 mMost20 "


def test_a_chain_whose_only_task_was_removed_stays_empty(run: Ran) -> None:
    run(Count())
    run.control.remove("Count")
    assert "position 10: remove Count" in run(Count())
    for _ in range(2):
        assert "task Count stays removed; `secondpass task add` brings it back" in run(Count())
