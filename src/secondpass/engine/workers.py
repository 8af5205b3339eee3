"""Workers as processes of this machine, seen from the hub.

    hub  --control-->  nursery  --fork-->  worker 0, worker 1, ...
     `------------- a channel and a desk each ------------'

Invariants: nothing here waits for a process, but `wait` and, for a second at most, `close`. What a process had
answered before it died is delivered before its death is told. Only the nursery signals workers, and only the hub the
nursery, each as the parent: a number that the system has given to another process is never signalled.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import time
from typing import cast

import msgspec

from secondpass.aside import environment
from secondpass.engine.channel import Channel, Garbled, Message, shared_file, write_whole
from secondpass.engine.executor import Death, Done, Lost, Parcel
from secondpass.engine.nursery import ENDED, FAILED, READY, SIGNAL, START, Desk, command
from secondpass.engine.oom import kills_in_group
from secondpass.engine.process import (
    KILLED,
    LOOK_S,
    RESOLUTION_S,
    Given,
    Process,
    Stops,
    how_it_ended,
    in_the_past,
    is_stopped,
)
from secondpass.engine.recipe import Recipe
from secondpass.errors import SetupFailed

_ABORT_S = 0.5
"""How long a worker over its limit has to write its stack."""
_KILL_S = 3.0
"""How long a nursery has to report a worker that it was told to kill."""
_CLOSE_S = 0.4
_STARTS_MAX = 3
"""How often a nursery is started again that is killed, from outside, before it has loaded the tasks."""


class WorkersFailed(SetupFailed):
    """No workers can be had: the process that starts them cannot load the tasks, or has died."""


def _open_standard_streams() -> None:
    """Where a standard stream is closed, a descriptor of ours would get its number, and a task would print to it."""
    while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(fd, True)
    os.close(fd)


class _Nursery:
    """The process that starts workers."""

    def __init__(self, recipe: Recipe, now: float) -> None:
        self.ready = False
        self.began = self.looked = now
        self.stops = Stops()
        with contextlib.ExitStack() as given, contextlib.ExitStack() as kept:
            desk_fd = shared_file("secondpass-desk")
            given.callback(os.close, desk_fd)
            recipe_fd = shared_file("secondpass-recipe")
            given.callback(os.close, recipe_fd)
            self.desk = Desk.on(desk_fd)
            write_whole(recipe_fd, msgspec.msgpack.encode(recipe))
            ours, theirs = socket.socketpair()
            kept.enter_context(ours)
            given.enter_context(theirs)
            fds = (theirs.fileno(), recipe_fd, desk_fd)
            arguments = ", ".join(map(str, (*fds, os.getpid())))
            # Ctrl-C between its start and its first line would end it; the mask is inherited.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            given.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
            line = command(f"main({arguments})")
            self.process = subprocess.Popen(line, stdin=subprocess.DEVNULL, pass_fds=fds, env=environment())
            kept.pop_all()
        self.control = Channel(ours, blocking=False)

    def end(self, wait_s: float) -> int:
        """Close the channel, at which it ends all workers and itself, or kill it; gives its exit code."""
        self.control.close()
        try:
            return self.process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class LocalProcesses:
    """Runs bundles in processes of this machine; for one thread, with which they end (so does Linux tell a death).

    Raises `WorkersFailed` from `wait`, after all that could be delivered was, when there can be no workers.
    """

    def __init__(self, recipe: Recipe, size: int) -> None:
        _open_standard_streams()
        self.size = size
        self._recipe = recipe
        self._nursery: _Nursery | None = None
        self._killed_early = 0
        self._kills = kills_in_group()
        self._slots: dict[int, Process] = {}
        self._by_key: dict[int, Process] = {}
        self._keys = 0
        self._found: list[Done | Lost] = []
        self._failure: str | None = None
        self._closed = False
        self._resumed = 0.0
        """When this process went on after it had been stopped; workers are stopped with it (Ctrl-Z)."""
        self._selector = selectors.DefaultSelector()

    # ---------------------------------------------------------------- the contract

    def submit(self, worker: int, number: int, bundle: Parcel, limit_s: float | None = None) -> None:
        assert 0 <= worker < self.size
        assert not self._closed
        if self._failure is not None:
            return  # `wait` says why
        now = time.monotonic()
        process = self._slots.get(worker)
        if process is not None and process.worn and not process.given:
            self._retire(process)
            process = None
        if process is None:
            process = self._start(worker, now)
            if process is None:
                return
        if not process.given:
            process.heard = now
        process.given.append(Given(number, limit_s))
        process.channel.send(bundle.body, number << 1 | (limit_s is not None), beside=bundle.beside)
        self._watch(process.channel)

    def renew(self, worker: int) -> None:
        process = self._slots.get(worker)
        if process is None:
            return
        process.worn = True
        if not process.given:
            self._retire(process)

    def at(self, worker: int) -> tuple[int, int] | None:
        process = self._slots.get(worker)
        return None if process is None else (process.desk.cells[0], process.desk.cells[1])

    def wait(self, timeout_s: float | None) -> list[Done | Lost]:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            now = time.monotonic()
            pause_s = self._look(now)
            if self._found:
                found, self._found = self._found, []
                return found
            if self._failure is not None:
                raise WorkersFailed(self._failure)
            if deadline is not None:
                pause_s = deadline - now if pause_s is None else min(pause_s, deadline - now)
            elif pause_s is None and not self._selector.get_map():
                return []  # nobody is there who could ever answer
            ready = self._selector.select(pause_s)
            if pause_s is not None and time.monotonic() - now > max(0.0, pause_s) + LOOK_S:
                self._resumed = time.monotonic()
            for key, events in ready:
                if isinstance(key.data, _Nursery):
                    self._hear(key.data)
                elif key.data.key in self._by_key:  # its death may have been told a moment ago
                    self._serve(key.data, events)
            over = deadline is not None and time.monotonic() >= deadline
            if over and not self._found and self._failure is None:
                return []

    def close(self) -> None:
        self._closed = True
        nursery, self._nursery = self._nursery, None
        for process in list(self._by_key.values()):
            self._forget(process)
        if nursery is not None:
            self._selector.unregister(nursery.control)
            # It listens once it has loaded the tasks; until then it has started nobody.
            nursery.end(_CLOSE_S if nursery.ready else 0.0)
        self._selector.close()

    def pids(self) -> dict[int, int]:
        """The process ids of the workers that are known to run."""
        return {worker: p.pid for worker, p in self._slots.items() if p.pid is not None}

    # ---------------------------------------------------------------- starting and ending

    def _start(self, worker: int, now: float) -> Process | None:
        try:
            with contextlib.ExitStack() as undo:
                if self._nursery is None:
                    self._nursery = _Nursery(self._recipe, now)
                    self._selector.register(self._nursery.control, selectors.EVENT_READ, self._nursery)
                desk_fd = shared_file("secondpass-desk")
                undo.callback(os.close, desk_fd)
                desk = Desk.on(desk_fd)
                ours, theirs = socket.socketpair()
                undo.pop_all()
        except OSError as error:
            self._fail(f"the system gives no more processes or files ({error})", "")
            return None
        self._keys += 1
        process = Process(self._keys, worker, ours, desk, now)
        self._slots[worker] = self._by_key[process.key] = process
        self._selector.register(process.channel, selectors.EVENT_READ, process)
        self._tell(START, process.key, (theirs.detach(), desk_fd))
        return process

    def _tell(self, tag: int, content: object, fds: tuple[int, ...] = ()) -> None:
        assert self._nursery is not None
        self._nursery.control.send(msgspec.msgpack.encode(content), tag, fds)
        self._watch(self._nursery.control)

    def _signal(self, process: Process, number: int, now: float) -> None:
        if number == signal.SIGKILL and process.killed is None:
            process.killed = now
        self._tell(SIGNAL, (process.key, number))

    def _retire(self, process: Process) -> None:
        """End a worker that has nothing to do, and think no more of it."""
        self._tell(SIGNAL, (process.key, signal.SIGKILL))
        self._forget(process)

    def _forget(self, process: Process) -> None:
        if process.channel in self._selector.get_map():
            self._selector.unregister(process.channel)
        process.channel.close()
        del self._by_key[process.key]
        if self._slots.get(process.worker) is process:
            del self._slots[process.worker]

    def _lose(self, process: Process, how: str, own: bool) -> None:
        """Deliver what a dead worker had answered, then its death."""
        with contextlib.suppress(Garbled):
            self._take(process)
        self._forget(process)
        kills = kills_in_group()
        if kills > self._kills and how == KILLED and process.killed is None:
            how, own = "killed by the kernel for want of memory", True
        self._kills = kills
        self._found.append(Lost(process.worker, process.death(how, own)))

    # ---------------------------------------------------------------- what comes in

    def _watch(self, channel: Channel) -> None:
        """Ask the selector for what the channel waits for."""
        key = self._selector.get_map().get(channel)
        events = selectors.EVENT_READ | selectors.EVENT_WRITE * channel.wants_write
        if key is not None and key.events != events:
            self._selector.modify(channel, events, key.data)

    def _serve(self, process: Process, events: int) -> None:
        channel = process.channel
        if events & selectors.EVENT_WRITE:
            channel.flush()
        try:
            self._take(process)
        except Garbled as error:
            channel.ended = True
            process.verdict = process.verdict or self._accuse(process, str(error))
            self._signal(process, signal.SIGKILL, time.monotonic())
        if channel.ended:
            self._selector.unregister(channel)
            process.cut_off = time.monotonic()
        self._watch(channel)

    @staticmethod
    def _accuse(process: Process, how: str) -> Death:
        return Death(how, True, process.desk.cells[0], process.desk.cells[1], "")

    def _take(self, process: Process) -> None:
        for message in process.channel.receive():
            if not process.given:
                raise Garbled("wrote to its channel by itself")
            process.given.popleft()
            process.heard = time.monotonic()
            self._found.append(Done(process.worker, Parcel(message.body, message.beside)))

    def _hear(self, nursery: _Nursery) -> None:
        """Hear what the nursery reports; when it is gone, so are its workers."""
        nursery.control.flush()
        try:
            messages = nursery.control.receive()
        except Garbled as error:
            self._fail(f"the process that starts them wrote what cannot be read ({error})", "")
            nursery.control.ended, messages = True, list[Message]()
        for message in messages:
            self._told(nursery, message)
        self._watch(nursery.control)
        if nursery.control.ended:
            self._nursery_ended(nursery)

    def _told(self, nursery: _Nursery, message: Message) -> None:
        if message.tag == READY:
            nursery.ready, self._killed_early = True, 0
        elif message.tag == ENDED:
            key, code = cast("tuple[int, int | None]", msgspec.msgpack.decode(message.body))
            if (process := self._by_key.get(key)) is not None:
                self._lose(process, *how_it_ended(code))
        elif message.tag == FAILED:
            text, trace = cast("tuple[str, str]", msgspec.msgpack.decode(message.body))
            what = "the process that starts them met" if nursery.ready else "loading the tasks raised"
            self._fail(f"{what} {text}", trace)

    def _nursery_ended(self, nursery: _Nursery) -> None:
        """All workers end with their nursery; one that was killed from outside is started again when needed."""
        self._selector.unregister(nursery.control)
        self._nursery = None
        code = nursery.end(LOOK_S)
        how, own = how_it_ended(code)
        if not nursery.ready and not own:
            self._killed_early += 1
        if own or self._killed_early >= _STARTS_MAX:
            doing = "" if nursery.ready else ", loading the tasks"
            self._fail(f"the process that starts them {in_the_past(how)}{doing}", nursery.desk.stack())
        for process in list(self._by_key.values()):
            self._lose(
                process, f"ended with the process that starts workers, which {in_the_past(how)}", False
            )
        if self._failure is not None:
            self._found = [event for event in self._found if isinstance(event, Done)]

    def _fail(self, what: str, stack: str) -> None:
        if self._failure is None:
            tail = f"\n{stack.rstrip()}\n" if stack else "; "
            self._failure = f"there are no workers: {what}{tail}run with workers=0 to see it in this process"

    # ---------------------------------------------------------------- what does not come in

    def _look(self, now: float) -> float | None:
        """See to those who are silent or over their limit; gives in how many seconds to look again."""
        pause_s: float | None = None
        for process in list(self._by_key.values()):
            due_s = self._look_at(process, now)
            if due_s is not None:
                pause_s = due_s if pause_s is None else min(pause_s, due_s)
        nursery = self._nursery
        if nursery is not None and pause_s is not None and now - nursery.looked >= LOOK_S:
            nursery.looked = now
            self._look_at_nursery(nursery, now)
        return pause_s

    def _look_at(self, process: Process, now: float) -> float | None:
        if process.killed is not None:
            return LOOK_S
        if process.aborted is not None:
            left_s = process.aborted + _ABORT_S - now
            if left_s > 0:
                return left_s
            self._signal(process, signal.SIGKILL, now)
            return LOOK_S
        if process.cut_off is not None:
            left_s = process.cut_off + LOOK_S - now
            if left_s > 0:
                return left_s
            process.verdict = process.verdict or self._accuse(process, "closed its channel to the hub")
            self._signal(process, signal.SIGKILL, now)
            return LOOK_S
        if not process.given:
            return None
        pause_s, over = process.overdue(now, self._resumed)
        if over is not None and process.pid is not None and is_stopped(process.pid):
            process.excused, over, pause_s = (
                now,
                None,
                RESOLUTION_S,
            )  # somebody has stopped it: no event is slow
        if over is not None:
            process.verdict, process.aborted = over, now
            self._signal(process, signal.SIGABRT, now)  # at which faulthandler writes the stack
            return _ABORT_S
        if process.pid is not None and now - process.heard > LOOK_S and process.stops.look(process.pid, now):
            cells = process.desk.cells
            process.verdict = Death("was stopped and did not go on", False, cells[0], cells[1], "")
            self._signal(process, signal.SIGKILL, now)
        return min(pause_s, LOOK_S)

    def _look_at_nursery(self, nursery: _Nursery, now: float) -> None:
        """A nursery that is stopped, or that does not do what it was told, is killed, and all workers with it."""
        owed = [p for p in self._by_key.values() if p.pid is None or p.killed is not None]
        late = any(p.killed is not None and now - p.killed > _KILL_S for p in owed)
        silent = bool(owed) and now - nursery.began > LOOK_S
        if late or (silent and nursery.stops.look(nursery.process.pid, now)):
            nursery.process.kill()
        if nursery.process.poll() is not None:
            # It shows in the channel, unless a process that the tasks have started holds a copy of that.
            self._hear(nursery)
            if self._nursery is nursery:
                self._nursery_ended(nursery)
