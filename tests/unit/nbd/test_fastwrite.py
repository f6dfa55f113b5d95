# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Plain writes go where the bytes are, others through the device; whatever pieces they come in, every byte is right."""

from __future__ import annotations

import errno
import random
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest

import vmdkit
from nbdwire import EIO, ENOSPC, FLUSH, FUA, PAYLOAD, READ, TRIM, WRITE, ZERO, Client, connect, serving
from vmdkit.filters.fault import Fault, FaultDevice
from vmdkit.nbd import Options, Server
from vmdkit.nbd.export import Export
from vmdkit.nbd.fastpath import ROOM
from vmdkit.nbd.fastwrite import Writes, serve_writes
from vmdkit.nbd.protocol import Mode
from vmdkit.nbd.regions import DATA, UNKNOWN, Regions
from vmdkit.nbd.session import Session
from vmdkit.storage.file import open_file
from vmdkit.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmdkit.device import Device

SIZE = 8 * MIB
DATA_512 = bytes(range(256)) * 2


class Told:
    """Stands for the commands of a client: what goes the long way to the device."""

    def __init__(self, device: Device, regions: Regions) -> None:
        self.device, self.regions, self.asked = device, regions, 0

    def write(self, data: memoryview, offset: int) -> Exception | None:
        self.asked += 1
        try:
            self.device.pwrite(data, offset)
        except Exception as error:
            return error
        self.regions.wrote(offset, len(data))
        return None


def lane(device: Device, mode: Mode = Mode.STRUCTURED) -> tuple[Writes, Told]:
    export = Export(device, read_only=False)
    session = Session(export, mode, 1, 32 * MIB, export.flags(mode))
    regions = Regions(device)
    told = Told(device, regions)
    return Writes(session, regions, told), told  # type: ignore[arg-type]


def request(command: int, offset: int, data: bytes = b"", *, flags: int = 0, count: int | None = None) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, flags, command, 7, offset, len(data) if count is None else count) + data


def run(writes: Writes, words: bytes) -> tuple[int, int, Exception | None]:
    return serve_writes(writes, memoryview(bytearray(words)), 0, len(words), memoryview(bytearray(4096)), 0)


GOOD = request(WRITE, 4096, DATA_512)


@pytest.mark.parametrize(
    "bad",
    [
        request(READ, 0, count=512),
        request(WRITE, 0, DATA_512, flags=FUA),
        request(WRITE, SIZE - 1, DATA_512),
        request(WRITE, 2**64 - 5, DATA_512),
        request(WRITE, 0),
        request(WRITE, 0, DATA_512)[:-1],
        request(WRITE, 0, DATA_512)[:27],
        b"\0" * 600,
    ],
)
def test_stops_without_touching(writable: Device, bad: bytes) -> None:
    writes, told = lane(writable)
    before = writable.pread(SIZE, 0)
    at, fill, error = run(writes, GOOD + GOOD + bad)
    assert (at, fill, error) == (2 * len(GOOD), 2 * 16, None)
    before[4096:4608] = DATA_512
    assert writable.pread(SIZE, 0) == before
    assert told.asked == 0  # a file's bytes have their place
    writes.regions.close()


def test_a_full_outbox_stops(writable: Device) -> None:
    writes, _ = lane(writable)
    words = memoryview(bytearray(GOOD * 4))
    assert serve_writes(writes, words, 0, len(words), memoryview(bytearray(ROOM + 40)), 0)[:2] == (3 * len(GOOD), 48)
    writes.regions.close()


def sparse(tmp_path: Path) -> Path:
    vmdkit.create(str(tmp_path / "disk.vmdk"), SIZE)
    return tmp_path / "disk.vmdk"


def test_the_first_change_and_new_grains_go_to_the_device(tmp_path: Path) -> None:
    with vmdkit.open(sparse(tmp_path), writable=True) as device:
        writes, told = lane(device)
        before = device.facts()["cid"]  # type: ignore[attr-defined]
        run(writes, GOOD)
        assert told.asked == 1
        assert device.facts()["cid"] != before  # type: ignore[attr-defined]
        for _ in range(40):  # a region that fills is not looked into at once
            run(writes, GOOD)
        asked = told.asked
        run(writes, GOOD * 3)
        assert told.asked == asked
        run(writes, request(WRITE, MIB, DATA_512))
        assert told.asked == asked + 1
        device.flush()
        writes.regions.close()
    with vmdkit.open(tmp_path / "disk.vmdk") as device:
        assert device.pread(512, 4096) == device.pread(512, MIB) == DATA_512


