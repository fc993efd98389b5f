"""The guest side against a real kernel in a real QEMU: init, channel, logs, exec sessions, clock."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import struct
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from architect.drafter.guest_channel import ClockCorrection, GuestChannel, GuestHook, LogStream
from architect.drafter.guest_exec import ExecOutput, GuestExec
from architect.drafter.guest_link import GuestRefusedError
from architect.drafter.guest_payloads import TerminalSize
from architect.drafter.guest_protocol import HEADER, RESET_PADDING, FrameType, GuestFrame, encode_frame
from architect.errors import NotFoundError
from architect.model.image import ProcessConfig
from tests.host.guest_machine import BOOT_TIMEOUT_S, CONFIG, GuestMachine, Guests, boot_guest, boot_template, shell

pytestmark = pytest.mark.host
CLOCK_TOLERANCE_S = 0.02
SLEWED_S = 60


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Guests:
    """Booted once: a boot takes TCG longer than most tests take otherwise."""
    state = tmp_path_factory.mktemp("guests") / "booted"
    asyncio.run(boot_template(state))
    return Guests(state)


def test_a_guest_boots_runs_its_process_and_reports_its_exit_code() -> None:
    script = (
        "id; env; pwd; hostname; cat /etc/hosts /etc/resolv.conf; ip addr; ip route; arp -n; df -k /; "
        "ls -d /proc/1 /dev/pts /dev/shm; cat /proc/self/cgroup; echo oops >&2; exit 7"
    )

    async def check(machine: GuestMachine, channel: GuestChannel) -> None:
        await channel.start(shell(script, uid=1000, gid=1000, groups=(5,), cwd="/new/folder"))
        assert await channel.wait_exit() == 7
        text = machine.log.text()
        assert "uid=1000(user) gid=1000 groups=1000,5" in text or re.search(r"uid=1000\(user\) gid=1000 groups=.*5", text)
        for line in ("COLOUR=blue", "HOME=/home/user", "HOSTNAME=web", "/new/folder", "10.1.0.2\tweb", "nameserver 10.1.0.1"):
            assert line in text
        assert "inet 10.1.0.2/32 scope global eth0" in text
        assert "default via 169.254.1.1 dev eth0" in text
        assert re.search(r"169\.254\.1\.1\) at 02:00:00:00:00:01 \[ether\] +PERM", text)
        assert "mtu 1320" in text and "link/ether 02:11:22:33:44:66" in text
        blocks = re.search(r"/dev/vda +(\d+)", text)
        assert blocks is not None and int(blocks[1]) > 200_000, "the file system has grown to its disk"
        assert "0::/architect/workload" in text
        assert machine.log.text(LogStream.STDERR) == "oops\n"
        with pytest.raises(GuestRefusedError):
            await channel.start(shell("true"))

    Guests().run(check)


@pytest.mark.parametrize(("args", "code"), [(("no-such-command",), 127), (("/etc/passwd",), 126), (("/bin/nothing",), 127)])
def test_a_command_that_cannot_be_executed_exits_as_in_a_shell(guests: Guests, args: tuple[str, ...], code: int) -> None:
    async def check(machine: GuestMachine, channel: GuestChannel) -> None:
        await channel.start(ProcessConfig(args=args, env=("PATH=/bin",)))
        assert await channel.wait_exit() == code
        assert f"cannot start {args[0]}" in machine.log.text(LogStream.STDERR)

    guests.run(check)


def test_no_log_record_is_lost_or_repeated_over_disconnections(guests: Guests) -> None:
    count = 300_000  # About 2 MB: twice what the guest buffers.

    async def check() -> None:
        async with guests.start({}) as machine:
            async with machine.channel() as channel:
                await channel.wait_ready(60)
                await channel.configure(CONFIG)
                await channel.start(shell(f"seq 1 {count}; exit 3"))
            for _ in range(12):
                async with machine.channel() as channel:
                    await channel.wait_ready(60)
                    await asyncio.sleep(0.03)
            await asyncio.sleep(1)  # Nobody listens: the buffer fills, the workload waits.
            async with machine.channel() as channel:
                async with asyncio.timeout(120):
                    assert await channel.wait_exit() == 3
            assert machine.log.text() == "".join(f"{number}\n" for number in range(1, count + 1))
            async with machine.channel() as channel:
                assert await channel.wait_exit() == 3, "a host that comes later hears the exit too"

    asyncio.run(check())


def test_a_signal_reaches_the_workload_and_its_children_die_with_it(guests: Guests) -> None:
    async def check(machine: GuestMachine, channel: GuestChannel) -> None:
        await channel.start(shell("trap 'echo got it; exit 5' TERM; sleep 1000 & echo up; wait"))
        await machine.log.wait_text("up\n")
        session = await channel.exec_start(shell("sleep 1000"))
        await channel.signal(signal.SIGTERM)
        assert await channel.wait_exit() == 5
        assert machine.log.text() == "up\ngot it\n"
        assert await session.wait() == 128 + signal.SIGKILL, "exec sessions end with the workload"
        with pytest.raises(GuestRefusedError):
            await channel.signal(signal.SIGTERM)

    guests.run(check)


def test_a_killed_workload_reports_its_signal(guests: Guests) -> None:
    async def check(machine: GuestMachine, channel: GuestChannel) -> None:
        await channel.start(shell("echo up; sleep 1000"))
        await machine.log.wait_text("up\n")
        await channel.signal(signal.SIGKILL)
        assert await channel.wait_exit() == 137

    guests.run(check)


async def _read_until(output: AsyncIterator[ExecOutput], pattern: str) -> str:
    """What comes, until the pattern is in it."""
    text = ""
    while not re.search(pattern, text):
        text += (await anext(output)).data.decode()
    return text


async def _read_all(session: GuestExec, stream: int = 1) -> bytes:
    return b"".join([record.data async for record in session.output() if record.stream == stream])


def test_exec_sessions_have_input_output_and_exit_codes(guests: Guests) -> None:
    data = os.urandom(300_000)

    async def check(machine: GuestMachine, channel: GuestChannel) -> None:
        await channel.start(shell("sleep 1000"))
        session = await channel.exec_start(shell("cat; echo done >&2; exit 9"))

        async def feed() -> None:
            for start in range(0, len(data), 50_000):
                await session.write(data[start : start + 50_000])
            session.end_input()

        async with asyncio.TaskGroup() as group:
            group.create_task(feed())
            records = [record async for record in session.output()]
        assert b"".join(record.data for record in records if record.stream == 1) == data
        assert b"".join(record.data for record in records if record.stream == 2) == b"done\n"
        assert await session.wait() == 9
        await channel.exec_close(session)
        missing = await channel.exec_start(ProcessConfig(args=("nothing",)))
        assert b"cannot start nothing" in await _read_all(missing, 2)
        assert await missing.wait() == 127

    guests.run(check)


def test_exec_sessions_with_a_terminal_know_its_size_and_end_at_ctrl_d(guests: Guests) -> None:
    async def check(machine: GuestMachine, channel: GuestChannel) -> None:
        await channel.start(shell("sleep 1000"))
        session = await channel.exec_start(shell("stty size; tty; cat; stty size"), TerminalSize(33, 101))
        output = session.output()
        text = await _read_until(output, r"\n.*\n")
        await session.write(b"hello\n")
        text += await _read_until(output, r"hello\r\n(.*\n)*hello\r\n")
        await session.resize(TerminalSize(44, 99))
        session.end_input()
        text += "".join([record.data.decode() async for record in output])
        assert text.startswith("33 101\r\n/dev/pts/") and text.endswith("44 99\r\n") and text.count("hello\r\n") == 2
        assert await session.wait() == 0

    guests.run(check)


def test_an_exec_session_survives_cut_connections_and_another_host_takes_it_up(guests: Guests) -> None:
    async def check(machine: GuestMachine, channel: GuestChannel) -> None:
        await channel.start(shell("sleep 1000"))

    async def take_up(machine: GuestMachine) -> None:
        async with machine.relay() as relay, machine.channel(relay.socket) as channel:
            await channel.wait_ready(10)
            session = await channel.exec_start(shell("i=0; while read line; do echo got $line; done; exit 4"))
            reader = session.output()
            for word in (b"one", b"two", b"three"):
                await session.write(word + b"\n")
                assert (await anext(reader)).data == b"got " + word + b"\n"
                relay.cut()
            await session.write(b"four\n")
            assert (await anext(reader)).data == b"got four\n", (
                "the guest has it; here it is not taken before the next is asked for"
            )
            position = session.output_position
        async with machine.channel() as other:
            ready = await other.wait_ready(10)
            assert ready.exec_ids == (session.id,)
            again = await other.exec_attach(session.id, position)
            await again.write(b"five\n")
            again.end_input()
            assert await _read_all(again) == b"got four\ngot five\n", "what was not taken comes again, once"
            assert await again.wait() == 4
            await other.exec_close(again)
            with pytest.raises(NotFoundError):
                await other.exec_attach(session.id)

    guests.run(check, then=take_up)


class _Lead(msgspec.Struct, frozen=True):
    """How far a guest's clock is ahead of this machine's, as a ping tells: its date was taken between request and answer."""

    least_s: float
    most_s: float

    def can_be(self, lead_s: float, tolerance_s: float) -> bool:
        return self.least_s - tolerance_s <= lead_s <= self.most_s + tolerance_s

    @property
    def uncertain_s(self) -> float:
        return self.most_s - self.least_s


async def _lead(channel: GuestChannel) -> _Lead:
    """The guest's lead now, by the fastest of a few pings."""
    leads = []
    for _ in range(20):
        before_s = time.time()
        date_s = (await channel.ping()).realtime_ns / 1e9
        leads.append(_Lead(date_s - time.time(), date_s - before_s))
    return min(leads, key=lambda lead: lead.uncertain_s)


