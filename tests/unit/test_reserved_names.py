"""What every task has cannot be declared again: a setting called `count` would hide the method."""

from typing import Any

import pytest

from secondpass import Task, lookup, output, table, value
from secondpass.errors import DefinitionError
from secondpass.task import FunctionTask

NAMES = (
    "advance",
    "count",
    "handle",
    "log",
    "name",
    "now",
    "options",
    "position",
    "random",
    "setup",
    "with_lookups",
)


@pytest.mark.parametrize(
    "declared",
    [table(int, int), value(int, 0), output(), lookup(int, int)],
    ids=["table", "value", "output", "lookup"],
)
@pytest.mark.parametrize("name", NAMES)
def test_state_cannot_take_a_name_that_every_task_has(name: str, declared: Any) -> None:
    with pytest.raises(DefinitionError, match=rf"X\.{name}: every task has '{name}' already; choose another"):
        type("X", (Task,), {name: declared})


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_cannot_take_a_name_that_every_task_has(name: str) -> None:
    with pytest.raises(DefinitionError, match=rf"X\.{name}: every task has '{name}' already; choose another"):
        type("X", (Task,), {"__annotations__": {name: int}, name: 3})


def test_every_public_name_of_a_task_is_guarded() -> None:
    assert {name for name in vars(Task) if not name.startswith("_")} == set(NAMES)
    assert not hasattr(Task, "keys")  # a task without `keys` is one that declares none
    assert FunctionTask(function=print).name == "FunctionTask"