def test_what_was_overwritten_in_place_is_noted(tmp_path: Path) -> None:
    noted = []

    class Watched(vmdkit.Device):
        in_place = True

        def __init__(self, inner: Device) -> None:
            super().__init__(inner.size, can=inner.can)
            self._inner = inner

        def _pread_into(self, view: memoryview, offset: int) -> None:
            raise AssertionError

        def _locate(self, count: int, offset: int) -> Iterator[vmdkit.device.Location]:
            yield from self._inner.locate(count, offset)

        def overwritten(self) -> None:
            noted.append(1)

    (tmp_path / "raw").write_bytes(bytes(SIZE))
    with open_file(str(tmp_path / "raw"), writable=True) as inner:
        writes, told = lane(Watched(inner))
        run(writes, GOOD * 5)
        assert (noted, told.asked) == ([1], 0)
        run(writes, request(READ, 0, count=1))
        assert noted == [1]
        writes.regions.close()


def test_while_another_thread_takes_places_away_nothing_is_known(writable: Device) -> None:
    regions = Regions(writable)
    assert regions.load(0)[1][0][1] == DATA
    regions.hold()
    regions.hold()
    assert not regions.known
    assert [run[1] for run in regions.load(0)[1]] == [UNKNOWN]
    regions.release()
    assert [run[1] for run in regions.load(0)[1]] == [UNKNOWN]
    assert list(regions.walk(5, 100)) == [(5, 100, UNKNOWN, -1, 0)]
    regions.release()
    assert regions.load(0)[1][0][1] == DATA
    regions.close()


# ── whole servers ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["raw", "sparse", "child", "flat"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Device]:
    """A writable disk of 8 MiB, of each kind of place that bytes can have."""
    path = tmp_path / "disk.vmdk"
    if request.param == "raw":
        path.write_bytes(random.Random(1).randbytes(SIZE))
        with open_file(str(path), writable=True) as device:
            yield device
        return
    parent = tmp_path / "base.vmdk"
    if request.param == "child":
        vmdkit.create(str(parent), SIZE)
        with vmdkit.open(parent, writable=True) as base:
            base.pwrite(random.Random(2).randbytes(3 * MIB), MIB)
        vmdkit.create(str(path), parent=str(parent))
    else:
        vmdkit.create(str(path), SIZE, subformat="monolithicFlat" if request.param == "flat" else "monolithicSparse")
    with vmdkit.open(path, writable=True) as device:
        yield device


class Traffic:
    """Batches of requests, each answered before the next; within one no two that may overtake each other meet."""

    def __init__(self, client: Client, model: bytearray, seed: int) -> None:
        self.client, self.model, self.dice = client, model, random.Random(seed)

    def batch(self, count: int) -> None:
        dice, words = self.dice, b""
        taken: list[tuple[int, int]] = []
        reads: dict[int, tuple[int, int, bytes]] = {}
        trims: list[tuple[int, int]] = []
        sent = 0
        for cookie in range(count):
            length = dice.choice([1, 511, 512, 4096, 4096, 4096, 65536, 65537, 300_000, 700_000, 2 * MIB])
            offset = dice.randrange(SIZE - length)
            offset -= offset % 4096 if dice.random() < 0.6 else 0
            if any(offset < end and offset + length > start for start, end in taken):
                continue
            taken.append((offset, offset + length))
            sent += 1
            command = dice.choice([WRITE, WRITE, WRITE, WRITE, READ, ZERO, TRIM, FLUSH])
            here = slice(offset, offset + length)
            if command == WRITE:
                data, payload = dice.randbytes(length), PAYLOAD if self.client.mode == 2 else 0
                flags = payload | (FUA if dice.random() < 0.1 else 0)
                words += self.client.header(WRITE, offset, length, flags, cookie) + data
                self.model[here] = data
            elif command == FLUSH:
                words += self.client.header(FLUSH, 0, 0, 0, cookie)
            else:
                words += self.client.header(command, offset, length, 0, cookie)
                if command == ZERO:
                    self.model[here] = bytes(length)
                elif command == TRIM:
                    trims.append((offset, length))
                else:
                    reads[cookie] = offset, length, bytes(self.model[here])
        sender = threading.Thread(target=self._send, args=(words,))
        sender.start()
        self._replies(sent, reads)
        sender.join()
        for offset, length in trims:
            self._trimmed(offset, length)

    def _send(self, words: bytes) -> None:
        """Send in pieces that end anywhere."""
        at = 0
        while at < len(words):
            step = self.dice.choice([13, 28, 4124, 5000, 100_000, len(words)])
            self.client.send(words[at : at + step])
            at += step

    def _replies(self, count: int, reads: dict[int, tuple[int, int, bytes]]) -> None:
        lengths = dict.fromkeys(range(100), 0) | {cookie: length for cookie, (_, length, _) in reads.items()}
        for _ in range(count):
            reply = self.client.reply(lengths)
            assert not reply.error, reply.message
            if reply.cookie in reads:
                offset, length, due = reads[reply.cookie]
                assert (reply.data(length, offset) if self.client.mode else reply.chunks[0][1]) == due

    def _trimmed(self, offset: int, length: int) -> None:
        now = self.client.read(offset, length)
        for at in range(0, length, 512):
            old, new = self.model[offset + at : offset + at + 512][: length - at], now[at : at + 512]
            assert new == old or all(one in (0, two) for one, two in zip(new, old, strict=True))
        self.model[offset : offset + length] = now


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_mixed_traffic(disk: Device, mode: int) -> None:
    model = disk.pread(SIZE, 0)
    with serving(disk, writable=True) as server, connect(server) as client:
        client.enter(mode)
        traffic = Traffic(client, model, mode)
        for _ in range(12):
            traffic.batch(24)
            assert not client.request(FLUSH).error
        assert client.read(0, SIZE) == model
    assert disk.pread(SIZE, 0) == model


