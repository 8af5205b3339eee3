"""What the store says of an app's tasks: the chain as it is now, and what each remembers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secondpass.cli.settings import warn_of_type
from secondpass.cli.shapes import AsideTask, ChainTask, ExportedCell, ExportedState, TaskExport, TaskList
from secondpass.errors import ChangeRefused

if TYPE_CHECKING:
    from secondpass.store.database import Store


def listed(directory: Path) -> TaskList:
    """The chain as it is now, from the store."""
    from secondpass.cli.reading import chain_of, plain, reading
    from secondpass.store.lock import holder_of

    running = holder_of(directory) is not None
    with reading(directory) as store:
        chain, sizes = chain_of(store), store.sizes()
        file = {d["name"]: d for d in store.meta("file") or chain}
        aside: dict[str, Any] = store.meta("aside") or {}
        app: dict[str, Any] = store.meta("app") or {}
        paused = store.progress.paused
    tasks: list[ChainTask] = []
    for place, found in enumerate(chain, 1):
        name, there = found["name"], file.get(found["name"], {}).get("settings", {})
        settings: dict[str, Any] = found["settings"]
        tasks.append(
            ChainTask(
                place=place,
                name=name,
                stopped=bool(found.get("stopped")),
                settings=plain(settings),
                file_settings=plain(
                    {n: there[n] for n, v in settings.items() if n in there and there[n] != v}
                ),
                added=name not in file,
                size_bytes=sum(sizes.get((name, state), 0) for state in found["state"]),
            )
        )
    return TaskList(
        app=app.get("name"),
        store=str(directory),
        running=running,
        paused=paused,
        tasks=tasks,
        removed=[name for name in file if name not in {t.name for t in tasks}],
        aside=[
            AsideTask(
                name=name,
                state=list(left["state"]),
                size_bytes=sum(sizes.get((name, state), 0) for state in left["state"]),
            )
            for name, left in aside.items()
        ],
    )


def exported(directory: Path, name: str) -> TaskExport:
    """All that a task remembers, or has put aside."""
    from secondpass.cli.reading import chain_of, load_cells, plain, put_aside, reading, stated

    with reading(directory) as store:
        names = [d["name"] for d in chain_of(store)]
        left = [state for state in put_aside(store) if state.task == name]
        tables = left if name not in names else [state for state in stated(store) if state.task == name]
        if name not in names and not left:
            raise _no_such_task(store, name)
        cells = load_cells(store, tables)
        app: dict[str, Any] = store.meta("app") or {}
        position, now = store.progress.position, store.progress.now
    return TaskExport(
        app=app.get("name"),
        task=name,
        position=position,
        time=now if math.isfinite(now) else None,
        aside=name not in names,
        state=[
            ExportedState(
                name=t.name,
                kind="value" if t.is_value else "table",
                key=t.key,
                value=t.value,
                ttl_s=t.ttl_s,
                cells=[
                    ExportedCell(key=plain(c.key), value=plain(c.value), written=c.written)
                    for c in cells[t.task, t.name]
                ],
            )
            for t in tables
        ],
    )


def _no_such_task(store: Store, name: str) -> ChangeRefused:
    from secondpass.cli.reading import chain_of

    names = [d["name"] for d in chain_of(store)]
    aside: dict[str, Any] = store.meta("aside") or {}
    also = f"; put aside: {', '.join(aside)}" if aside else ""
    return ChangeRefused(f"the chain has no task {name}; it has: {', '.join(names) or 'none'}{also}")


def expect(
    directory: Path,
    name: str,
    settings: dict[str, Any] | None = None,
    *,
    aside: bool = False,
    state: str | None = None,
) -> dict[str, Any] | None:
    """The task as the store describes it. Where nothing runs that could refuse, what cannot be is refused here.

    A command that waits may bring the task in before: then the next run decides.
    """
    from secondpass.cli.reading import chain_of, reading
    from secondpass.store.lock import holder_of
    from secondpass.store.spool import Spool

    with reading(directory) as store:
        described = next((d for d in chain_of(store) if d["name"] == name), None)
        put_aside: dict[str, dict[str, Any]] = store.meta("aside") or {}
        left = put_aside.get(name, {}) if aside else {}
        unknown = _no_such_task(store, name)
    if holder_of(directory) is not None or any(c.task == name for _, c in Spool(directory).waiting()):
        return described
    if described is None and not left:
        raise ChangeRefused(f"refused: {unknown}")
    found = described or left
    if state is not None and state not in found["state"]:
        raise ChangeRefused(
            f"refused: {name} has no state {state}; it has: {', '.join(found['state']) or 'none'}"
        )
    for setting, value in (settings or {}).items():
        if setting not in found["settings"]:
            have = ", ".join(found["settings"]) or "none"
            raise ChangeRefused(f"refused: {name} has no setting {setting!r}; its settings: {have}")
        warn_of_type(name, setting, found["settings"][setting], value)
    return described
