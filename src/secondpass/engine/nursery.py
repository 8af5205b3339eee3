"""A small process that loads the tasks once and then forks a worker whenever the hub asks for one.

The hub starts it as `from secondpass.engine.nursery import main; main(...)`. What they say to each other, by tag:

    START    hub      key; the worker's socket and its desk as descriptors
    SIGNAL   hub      key, number of the signal
    READY    nursery  the tasks are loaded
    ENDED    nursery  key, exit code (negative: a signal; None: somebody else took it)
    FAILED   nursery  what happened, its traceback; nothing comes after it

Invariants: it forks with one thread only, since a fork copies locks that other threads hold; otherwise a worker is
started anew and loads the tasks for itself. Only the nursery waits for its workers, so a process id that it signals
is theirs. Nobody outlives the hub: the nursery is killed with it, the workers with the nursery. Nothing that a task
prints reaches the hub's standard output, which may be data.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import mmap
import os
import select
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Protocol, cast

import msgspec

from secondpass.engine.channel import Channel
from secondpass.engine.executor import BETWEEN, SETTING_UP, Parcel
from secondpass.engine.recipe import Recipe, load_tasks
from secondpass.record import error_text, trace_text
from secondpass.task import Task
from secondpass.unheard import unheard

START, SIGNAL, READY, ENDED, FAILED = range(5)

_PR_SET_PDEATHSIG = 1
_pack = msgspec.msgpack.encode


class Answers(Protocol):
    """What a worker process runs: `engine.worker.Worker`."""

    def answer(self, given: Parcel, /) -> Parcel: ...


class Desk:
    """Memory that a process shares with the hub, which looks at it when the process has died.

        0     8  the number of the bundle, -1 before the first
        8     8  the index of the event; or BETWEEN, or SETTING_UP
        16    8  when that event began, in ns of the monotonic clock; 0 where nothing is bounded
        24    8  the process id, 0 before there is a process
        4096     the stacks that faulthandler wrote, to the first zero byte

    The time is written before the index: who reads index and time, and the same time again, has read what belongs
    together, or a younger index, and never takes an event for older than it is.
    """

    STACK, STACK_SIZE = 4096, 16384

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, self.STACK + self.STACK_SIZE)
        self.cells = memoryview(self._map)[:32].cast("q")

    @classmethod
    def on(cls, fd: int) -> Desk:
        """A new desk on an empty file."""
        os.ftruncate(fd, cls.STACK + cls.STACK_SIZE)
        os.lseek(fd, cls.STACK, os.SEEK_SET)
        desk = cls(fd)
        desk.cells[0], desk.cells[1] = -1, BETWEEN
        return desk

    def stack(self) -> str:
        """What was written about the end of the process."""
        text = self._map[self.STACK : self.STACK + self.STACK_SIZE]
        return text.partition(b"\0")[0].decode(errors="replace").rstrip()

    def marks(self) -> tuple[Callable[[int, int], None], Callable[[bool], None]]:
        """`mark(bundle, index)`, and what says whether it notes the time too."""
        cells, clock = self.cells, time.monotonic_ns
        bounded = False

        def mark(bundle: int, index: int) -> None:
            if bounded:
                cells[2] = clock() if index >= 0 else 0
            cells[0] = bundle
            cells[1] = index

        def bound(on: bool) -> None:
            nonlocal bounded
            bounded = on
            cells[2] = 0

        return mark, bound


# ---------------------------------------------------------------- how a process is started


def command(call: str, module: str = __name__) -> list[str]:
    """The command line of a process that imports what the call names from a module, this one, and calls it."""
    import subprocess  # a nursery seldom needs it, and half of what it loads is for that

    # Flags such as -X and -W hold for all processes of an app; -P: a file in the working directory hides no module.
    flags: list[str] = cast("Any", subprocess)._args_from_interpreter_flags()
    root = str(Path(__file__).parents[2])
    name = call.partition("(")[0]
    # The package may have been found on a path that only its user has set.
    code = f"import sys; p = {root!r}; p in sys.path or sys.path.insert(0, p); from {module} import {name}; {call}"
    return [sys.executable, *flags, "-P", "-c", code]


def begin(parent: int, lifeline: int, *given: int) -> None:
    """What a new process does first: end with its parent, leave Ctrl-C to the hub, keep off its standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _end_with(parent, lifeline)
    for fd in (lifeline, *given):
        os.set_inheritable(fd, False)  # what the tasks start has no part in them
    try:
        os.dup2(2, 1)
    except OSError:  # the hub has no standard error of its own
        fd = os.open(os.devnull, os.O_WRONLY)
        for stream in {1, 2} - {fd}:
            os.dup2(fd, stream)
        if fd > 2:
            os.close(fd)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None:  # it is where there were no descriptors
            setattr(sys, name, unheard(stream))