async def _watch_clock(channel: GuestChannel, correction: asyncio.Task[ClockCorrection] | None = None) -> _Lead:
    """The guest's lead once the correction is made, having seen that its clock never goes back meanwhile."""
    last_ns, slewing_ns, is_made = 0, 0, False
    async with asyncio.timeout(SLEWED_S):
        while not is_made or slewing_ns:
            is_made = correction is None or correction.done()  # as of this ping
            pong = await channel.ping()
            assert pong.realtime_ns > last_ns, "the date never goes back"
            last_ns, slewing_ns = pong.realtime_ns, pong.slewing_ns
            await asyncio.sleep(0.02)
    return await _lead(channel)


async def _set_clock(channel: GuestChannel) -> tuple[_Lead, ClockCorrection]:
    """Correct the guest's clock, and what that has made of it."""
    async with asyncio.TaskGroup() as group:
        correcting = group.create_task(channel.set_clock())
        lead = await _watch_clock(channel, correcting)
    return lead, correcting.result()


class _LateClock:
    """The system's clocks, with a date that is some time behind."""

    def __init__(self, behind_s: float) -> None:
        self._behind_s = behind_s

    def monotonic_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time() - self._behind_s

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)


@pytest.mark.parametrize("pause_s", [0.05, 0.4, 2.5])
def test_the_clock_is_right_again_after_a_pause_and_never_goes_back(guests: Guests, pause_s: float) -> None:
    async def check(machine: GuestMachine, channel: GuestChannel) -> None:
        before, _ = await _set_clock(channel)
        least_s, most_s = await machine.pause(pause_s)
        after, correction = await _set_clock(channel)
        offset_s, tolerance_s = correction.offset_ns / 1e9, correction.round_trip_ns / 2e9 + CLOCK_TOLERANCE_S
        assert _Lead(least_s - before.most_s, most_s - before.least_s).can_be(offset_s, tolerance_s), (
            before,
            least_s,
            most_s,
            correction,
        )
        assert after.can_be(0, tolerance_s), (after, correction)

    guests.run(check)


