"""How an event's type is named where its class is not: in the store, and on the way between processes."""

from __future__ import annotations

from secondpass.errors import OutputError
from secondpass.event import Event


def type_name(tp: type) -> str | None:
    """The name of an event's type; None for an untyped one."""
    return None if issubclass(tp, dict) else f"{tp.__module__}.{tp.__qualname__}"


def find_type(name: str) -> type[Event]:
    """The event class of that name among those that the app's code has defined."""
    same: list[type[Event]] = []
    stack: list[type[Event]] = [Event]
    while stack:
        cls = stack.pop()
        stack += cls.__subclasses__()
        if type_name(cls) == name:
            return cls
        if name.endswith("." + cls.__qualname__):
            same.append(cls)
    if len(same) == 1:
        return same[0]
    if "<locals>" in name:
        raise OutputError(
            f"there are events of the type {name}, whose class is made while a task runs, and is known only there; "
            f"define it at the top of its module, then run again"
        )
    raise OutputError(
        f"the store holds undelivered events of the type {name}, which the app no longer defines; bring the class "
        f"back, let the app run once, then remove it"
    )
