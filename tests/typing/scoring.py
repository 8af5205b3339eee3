"""Scoring with a model: resources made in setup() or on first use, batches, one event type made of another."""

from functools import cached_property

from secondpass import App, Event, Task


class Clip(Event):
    cid: int
    time: float
    features: tuple[float, ...]


class Scored(Event):
    cid: int
    time: float
    score: float


class Model:
    """Stands for anything that is dear to load."""

    def __init__(self, path: str) -> None:
        self.weights = [float(len(path)), 1.0]

    def predict(self, rows: list[tuple[float, ...]]) -> list[float]:
        return [sum(w * x for w, x in zip(self.weights, row, strict=False)) for row in rows]


class Score(Task[Clip]):
    """Score clips in batches, which is what models like."""

    model_path: str

    def setup(self) -> None:
        self.model = Model(self.model_path)

    def handle_batch(self, events: list[Clip]) -> list[Scored]:
        scores = self.model.predict([event.features for event in events])
        return [event.to(Scored, score=score) for event, score in zip(events, scores, strict=True)]


class Recalibrate(Task[Scored]):
    """Shift a score by a jitter that is the same whenever the event is handled again."""

    spread: float = 0.1
    threshold: float = 0.5

    @cached_property
    def scale(self) -> float:
        return 1.0 / (1.0 + self.spread)

    def handle(self, event: Scored) -> Scored | None:
        score = event.score * self.scale + self.random.uniform(-self.spread, self.spread)
        self.count("handled")
        return event.replace(score=score) if score > self.threshold else None


app = App(
    "scoring",
    source=[Clip(cid=1, time=0.0, features=(0.1, 0.9)), Clip(cid=2, time=1.0, features=(0.0, 0.1))],
    tasks=[
        Score(model_path="model.bin").options(on_error="pass"),
        Recalibrate(spread=0.05),
    ],
    sink=print,
)