def test_a_correction_that_ends_late_because_the_machine_stalls_is_corrected(guests: Guests) -> None:
    async def check(machine: GuestMachine, channel: GuestChannel) -> None:
        await _set_clock(channel)
        await machine.pause(0.05)
        correction = await channel.set_clock()
        machine.process.send_signal(signal.SIGSTOP)  # the guest's clock goes on, faster as it is told to, and nobody ends that
        await asyncio.sleep(2.5)
        machine.process.send_signal(signal.SIGCONT)
        after = await _watch_clock(channel)
        assert after.can_be(0, correction.round_trip_ns / 2e9 + CLOCK_TOLERANCE_S), (after, correction)

    guests.run(check)


def test_a_clock_that_is_ahead_runs_slower_instead_of_going_back(guests: Guests) -> None:
    async def check(machine: GuestMachine, channel: GuestChannel) -> None:
        await channel.set_clock()

    async def fall_back(machine: GuestMachine) -> None:
        async with machine.channel(clock=_LateClock(0.3)) as channel:
            await channel.wait_ready(10)
            lead, correction = await _set_clock(channel)
            assert lead.can_be(-0.3, correction.round_trip_ns / 2e9 + CLOCK_TOLERANCE_S), (lead, correction)

    guests.run(check, then=fall_back)


