"""Fan-out: lists, generators and named outputs of several types."""

from collections.abc import Generator

from secondpass import App, Event, Task, output, value


class Frame(Event):
    cid: int
    time: float
    boxes: tuple[tuple[int, int], ...] = ()


class Box(Event):
    cid: int
    time: float
    x: int
    y: int


class Page(Event):
    cid: int
    why: str


class Split(Task[Frame]):
    """One event for every box of a frame."""

    empty = output(Frame)

    def handle(self, event: Frame) -> list[Box]:
        if not event.boxes:
            self.empty.emit(event)
        return [event.to(Box, x=x, y=y) for x, y in event.boxes]


class Watch(Task[Box]):
    """Pass boxes inside, page for those outside, and put everything else on `notes`."""

    width: int = 100
    largest = value(int, 0)
    pages = output(Page)
    notes = output(Page | Box)
    raw = output()

    def handle(self, event: Box) -> Generator[Box, None, None]:
        if event.x > self.largest:
            self.largest = event.x
            self.notes.emit(event)
        if event.x >= self.width:
            self.pages.emit(Page(cid=event.cid, why=f"x={event.x}"))
            self.notes.emit(Page(cid=event.cid, why="outside"))
            self.raw.emit(event)
            return
        yield event
        yield event.replace(x=self.width - event.x)


pages: list[Page] = []
app = App(
    "fan_out",
    source=[Frame(cid=1, time=0.0, boxes=((1, 2), (300, 4))), Frame(cid=2, time=1.0)],
    tasks=[Split(), Watch().options(name="watch")],
    sink=print,
    sinks={"pages": pages.append, "empty": print},
)
