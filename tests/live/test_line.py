"""Commands on the socket beside a store: kept before they are answered, done once, whatever breaks."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live_app import Count, seen
from test_commands import Fed

from secondpass import App
from secondpass.control import Control
from secondpass.errors import ChangeRefused, StoreError
from secondpass.store.line import FILE, Answered, Line, listen
from secondpass.store.spool import Command, Spool, new_name

HUB = """
import sys
from live_app import Count, Seen
from secondpass import App
def forever():
    n = 0
    while True:
        yield Seen(n=n, time=n / 10)
        n += 1
App("live", source=forever(), tasks=[Count()]).run(store=sys.argv[1], workers=0)
"""
WITHOUT_FILES = """
import sys
from secondpass.control import control
from secondpass.store.spool import Spool
def refuse(*_): raise AssertionError("it left a file")
Spool.put = refuse
app = control(sys.argv[1])
print(app.stop("Count", reason="r").position >= 0, app.start("Count", wait=False).command != "")
try:
    app.stop("Nobody")
except Exception as error:
    print(type(error).__name__)
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs an app for as long as it lives."""
    process = subprocess.Popen(
        [sys.executable, "-c", HUB, str(tmp_path / "store")], cwd=Path(__file__).parent
    )
    until(lambda: (tmp_path / "store" / FILE).exists())
    yield process
    process.kill()
    process.wait()


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def asked(store: Path) -> list[str]:
    return [f"{e['kind']} {e['asked']} {e['task']}" for e in Control(store).history() if "asked" in e]


def test_another_process_asks_the_running_app_without_a_file_of_its_own(
    hub: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FILES, str(tmp_path / "store")],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "True True\nChangeRefused\n", done.stderr
    assert asked(tmp_path / "store") == ["command stop Count", "command start Count", "left out stop Nobody"]
    assert hub.poll() is None


def test_only_the_owner_may_ask(hub: subprocess.Popen[bytes], tmp_path: Path) -> None:
    path = tmp_path / "store" / FILE
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    if os.getuid() != 0:
        return
    for directory in (path.parent, *path.parents):
        if directory.owner() == "root" and not directory.stat().st_mode & 0o001:
            directory.chmod(0o755)  # so that it is the socket that keeps others out
    other = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX)\n"
        "try: s.connect(sys.argv[1])\nexcept PermissionError: print('kept out')"
    )
    told = subprocess.run(
        ["/usr/bin/env", "python3", "-c", other, str(path)], check=False, capture_output=True, text=True
    )
    if "No such file" in told.stderr:
        pytest.skip("no Python that another user may run")
    assert told.stdout == "kept out\n", told.stderr


def test_a_hub_that_is_killed_leaves_what_it_kept_to_its_next_start(
    hub: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    store, told = tmp_path / "store", list[Any]()
    hub.send_signal(signal.SIGSTOP)
    until(lambda: "T" in Path(f"/proc/{hub.pid}/stat").read_text().split()[2])
    line = Line.to(store)  # the kernel accepts it for the hub
    asking = threading.Thread(
        target=lambda: told.append(Control(store).stop("Count", reason="while it stood"))
    )
    asking.start()
    time.sleep(0.05)  # whether it has asked by then or not, the answer must be the same
    hub.kill()
    hub.wait()
    line.close()
    asking.join(60)
    assert told[0].waits
    assert [command.reason for _, command in Spool(store).waiting()] == ["while it stood"]
    assert Control(store).start("Count").waits, "the socket that it left behind answers nobody"
    again = subprocess.Popen([sys.executable, "-c", HUB, str(store)], cwd=Path(__file__).parent)
    try:
        until(lambda: asked(store) == ["command stop Count", "command start Count"])
        assert not Spool(store).waiting()
        assert Control(store).stop("Count").position is not None, "it listens again"
    finally:
        again.kill()
        again.wait()


def test_what_a_run_that_ends_has_kept_waits_for_the_next(tmp_path: Path) -> None:
    store, told = tmp_path / "store", list[Any]()
    threads = [
        threading.Thread(target=lambda: told.append(Control(store).drop("Count", reason="kept").waits))
        for _ in range(3)
    ]

    def on_epoch(hub: Any) -> None:
        if not hub.stopping:
            for thread in threads:
                thread.start()
            until(lambda: len(Spool(store).waiting()) == 3)
            hub.stopping = True  # as a signal does

    App("live", source=seen(1_000), tasks=[Count()]).run(store=store, workers=0, on_epoch=on_epoch)
    for thread in threads:
        thread.join(60)
    assert told == [True] * 3
    assert not (store / FILE).exists()
    App("live", source=seen(1_000), tasks=[Count()]).run(store=store, workers=0)
    assert asked(store) == ["command drop-state Count"] * 3


@pytest.mark.parametrize(
    "junk", [b"\n", b"{}\n", b'{"name": "../x", "command": {"kind": "stop"}}\n', b"\xff" * 99, b""]
)
def test_what_is_no_command_is_refused_and_harms_nobody(
    hub: subprocess.Popen[bytes], tmp_path: Path, junk: bytes
) -> None:
    store = tmp_path / "store"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(store / FILE))
        sock.sendall(junk)
        sock.shutdown(socket.SHUT_WR)
        told = sock.makefile("rb").read()
    if junk.endswith(b"\n"):
        assert json.loads(told)["refusal"].startswith("this is no command")
    else:
        assert told == b""
    assert not Spool(store).waiting()
    assert Control(store).stop("Count").position is not None
    assert hub.poll() is None


def test_a_path_that_is_too_long_for_an_address_is_reached_all_the_same(tmp_path: Path) -> None:
    store = tmp_path / ("long" * 30) / ("longer" * 10)
    store.mkdir(parents=True)
    listening = listen(store)
    told: list[Any] = []

    def serve() -> None:
        line = Line(listening.accept()[0])
        told.append(line.asked())
        line.tell(Answered(told[0].name))
        line.tell(Answered(told[0].name, done=True, position=7))
        line.close()

    thread = threading.Thread(target=serve)
    thread.start()
    assert Control(store).stop("Count").position == 7
    thread.join(60)
    listening.close()
    assert told[0].command.task == "Count"


@pytest.mark.parametrize("after", ["at once", "asked", "kept"])
def test_where_the_line_breaks_the_command_is_left_beside_the_store_once(tmp_path: Path, after: str) -> None:
    store = tmp_path / "store"
    App("live", source=seen(10), tasks=[Count()]).run(store=store, workers=0)
    listening = listen(store)

    def serve() -> None:
        line = Line(listening.accept()[0])
        if after != "at once":
            found = line.asked()
        if after == "kept":
            Spool(store).put(found.command, found.name)
            line.tell(Answered(found.name))
        line.close()

    thread = threading.Thread(target=serve)
    thread.start()
    assert Control(store).stop("Count", reason="once").waits
    thread.join(60)
    listening.close()
    assert [command.reason for _, command in Spool(store).waiting()] == ["once"]


def test_where_there_can_be_no_socket_commands_come_by_their_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, told = tmp_path / "store", list[Any]()
    (store / FILE).mkdir(parents=True)  # stands for a file system that has none
    source = Fed(1_000, {500: lambda: told.append(Control(store).stop("Count").position)})
    with caplog.at_level("INFO", "secondpass"):
        App("live", source=source, tasks=[Count()]).run(store=store, workers=0)
    assert told[0] > 0
    assert "commands come by their files" in caplog.text


def test_a_command_that_was_done_is_not_done_again_whoever_asks_for_it_by_its_name(tmp_path: Path) -> None:
    store, told = tmp_path / "store", list[Any]()
    name, command = new_name(), Command("stop", task="Count", reason="by name")

    def ask() -> None:
        from secondpass.store.line import Asked

        for _ in range(2):
            line = Line.to(store)
            line.ask(Asked(name, command))
            told.append(line.answer(60))
            line.close()

    source = Fed(1_000, {500: ask})
    App("live", source=source, tasks=[Count()]).run(store=store, workers=0)
    assert [found.done for found in told] == [True, True]
    assert told[0].position is not None
    assert asked(store) == ["command stop Count"]


def test_a_refusal_comes_back_as_the_hub_says_it(hub: subprocess.Popen[bytes], tmp_path: Path) -> None:
    control = Control(tmp_path / "store")
    with pytest.raises(ChangeRefused, match="Nobody"):
        control.stop("Nobody")
    with pytest.raises(ChangeRefused, match="Count runs already"):
        control.start("Count")
    assert hub.poll() is None


def test_a_command_that_cannot_be_kept_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, told = tmp_path / "store", list[Any]()

    def ask() -> None:
        (store / "commands").write_text("no directory")  # stands for a disk that takes nothing more
        try:
            Control(store).stop("Count")
        except StoreError as error:
            told.append(str(error))
        (store / "commands").unlink()
        told.append(Control(store).stop("Count").position is not None)

    App("live", source=Fed(1_000, {500: ask}), tasks=[Count()]).run(store=store, workers=0)
    assert told == [f"cannot leave a command in {store / 'commands'}: File exists", True]