def _end_with(parent: int, lifeline: int) -> None:
    """Be killed when the parent dies, whatever this process is doing then."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it had died before
            os._exit(1)
    else:
        threading.Thread(target=end_at_hangup, args=(lifeline,), daemon=True).start()


def end_at_hangup(lifeline: int) -> NoReturn:
    """End this process once the other end of a socket is closed."""
    waiting = select.poll()
    waiting.register(lifeline, 0)  # a hang-up is always reported
    while not any(events & (select.POLLHUP | select.POLLERR) for _, events in waiting.poll()):
        pass
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def _read_recipe(fd: int) -> Recipe:
    return msgspec.msgpack.decode(os.pread(fd, os.fstat(fd).st_size, 0), type=Recipe)


# ---------------------------------------------------------------- a worker


def main_of_worker(channel: int, desk: int, recipe: int, parent: int) -> NoReturn:
    """A worker that loads the tasks for itself."""
    begin(parent, channel, desk, recipe)

    def load() -> tuple[tuple[Task[Any], ...], str]:
        found = _read_recipe(recipe)
        os.close(recipe)
        return load_tasks(found), found.worker

    _work(load, channel, desk)


def _work(load: Callable[[], tuple[tuple[Task[Any], ...], str]], channel_fd: int, desk_fd: int) -> NoReturn:
    """Answer bundles until the hub closes the channel."""
    code = 0
    try:
        desk = Desk(desk_fd)
        desk.cells[3] = os.getpid()
        faulthandler.enable(file=desk_fd)
        mark, bound = desk.marks()
        mark(-1, SETTING_UP)
        tasks, name = load()
        module, _, attribute = name.partition(":")
        make: Callable[..., Answers] = getattr(importlib.import_module(module), attribute)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # again: a module may have set its own
        mark(-1, BETWEEN)
        _answer(Channel(socket.socket(fileno=channel_fd), blocking=True), make(tasks, mark), mark, bound)
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the hub reads it on the desk
        code = 1
        os.write(desk_fd, "".join(traceback.format_exception(error)).encode(errors="replace"))
    finally:
        _flush()
        os._exit(code & 0xFF)


def _answer(
    channel: Channel, worker: Answers, mark: Callable[[int, int], None], bound: Callable[[bool], None]
) -> None:
    while not channel.ended:
        messages = channel.receive()
        while messages:
            tag, body, _, beside = messages.pop(0)
            bound(bool(tag & 1))
            mark(tag >> 1, BETWEEN)
            answer = worker.answer(Parcel(body, beside))
            channel.send(answer.body, beside=answer.beside)
            del body, beside, answer  # they may be a map of many megabytes


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # user code may have put anything there
            stream.flush()


# ---------------------------------------------------------------- the nursery


def main(control: int, recipe: int, desk: int, parent: int) -> NoReturn:
    """Load the tasks, then start workers until the hub closes the channel."""
    begin(parent, control, recipe, desk)
    channel = Channel(socket.socket(fileno=control), blocking=True)
    faulthandler.enable(file=desk)
    code = 1
    try:
        found = _read_recipe(recipe)
        tasks = load_tasks(found)
        importlib.import_module(found.worker.partition(":")[0])  # once, not in every worker
        nursery = _Nursery(channel, recipe, desk, tasks, found.worker)
        channel.send(b"", READY)
        nursery.run()
        code = 0
    except BaseException as error:  # noqa: BLE001 - user code raises what it likes
        channel.send(_pack((error_text(error), trace_text(error))), FAILED)
    finally:
        _flush()
        os._exit(code)


class _Nursery:
    """Starts workers, and reports how each of them ended."""

    def __init__(
        self, channel: Channel, recipe: int, desk: int, tasks: tuple[Task[Any], ...], worker: str
    ) -> None:
        self._channel = channel
        self._recipe = recipe
        self._desk = desk
        self._tasks = tasks
        self._worker = worker
        self._children: dict[int, int] = {}
        self._selector = selectors.DefaultSelector()
        self._woken, self._wakes = socket.socketpair()
        self._selector.register(channel, selectors.EVENT_READ, self._hear)
        self._selector.register(self._woken, selectors.EVENT_READ, self._reap)

    def run(self) -> None:
        """Serve the hub until it closes the channel, then end all workers."""
        for sock in (self._woken, self._wakes):
            sock.setblocking(False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # again: a module may have set its own
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        # What is there now stays: collecting it in a worker would copy its pages.
        gc.collect()
        gc.freeze()
        while not self._channel.ended:
            for key, _ in self._selector.select():
                key.data()
        for pid in self._children.values():
            os.kill(pid, signal.SIGKILL)
        for pid in self._children.values():
            os.waitpid(pid, 0)

    def _hear(self) -> None:
        for message in self._channel.receive():
            if message.tag == START:
                key: int = msgspec.msgpack.decode(message.body)
                self._children[key] = self._start(*message.fds)
            elif message.tag == SIGNAL:
                key, number = cast("tuple[int, int]", msgspec.msgpack.decode(message.body))
                if key in self._children:
                    os.kill(self._children[key], number)

    def _start(self, channel: int, desk: int) -> int:
        """Start a worker, and give its process id."""
        parent = os.getpid()
        try:
            if not _alone():
                call = f"main_of_worker({channel}, {desk}, {self._recipe}, {parent})"
                keep = (channel, desk, self._recipe)
                import subprocess

                process = subprocess.Popen(command(call), stdin=subprocess.DEVNULL, pass_fds=keep)
                process.returncode = 0  # `_reap` waits for it
                Desk(desk).cells[3] = process.pid  # it may be stopped before it could say so itself
                return process.pid
            _flush()  # or the worker would print it again
            pid = os.fork()
            if pid == 0:
                self._become_worker(channel, desk, parent)
            Desk(desk).cells[3] = pid  # as it does itself: whoever is first
            return pid
        finally:
            os.close(channel)
            os.close(desk)

    def _become_worker(self, channel: int, desk: int, parent: int) -> NoReturn:
        try:
            _end_with(parent, channel)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._selector.close()
            for own in (self._channel, self._woken, self._wakes):
                own.close()
            os.close(self._recipe)
            faulthandler.disable()
            os.close(self._desk)
            _work(lambda: (self._tasks, self._worker), channel, desk)
        finally:
            os._exit(1)

    def _reap(self) -> None:
        while _read_some(self._woken):
            pass
        for key, pid in list(self._children.items()):
            code: int | None = None
            try:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if not ended:
                    continue
                code = os.waitstatus_to_exitcode(status)
            except ChildProcessError:
                pass  # code that the tasks brought along has waited for it
            del self._children[key]
            self._channel.send(_pack((key, code)), ENDED)


def _read_some(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(4096))
    except BlockingIOError:
        return False


def _alone() -> bool:
    """Whether this thread is the only one, so that a fork takes nobody's lock along."""
    if threading.active_count() > 1 or sys.platform != "linux":
        return False
    if _thread_count() == 1:
        return True
    # Libraries that compute in threads (OpenBLAS, which numpy brings) end them when the process forks and start
    # them when they are needed: after a fork that does nothing, they are gone, and those of others are not.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os._exit(0)
    deadline = time.monotonic() + 1.0
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return False
        time.sleep(0.0005)
    return _thread_count() == 1


def _thread_count() -> int:
    return sum(1 for _ in Path("/proc/self/task").iterdir())