def test_two_clients_share_the_memory_of_places(disk: Device) -> None:
    with serving(disk, writable=True) as server, connect(server) as one, connect(server) as two:
        one.enter()
        two.enter()
        for number in range(60):
            offset = number % 3 * 4096
            assert not one.write(offset, bytes([number]) * 4096).error
            assert two.read(offset, 4096) == bytes([number]) * 4096
            if number % 20 == 7:
                assert not two.request(ZERO, 0, MIB).error  # in the pool; drops grains
                assert one.read(offset, 4096) == bytes(4096)


def test_one_device_under_two_names_is_one(tmp_path: Path) -> None:
    """A grain that is dropped through one export must not be written through the other's memory of it."""
    with vmdkit.open(sparse(tmp_path), writable=True) as device:
        exports = [Export(device, name, read_only=False) for name in ("a", "b")]
        with Server(exports, options=Options(spin=0)) as server, connect(server) as one, connect(server) as two:
            one.enter(export="a")
            two.enter(export="b")
            for _ in range(50):
                assert not one.write(0, b"1" * 65536).error
            for round_ in range(4):
                assert not two.request(TRIM, 0, 65536).error
                assert not two.request(FLUSH).error
                assert not two.write(MIB * (1 + round_), b"2" * 65536).error  # takes the place that was freed
                assert not one.write(0, b"1" * 512).error
                assert two.read(MIB * (1 + round_), 65536) == b"2" * 65536
                assert one.read(0, 1024) == b"1" * 512 + bytes(512)


def test_nothing_is_written_in_place_after_a_failed_barrier(tmp_path: Path) -> None:
    with (
        vmdkit.open(sparse(tmp_path), writable=True) as device,
        serving(device, writable=True) as server,
        connect(server) as client,
    ):
        client.enter()
        for _ in range(50):
            assert not client.write(0, DATA_512).error
        assert device.in_place

        def fail() -> None:
            raise OSError(errno.EIO, "no more")

        with pytest.raises(OSError, match="no more"):
            device._session.guarded(fail)  # type: ignore[attr-defined]
        assert client.write(0, bytes(512)).error == EIO
        assert client.request(FLUSH).error == EIO
        assert client.read(0, 512) == DATA_512


def test_an_error_of_one_write_is_told_and_the_next_goes_on(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(SIZE))
    with open_file(str(tmp_path / "raw"), writable=True) as inner:
        device = FaultDevice(inner, [Fault("write", 4096, 512, error=errno.ENOSPC)])
        with serving(device, writable=True) as server, connect(server) as client:
            client.enter()
            words = b"".join(
                client.header(WRITE, offset, 512, 0, cookie) + DATA_512
                for cookie, offset in enumerate((0, 4096, 8192, 4096, 12288))
            )
            client.send(words)
            errors = {reply.cookie: reply.error for reply in (client.reply() for _ in range(5))}
            assert errors == {0: 0, 1: ENOSPC, 2: 0, 3: ENOSPC, 4: 0}
            assert client.read(4096, 512) == bytes(512)
            assert client.read(12288, 512) == DATA_512


def test_an_inbox_is_kept_only_while_a_request_is_incomplete(writable_server: Server) -> None:
    with connect(writable_server) as client:
        client.enter()
        words = client.header(WRITE, 0, 4096) + bytes(4096)
        for _ in range(20):
            client.send(words[:-1])
            time.sleep(0.001)
            client.send(words[-1:])
            assert not client.reply().error
        buffers, deadline = writable_server._service._loop.buffers, time.monotonic() + 10
        while buffers.taken and time.monotonic() < deadline:  # given back just after the reply
            time.sleep(0.001)
        assert not buffers.taken