def test_hooks_run_in_bounded_time_and_their_absence_is_told(guests: Guests) -> None:
    files = {
        "etc/architect/hooks/before-suspend": "#!/bin/sh\necho suspending\n",
        "etc/architect/hooks/after-resume": "#!/bin/sh\nsleep 100\n",
    }

    async def check(machine: GuestMachine, channel: GuestChannel) -> None:
        assert await channel.run_hook(GuestHook.BEFORE_SUSPEND, BOOT_TIMEOUT_S) is True
        await machine.log.wait_text("suspending\n", stream=LogStream.SYSTEM)
        with pytest.raises(GuestRefusedError, match="in time"):
            await channel.run_hook(GuestHook.AFTER_RESUME, 0.3)
        assert await channel.run_hook(GuestHook.AFTER_RESTORE, 5) is False

    guests.run(check, files)


def test_a_frozen_workload_stands_still_and_goes_on(guests: Guests) -> None:
    async def check(machine: GuestMachine, channel: GuestChannel) -> None:
        def ticks_s() -> list[float]:
            return [float(line) for line in machine.log.text().splitlines(keepends=True) if line.endswith("\n")]

        await channel.start(shell("while read up rest < /proc/uptime; do echo $up; sleep 0.05; done"))
        await machine.log.wait_more()
        await channel.set_frozen(True)
        frozen_s = (await channel.ping()).monotonic_ns / 1e9
        await asyncio.sleep(0.5)
        thaws_s = (await channel.ping()).monotonic_ns / 1e9
        await channel.set_frozen(False)
        while not ticks_s() or ticks_s()[-1] <= thaws_s:
            await machine.log.wait_more()
        assert not [tick_s for tick_s in ticks_s() if frozen_s < tick_s < thaws_s - 0.01]

    guests.run(check)


async def _freeze_until_refused(channel: GuestChannel) -> None:
    """As long as nothing waits for the disk yet, everything stands still at once."""
    async with asyncio.timeout(60):
        while True:
            await channel.set_frozen(True, 0.1)
            await channel.set_frozen(False)


