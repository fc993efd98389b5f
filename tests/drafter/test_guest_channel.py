"""The host's end of the guest channel against a scripted guest."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from architect.drafter.guest_channel import GuestChannel, GuestHook, LogRecord
from architect.drafter.guest_link import GuestRefusedError, GuestSilentError
from architect.drafter.guest_payloads import ATTACH, EXIT, HELLO, INPUT_ACK, GuestConfig
from architect.drafter.guest_protocol import FLAG_END_OF_INPUT, POSITION_OF_GUEST, FrameType, GuestFrame, GuestProtocolError
from architect.errors import HostError, IncompatibleError, NotFoundError
from architect.model.image import ProcessConfig
from tests.drafter.fake_guest import FakeGuest, fake_guest

Script = Callable[[FakeGuest, GuestChannel, list[bytes]], Awaitable[None]]
PROCESS = ProcessConfig(args=("true",))


def play(tmp_path: Path, script: Script, log_position: int | None = 0, prepare: Callable[[FakeGuest], None] | None = None) -> None:
    async def run() -> None:
        lines: list[bytes] = []

        async def on_log(record: LogRecord) -> None:
            lines.append(record.data)

        async with fake_guest(tmp_path / "channel") as guest:
            if prepare is not None:
                prepare(guest)
            async with GuestChannel(tmp_path / "channel", "VM test", on_log, log_position) as channel:
                async with asyncio.timeout(20):
                    await script(guest, channel, lines)

    asyncio.run(run())


def test_a_request_is_answered_and_a_refusal_names_the_reason(tmp_path: Path) -> None:
    async def script(guest: FakeGuest, channel: GuestChannel, lines: list[bytes]) -> None:
        assert (await channel.wait_ready(5)).log_next == 1
        await channel.start(PROCESS)
        assert (await channel.ping()).monotonic_ns == 2
        guest.answer = FakeGuest.refuse
        with pytest.raises(GuestRefusedError, match="no such thing") as caught:
            await channel.signal(15)
        assert caught.value.status == 3

    play(tmp_path, script)


def test_a_cancellation_is_not_hidden_by_what_the_channel_makes_of_it(tmp_path: Path) -> None:
    waits = asyncio.Event()

    async def on_log(record: LogRecord) -> None:
        try:
            waits.set()
            await asyncio.sleep(1000)
        finally:
            raise HostError("log", "cannot be written", "make room")

    async def hear() -> None:
        async with GuestChannel(tmp_path / "channel", "VM test", on_log, 0):
            await asyncio.sleep(1000)

    async def run() -> None:
        async with fake_guest(tmp_path / "channel") as guest:
            hearing = asyncio.create_task(hear())
            await guest.wait_received(FrameType.HELLO)
            guest.send_log(1, b"line")
            await waits.wait()
            hearing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await hearing

    asyncio.run(run())


def test_a_request_is_repeated_with_its_id_after_a_disconnection(tmp_path: Path) -> None:
    async def script(guest: FakeGuest, channel: GuestChannel, lines: list[bytes]) -> None:
        await channel.wait_ready(5)
        guest.answer = lambda guest, frame: guest.cut()
        task = asyncio.create_task(channel.configure(GuestConfig("web", "10.0.0.2", "02:00:00:00:00:02", 1320)))
        first = await guest.wait_received(FrameType.CONFIGURE)
        guest.answer = FakeGuest.accept
        await task
        second = await guest.wait_received(FrameType.CONFIGURE, 2)
        assert (first.seq, first.payload) == (second.seq, second.payload)
        assert guest.sessions[0] != guest.sessions[-1], "HELLO may be said again in a session, where a guest is slow to answer"

    play(tmp_path, script)


def test_a_silent_guest_is_named_at_the_deadline(tmp_path: Path) -> None:
    async def script(guest: FakeGuest, channel: GuestChannel, lines: list[bytes]) -> None:
        await channel.wait_ready(5)
        guest.answer = FakeGuest.ignore
        with pytest.raises(GuestSilentError, match="did not answer START"):
            await channel.start(PROCESS, timeout_s=0.05)

    play(tmp_path, script)


def test_a_guest_that_never_boots_is_named_at_the_deadline(tmp_path: Path) -> None:
    async def run() -> None:
        async def on_log(record: LogRecord) -> None: ...

        async with GuestChannel(tmp_path / "nothing", "VM test", on_log) as channel:
            with pytest.raises(GuestSilentError, match="did not report ready"):
                await channel.wait_ready(0.05)

    asyncio.run(run())


def test_another_version_is_refused_by_name(tmp_path: Path) -> None:
    async def script(guest: FakeGuest, channel: GuestChannel, lines: list[bytes]) -> None:
        with pytest.raises(IncompatibleError, match="version 9"):
            await channel.wait_ready(0.3)

    def prepare(guest: FakeGuest) -> None:
        guest.version = 9

    play(tmp_path, script, prepare=prepare)


def test_log_records_are_taken_once_in_order_and_acknowledged_afterwards(tmp_path: Path) -> None:
    async def script(guest: FakeGuest, channel: GuestChannel, lines: list[bytes]) -> None:
        await channel.wait_ready(5)
        for seq in (1, 2, 2, 1, 3):
            guest.send_log(seq, b"%d" % seq)
        await guest.wait_received(FrameType.LOG_ACK, seq=3)
        assert lines == [b"1", b"2", b"3"]
        assert channel.log_position == 3

    play(tmp_path, script)


def test_a_new_session_asks_for_what_comes_behind_the_last_record(tmp_path: Path) -> None:
    async def script(guest: FakeGuest, channel: GuestChannel, lines: list[bytes]) -> None:
        hello = await guest.wait_received(FrameType.HELLO)
        assert HELLO.unpack(hello.payload)[2] == 41
        await channel.wait_ready(5)
        guest.send_log(42, b"next")
        await guest.wait_received(FrameType.LOG_ACK)
        guest.cut()
        hello = await guest.wait_received(FrameType.HELLO, 2)
        assert HELLO.unpack(hello.payload)[2] == 42

    def prepare(guest: FakeGuest) -> None:
        guest.log_acked, guest.log_next = 40, 43

    play(tmp_path, script, log_position=41, prepare=prepare)


@pytest.mark.parametrize("log_position", [None, 500])
def test_a_guest_that_went_back_in_time_goes_on_from_its_own_position(tmp_path: Path, log_position: int | None) -> None:
    async def script(guest: FakeGuest, channel: GuestChannel, lines: list[bytes]) -> None:
        await channel.wait_ready(5)
        hello = await guest.wait_received(FrameType.HELLO)
        assert HELLO.unpack(hello.payload)[2] == (POSITION_OF_GUEST if log_position is None else log_position)
        guest.send_log(8, b"eight")
        await guest.wait_received(FrameType.LOG_ACK)
        assert lines == [b"eight"]

    def prepare(guest: FakeGuest) -> None:
        guest.log_acked, guest.log_next = 7, 9

    play(tmp_path, script, log_position=log_position, prepare=prepare)


def test_a_gap_in_the_log_fails_what_waits_and_opens_the_channel_again(tmp_path: Path) -> None:
    async def script(guest: FakeGuest, channel: GuestChannel, lines: list[bytes]) -> None:
        await channel.wait_ready(5)
        guest.answer = lambda guest, frame: guest.send_log(5, b"five")
        with pytest.raises(GuestProtocolError, match="log record 5 where 1 was due"):
            await channel.start(PROCESS)
        guest.answer = FakeGuest.accept
        await guest.wait_received(FrameType.HELLO, 2)
        await channel.start(PROCESS)
        assert lines == []

    play(tmp_path, script)


def test_an_error_in_taking_the_log_surfaces_as_itself(tmp_path: Path) -> None:
    async def run() -> None:
        async def on_log(record: LogRecord) -> None:
            raise HostError("the log file", "no space", "free some")

        async with fake_guest(tmp_path / "channel") as guest:
            async with GuestChannel(tmp_path / "channel", "VM test", on_log, 0) as channel:
                await channel.wait_ready(5)
                guest.send_log(1, b"x")
                await asyncio.Event().wait()

    with pytest.raises(HostError, match="no space"):
        asyncio.run(run())


def test_the_exit_code_is_awaited_and_known_again_after_a_reconnection(tmp_path: Path) -> None:
    async def script(guest: FakeGuest, channel: GuestChannel, lines: list[bytes]) -> None:
        await channel.wait_ready(5)
        assert channel.exit_code is None
        guest.on_hello = lambda guest: guest.send(GuestFrame(FrameType.EXIT, EXIT.pack(137)))
        guest.cut()
        assert await channel.wait_exit() == 137
        assert channel.exit_code == 137

    play(tmp_path, script)


def test_a_hook_that_the_image_lacks_is_no_error(tmp_path: Path) -> None:
    async def script(guest: FakeGuest, channel: GuestChannel, lines: list[bytes]) -> None:
        await channel.wait_ready(5)
        assert await channel.run_hook(GuestHook.AFTER_RESUME, 1) is True
        guest.answer = lambda guest, frame: guest.send(GuestFrame(FrameType.ANSWER, b"\x02\0\0\0", seq=frame.seq))
        assert await channel.run_hook(GuestHook.AFTER_RESUME, 1) is False

    play(tmp_path, script)


def test_exec_output_is_acknowledged_when_the_reader_has_taken_it(tmp_path: Path) -> None:
    async def script(guest: FakeGuest, channel: GuestChannel, lines: list[bytes]) -> None:
        await channel.wait_ready(5)
        session = await channel.exec_start(PROCESS)
        for seq, text in ((1, b"a"), (2, b"b")):
            guest.send(GuestFrame(FrameType.EXEC_OUTPUT, text, session.id, seq, 1))
        guest.send(GuestFrame(FrameType.EXEC_EXIT, EXIT.pack(3), session.id))
        reader = session.output()
        assert (await anext(reader)).data == b"a"
        assert session.output_position == 0
        assert (await anext(reader)).data == b"b"
        assert (await guest.wait_received(FrameType.EXEC_OUTPUT_ACK)).seq == 1
        assert [record async for record in reader] == []
        assert (await guest.wait_received(FrameType.EXEC_OUTPUT_ACK, 2)).seq == 2
        assert await session.wait() == 3

    play(tmp_path, script)


def test_exec_input_goes_on_from_what_the_guest_has_after_a_reconnection(tmp_path: Path) -> None:
    async def script(guest: FakeGuest, channel: GuestChannel, lines: list[bytes]) -> None:
        await channel.wait_ready(5)
        session = await channel.exec_start(PROCESS)
        await session.write(b"abcdef")
        session.end_input()
        sent = await guest.wait_received(FrameType.EXEC_INPUT)
        assert (sent.seq, sent.payload, sent.flags) == (0, b"abcdef", 0)
        assert (await guest.wait_received(FrameType.EXEC_INPUT, 2)).flags == FLAG_END_OF_INPUT
        guest.exec_ids = (session.id,)
        guest.cut()
        attach = await guest.wait_received(FrameType.EXEC_ATTACH)
        assert ATTACH.unpack(attach.payload) == (0,)
        guest.send(GuestFrame(FrameType.EXEC_INPUT_ACK, INPUT_ACK.pack(4), session.id, 2))
        again = await guest.wait_received(FrameType.EXEC_INPUT, 3)
        assert (again.seq, again.payload, again.flags) == (4, b"ef", FLAG_END_OF_INPUT)

    play(tmp_path, script)


def test_an_exec_session_that_the_guest_has_lost_fails_by_name(tmp_path: Path) -> None:
    async def script(guest: FakeGuest, channel: GuestChannel, lines: list[bytes]) -> None:
        await channel.wait_ready(5)
        session = await channel.exec_start(PROCESS)
        guest.cut()
        with pytest.raises(NotFoundError):
            await session.wait()
        guest.answer = FakeGuest.refuse
        with pytest.raises(NotFoundError):
            await channel.exec_attach(77)

    play(tmp_path, script)


def test_input_waits_while_the_process_takes_none(tmp_path: Path) -> None:
    async def script(guest: FakeGuest, channel: GuestChannel, lines: list[bytes]) -> None:
        await channel.wait_ready(5)
        session = await channel.exec_start(PROCESS)
        writing = asyncio.create_task(session.write(bytes(200_000)))
        await guest.wait_received(FrameType.EXEC_INPUT, 4)
        assert sum(len(frame.payload) for frame in guest.received if frame.type is FrameType.EXEC_INPUT) == 65536
        assert not writing.done()
        guest.send(GuestFrame(FrameType.EXEC_INPUT_ACK, INPUT_ACK.pack(65536), session.id, 65536))
        await guest.wait_received(FrameType.EXEC_INPUT, 8)
        assert not writing.done()
        guest.send(GuestFrame(FrameType.EXEC_INPUT_ACK, INPUT_ACK.pack(131072), session.id, 131072))
        await guest.wait_received(FrameType.EXEC_INPUT, 12)
        guest.send(GuestFrame(FrameType.EXEC_INPUT_ACK, INPUT_ACK.pack(196608), session.id, 196608))
        await writing

    play(tmp_path, script)
