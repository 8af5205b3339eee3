"""The channel: whole messages in order, whatever their size, and a sender that never waits."""

import gc
import mmap
import os
import random
import socket
import struct
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from secondpass.engine.channel import SHARED_FROM, Channel, Garbled, Message, shared_file, write_whole

Pair = tuple[Channel, Channel]

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted in /proc")


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The hub's end, which does not block, and the worker's, which does."""
    ours, theirs = socket.socketpair()
    hub, worker = Channel(ours, blocking=False), Channel(theirs, blocking=True)
    yield hub, worker
    hub.close()
    worker.close()


def open_files() -> int:
    gc.collect()  # what other tests have left is not counted
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def narrow(channel: Channel) -> None:
    """Let few messages fill the buffer, as few large ones do where the kernel gives little."""
    channel._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)


def address(part: memoryview) -> int:
    return np.frombuffer(part, "u1").ctypes.data


def collect(worker: Channel, count: int) -> list[Message]:
    found: list[Message] = []
    while len(found) < count and not worker.ended:
        found += worker.receive()
    return found


def in_background(work: object, *arguments: object) -> threading.Thread:
    assert callable(work)
    thread = threading.Thread(target=work, args=arguments)
    thread.start()
    return thread


def test_messages_arrive_whole_and_in_order_with_their_tags(pair: Pair, rng: random.Random) -> None:
    hub, worker = pair
    sizes = [0, 1, 100, 1 << 18, SHARED_FROM - 1, SHARED_FROM, 3 * SHARED_FROM + 5]
    bodies = [rng.randbytes(rng.choice(sizes)) for _ in range(60)]

    def drive() -> None:
        for number, body in enumerate(bodies):
            hub.send(body, -number)
        while hub.wants_write:
            hub.flush()

    thread = in_background(drive)
    found = collect(worker, len(bodies))
    thread.join()
    assert [m.tag for m in found] == [-n for n in range(len(bodies))]
    assert [bytes(m.body) == body for m, body in zip(found, bodies, strict=True)] == [True] * len(bodies)


def test_what_goes_beside_arrives_whole_and_in_order_read_only_and_aligned(
    pair: Pair, rng: random.Random
) -> None:
    hub, worker = pair
    sizes = [1, 63, 64, 65, 4096, SHARED_FROM + 1]
    sent = [[rng.randbytes(rng.choice(sizes)) for _ in range(count)] for count in (1, 0, 2, 7, 0, 1)]
    for number, parts in enumerate(sent):
        hub.send(b"body %d" % number, number, beside=parts)
    found = collect(worker, len(sent))
    assert [(m.tag, bytes(m.body)) for m in found] == [(n, b"body %d" % n) for n in range(len(sent))]
    assert [[bytes(part) for part in m.beside] for m in found] == sent
    for message in found:
        for part in message.beside:
            assert isinstance(part, memoryview)
            assert part.readonly
            assert address(part) % 64 == 0


def test_there_may_be_more_beside_than_the_system_takes_at_once(pair: Pair) -> None:
    hub, worker = pair
    parts = [b"%d" % n for n in range(5000)]
    hub.send(b"", beside=parts)
    (message,) = collect(worker, 1)
    assert [bytes(part) for part in message.beside] == parts
    assert message.body == b""


def test_a_message_may_come_byte_by_byte() -> None:
    ours, theirs = socket.socketpair()
    kept_ours, kept_theirs = socket.socketpair()
    sender, recorder = Channel(ours, blocking=False), theirs
    receiver = Channel(kept_theirs, blocking=False)
    for body in (b"", b"abc", b"x" * 1000):
        sender.send(body, len(body))
    found: list[Message] = []
    for byte in recorder.recv(1 << 16):
        kept_ours.send(bytes([byte]))
        found += receiver.receive()
    assert found == [Message(0, b""), Message(3, b"abc"), Message(1000, b"x" * 1000)]
    for end in (sender, recorder, receiver, kept_ours):
        end.close()


def test_nothing_there_is_no_message_and_no_waiting(pair: Pair) -> None:
    hub, _ = pair
    assert hub.receive() == []
    assert not hub.ended


@pytest.mark.parametrize("size", [100, 50_000, 2 * SHARED_FROM])
def test_a_side_that_does_not_read_never_makes_the_other_wait(pair: Pair, size: int) -> None:
    hub, worker = pair
    narrow(hub)
    body = bytes(size)
    count = 0
    while not hub.wants_write:
        hub.send(body, count)
        count += 1
    for _ in range(20):
        hub.send(body, count)
        count += 1
    found: list[Message] = []
    thread = in_background(lambda: found.extend(collect(worker, count)))
    while hub.wants_write:
        hub.flush()
    thread.join()
    assert [len(m.body) for m in found] == [size] * count


@pytest.mark.parametrize("beside", [(), (b"small", bytes(SHARED_FROM))])
def test_large_messages_that_wait_hold_one_descriptor(pair: Pair, beside: tuple[bytes, ...]) -> None:
    hub, _ = pair
    narrow(hub)
    body = bytes(SHARED_FROM)
    while not hub.wants_write:
        hub.send(body, beside=beside)
    before = open_files()
    for _ in range(50):
        hub.send(body, beside=beside)
    assert open_files() == before


def test_what_was_sent_before_the_end_is_received_before_the_end(pair: Pair) -> None:
    hub, worker = pair
    worker.send(b"last words")
    worker.send(bytes(SHARED_FROM))
    worker.close()
    assert [len(m.body) for m in hub.receive()] == [10, SHARED_FROM]
    assert hub.ended


def test_a_message_cut_off_by_the_end_is_none() -> None:
    ours, theirs = socket.socketpair()
    hub, sender, recorder = Channel(ours, blocking=False), *socket.socketpair()
    other = Channel(sender, blocking=False)
    other.send(b"abcdef")
    whole = recorder.recv(1000)
    theirs.send(whole + whole[:-1])
    theirs.close()
    assert [m.body for m in hub.receive()] == [b"abcdef"]
    assert hub.ended
    for end in (hub, other, recorder):
        end.close()


def test_sending_to_a_closed_end_is_silent_and_keeps_nothing(pair: Pair) -> None:
    hub, worker = pair
    worker.send(b"answer")
    hub.send(b"never read")
    worker.close()
    before = open_files()
    for size in (10, SHARED_FROM):
        hub.send(bytes(size))
    hub.send(b"", beside=[b"never read"])
    assert not hub.wants_write
    assert open_files() == before
    assert [m.body for m in hub.receive()] == [b"answer"]  # although the other side had not read everything
    assert hub.ended


def test_a_shared_body_lives_as_long_as_a_view_of_it_and_leaves_nothing(pair: Pair) -> None:
    hub, worker = pair
    before = open_files()
    hub.send(b"\x01" * SHARED_FROM)
    body = worker.receive()[0].body
    assert isinstance(body, memoryview)
    assert body.readonly
    part = body[10:20]
    assert isinstance(body.obj, mmap.mmap)
    gone = weakref.ref(body.obj)
    del body
    assert bytes(part) == b"\x01" * 10
    del part
    gc.collect()
    assert gone() is None
    assert open_files() == before


def test_a_part_alone_keeps_a_shared_message_and_leaves_nothing(pair: Pair) -> None:
    hub, worker = pair
    before = open_files()
    hub.send(b"body", beside=[b"\x01" * SHARED_FROM, b"last"])
    ((_, body, _, (first, last)),) = worker.receive()
    assert isinstance(last, memoryview)
    gone = weakref.ref(last.obj)
    del body, first
    gc.collect()
    assert bytes(last) == b"last"
    del last
    gc.collect()
    assert gone() is None
    assert open_files() == before


def test_descriptors_arrive_with_their_message_and_close_at_exec(pair: Pair) -> None:
    hub, worker = pair
    before = open_files()
    pipes = [os.pipe() for _ in range(3)]
    for number, (reader, _) in enumerate(pipes):
        hub.send(bytes(number * SHARED_FROM), number, [reader])
    fds = [(message.tag, message.fds) for message in collect(worker, 3)]
    for (_, writer), (tag, (fd,)) in zip(pipes, fds, strict=True):
        os.write(writer, b"%d" % tag)
        os.close(writer)
        assert os.read(fd, 10) == b"%d" % tag
        assert not os.get_inheritable(fd)
        os.close(fd)
    assert open_files() == before


def test_descriptors_that_nobody_took_are_closed_with_the_channel() -> None:
    before = open_files()
    ours, theirs = socket.socketpair()
    hub, worker = Channel(ours, blocking=False), Channel(theirs, blocking=False)
    reader, writer = os.pipe()
    hub.send(b"x" * 100, 0, [reader])
    hub.close()
    worker.close()
    os.close(writer)
    assert open_files() == before


@pytest.mark.parametrize(
    "stray",
    [
        b"print went here" * 10,
        struct.pack("<4sIHQq", b"2dps", 0, 0, 1 << 40, 0),
        struct.pack("<4sIHQq", b"2dps", 1, 1, SHARED_FROM, 0),
        struct.pack("<4sIHQq", b"2dps", 0, 9, 0, 0),
        struct.pack("<4sIHQq", b"2dps", 1, 0, SHARED_FROM, 0),
    ],
)
def test_what_is_no_message_is_told_from_one(pair: Pair, stray: bytes) -> None:
    hub, worker = pair
    os.write(worker.fileno(), stray)
    with pytest.raises(Garbled):
        hub.receive()


@pytest.mark.parametrize("sizes", [(0, 0), (64, 64), (10, 1 << 63)])
def test_a_shared_file_of_other_parts_than_it_says_is_no_message(pair: Pair, sizes: tuple[int, int]) -> None:
    hub, worker = pair
    content = bytes(64) + struct.pack("<2Q", *sizes)
    fd = shared_file("stray")
    write_whole(fd, content)
    frame = struct.pack("<4sIHQq", b"2dps", 2, 1, len(content), 0)
    socket.send_fds(worker._sock, [frame], [fd])
    os.close(fd)
    with pytest.raises(Garbled):
        hub.receive()


def test_a_blocking_receiver_wakes_up_for_a_message_and_for_the_end(pair: Pair) -> None:
    hub, worker = pair
    found: list[list[Message]] = []

    def listen() -> None:
        while not worker.ended:
            found.append(worker.receive())

    thread = in_background(listen)
    hub.send(b"one")
    hub.close()
    thread.join()
    assert [m.body for messages in found for m in messages] == [b"one"]


def test_a_blocking_sender_waits_until_all_is_sent(pair: Pair) -> None:
    hub, worker = pair
    thread = in_background(lambda: [worker.send(bytes(900_000), n) for n in range(40)])
    found: list[Message] = []
    while len(found) < 40:
        found += hub.receive()
    thread.join()
    assert [m.tag for m in found] == list(range(40))
    assert not worker.wants_write