def test_a_process_that_waits_for_its_disk_is_waited_for_or_named(guests: Guests) -> None:
    async def check(machine: GuestMachine, channel: GuestChannel) -> None:
        await channel.start(shell("while :; do echo tick; sleep 0.05; done"))
        await machine.log.wait_text("tick\n")
        await machine.slow_disk(1)
        session = await channel.exec_start(shell("cat /big /big > /dev/null; echo read"))
        with pytest.raises(GuestRefusedError, match=r"process \d+ \(\w+\) waits in the kernel") as refused:
            await _freeze_until_refused(channel)
        assert refused.value.status == errno.ETIMEDOUT
        await machine.log.wait_more()
        async with asyncio.timeout(40), asyncio.TaskGroup() as group:
            freezing = group.create_task(channel.set_frozen(True, 60))
            await channel.ping()  # and so the request before it has been sent
            with pytest.raises(GuestRefusedError, match="another request"):
                await channel.set_frozen(True)
            assert not freezing.done(), "the guest answers others while it waits"
            await machine.slow_disk(0)
        await channel.set_frozen(False)
        assert await _read_all(session) == b"read\n"

    guests.run(check, {"big": "x" * 4_000_000})


def _garbage() -> list[bytes]:
    session = 77
    hello = encode_frame(GuestFrame(FrameType.HELLO, struct.pack("<IIQ", 1, 0, 0)), session)
    truncated = [encode_frame(GuestFrame(kind, b"\xff\xff", seq=1000 + kind, stream=5), session) for kind in FrameType]
    empty = [encode_frame(GuestFrame(kind, b"", seq=2000 + kind), session) for kind in FrameType if kind is not FrameType.POWEROFF]
    noisy = [
        encode_frame(GuestFrame(kind, os.urandom(5000), seq=3000 + kind), session)
        for kind in FrameType
        if kind not in (FrameType.POWEROFF, FrameType.HELLO, FrameType.CLOCK, FrameType.FREEZE)
    ]
    half = encode_frame(GuestFrame(FrameType.EXEC_INPUT, bytes(60_000)), session)[:100]
    too_long = HEADER.pack(0x31435241, 1 << 31, session, 3, 0, 0, 0, 9, 0)
    unknown = bytearray(hello)
    unknown[12] = 200
    unknown[28:32] = bytes(4)
    unknown[28:32] = struct.pack("<I", zlib.crc32(unknown))
    truncated = [frame for kind, frame in zip(FrameType, truncated, strict=True) if kind is not FrameType.POWEROFF]
    return [os.urandom(100_000), hello, *truncated, *empty, *noisy, too_long, bytes(unknown), os.urandom(3000), half]


def test_malformed_frames_do_not_crash_the_guest(guests: Guests) -> None:
    async def check() -> None:
        async with guests.start({}) as machine:
            async with machine.channel() as channel:
                await channel.wait_ready(60)
            _, writer = await asyncio.open_unix_connection(str(machine.socket))
            writer.write(RESET_PADDING)
            for piece in _garbage():
                writer.write(piece)
            async with asyncio.timeout(10):
                await writer.drain()
            await asyncio.sleep(0.5)
            writer.close()
            async with machine.channel() as channel:
                await channel.wait_ready(10)
                await channel.ping()

    asyncio.run(check())


def test_the_guest_powers_off_when_told(guests: Guests) -> None:
    async def check(machine: GuestMachine, channel: GuestChannel) -> None:
        await channel.start(shell("trap '' TERM; while :; do sleep 1; done"))
        await channel.power_off()
        async with asyncio.timeout(15):
            assert await machine.process.wait() == 0

    guests.run(check)


def test_a_running_guest_can_be_given_another_identity(guests: Guests) -> None:
    async def check(machine: GuestMachine, channel: GuestChannel) -> None:
        await channel.start(shell("sleep 1000"))
        clone = msgspec.structs.replace(CONFIG, host_name="clone", address="10.1.0.9", mac="02:11:22:33:44:77", machine_id="a" * 32)
        await channel.set_frozen(True)
        await channel.configure(clone)
        await channel.set_frozen(False)
        session = await channel.exec_start(shell("hostname; ip addr; ip route; cat /etc/machine-id"))
        text = (await _read_all(session)).decode()
        assert text.startswith("clone\n") and "10.1.0.9/32" in text and "10.1.0.2" not in text and "02:11:22:33:44:77" in text
        assert "default via 169.254.1.1" in text and "a" * 32 in text

    guests.run(check)


