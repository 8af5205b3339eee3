"""An app whose source is put in order: `check`, `explain` and `rehearse` see every event of it, and the late ones."""

from __future__ import annotations

import pytest

APP = """
from secondpass import timer
from secondpass.connectors import Ordered


class Count(Task[Seen]):
    total = value(int, 0)

    def handle(self, event: Seen) -> Seen:
        self.total += 1
        return event.replace(cid=self.total)


class Due(Task[Seen]):
    def handle(self, event: Seen) -> Seen:
        self.gone.at(event.time + 5.0, event.cid)
        return event

    @timer
    def gone(self, cid: int) -> None:
        return None


app = App("sorted", source=Ordered(JsonLines(HERE / "in.jsonl", Seen, FOLLOW), lateness_s=2.0), tasks=[TASKS],
          sink=JsonLines(HERE / "out.jsonl"), sinks={SINKS})
"""
TIMES = (100.0, 110.0, 109.0, 101.0, 120.0, 121.0, 119.5)
IN_ORDER = [100.0, 109.0, 110.0, 119.5, 120.0, 121.0]


@pytest.fixture(
    params=["", '"late": JsonLines(HERE / "late.jsonl")'], ids=["no sink for late ones", "a sink"]
)
def ordered(request, project):
    """The app, which has run; the fourth event is late."""

    def make(tasks: str = "Count()", follow: str = "follow=False"):
        project.write(
            "sorted.py", APP.replace("SINKS", request.param).replace("TASKS", tasks).replace("FOLLOW", follow)
        )
        project.events([{"cid": i, "time": time} for i, time in enumerate(TIMES)])
        return project

    return make


@pytest.mark.parametrize("tasks", ["Count()", "Count(), Due()"])
def test_it_is_explained_and_rehearsed_at_every_position(ordered, command, tasks: str) -> None:
    made = ordered(tasks)
    assert command("run", "sorted.py", "-q").code == 0
    assert [event["time"] for event in made.output()] == IN_ORDER
    for position in range(len(TIMES)):
        done = command("explain", "sorted.py", str(position))
        assert done.code == 0, done.err
    done = command("rehearse", "sorted.py")
    assert (done.code, done.err) == (0, "")
    assert "no difference" in done.out


@pytest.mark.parametrize("follow", ["follow=False", "follow=True"])
def test_check_takes_all_of_its_events(ordered, command, follow: str) -> None:
    ordered(follow=follow)
    done = command("check", "sorted.py")
    assert done.code == 0, done.err
    # What is followed has no end at which the last ones would be let go.
    assert f"{7 if follow == 'follow=False' else 4} events" in done.out