def test_a_template_resumes_as_several_machines_with_their_own_disks(guests: Guests) -> None:
    async def check() -> None:
        seen = []
        for name in ("first", "second"):
            async with guests.start({"name": name}) as clone:
                async with clone.channel() as channel:
                    await channel.wait_ready(20)
                    before_s = time.monotonic()
                    await channel.configure(msgspec.structs.replace(CONFIG, host_name=name))
                    configured_s = time.monotonic() - before_s
                    await channel.start(shell("echo $HOSTNAME; cat /name; echo; df / | grep vda; head -c 16 /dev/urandom | md5sum"))
                    assert await channel.wait_exit() == 0
                    correction = await channel.set_clock()
                    late_s = configured_s + correction.round_trip_ns / 2e9 + CLOCK_TOLERANCE_S
                    assert abs(correction.offset_ns) / 1e9 < late_s, "the date is that of CONFIGURE, not that of the template"
                seen.append(clone.log.text().split())
        for name, words in zip(("first", "second"), seen, strict=True):
            assert words[:3] == [name, name, "/dev/vda"]
        assert seen[0][-2] != seen[1][-2], "what one draws from the generator the other does not"

    asyncio.run(check())


def test_log_and_exec_session_go_on_in_a_machine_that_was_moved(guests: Guests, tmp_path: Path) -> None:
    script = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; sleep 5; exit 6"

    async def check() -> None:
        async with guests.start({}) as source:
            async with source.channel() as channel:
                await channel.wait_ready(60)
                await channel.configure(CONFIG)
                await channel.start(shell(script))
                session = await channel.exec_start(shell("while read line; do echo got $line; done; exit 4"))
                await session.write(b"one\n")
                assert (await anext(session.output())).data == b"got one\n"
                await source.log.wait_text("line 100\n")
                # The guest is stopped while the source's channel is open, in the middle of the log.
                await source.save_state(tmp_path / "state")
            async with boot_guest({}, tmp_path / "state", source.disk, source.log) as target:
                async with target.channel() as channel:
                    await channel.wait_ready(20)
                    again = await channel.exec_attach(session.id, session.output_position)
                    await again.write(b"two\n")
                    again.end_input()
                    assert [record.data async for record in again.output()][-1] == b"got two\n"
                    assert await again.wait() == 4
                    assert await channel.wait_exit() == 6
                assert target.log.text() == "".join(f"line {number}\n" for number in range(3000))

    asyncio.run(check())


def test_a_guest_without_a_host_does_not_spin(guests: Guests) -> None:
    async def check(machine: GuestMachine, channel: GuestChannel) -> None:
        await channel.start(shell("sleep 1000"))

    def cpu_s(machine: GuestMachine) -> float:
        fields = Path(f"/proc/{machine.process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def look(machine: GuestMachine) -> None:
        await asyncio.sleep(1)
        before_s = cpu_s(machine)
        await asyncio.sleep(3)
        assert cpu_s(machine) - before_s < 0.6, "processor seconds in three seconds; a spinning guest takes three"

    guests.run(check, then=look)


def test_boot_to_ready_is_fast(capsys: pytest.CaptureFixture[str]) -> None:
    async def check() -> None:
        async with boot_guest({}) as machine:
            async with machine.channel() as channel:
                ready = await channel.wait_ready(60)
            took_s = time.monotonic() - machine.boot_started_s
            with capsys.disabled():
                print(f" [ready {took_s:.2f} s after QEMU's start, {ready.uptime_ns / 1e9:.2f} s after the kernel's]", end="")

    asyncio.run(check())
