"""One real QEMU: it starts jailed, pauses, resumes, survives its agent, ends, and says why."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from architect.drafter.machine import Machine, destroy_machine, find_machine
from architect.drafter.machine_event import MachineEnded, MachineEvent, MachineResumed, MachineShutDown, MachineStopped
from architect.drafter.machine_options import BootFiles
from architect.drafter.qemu_process import find_process, identity_of
from architect.errors import ConflictError, HostError, IncompatibleError, NotFoundError, OutcomeUnknownError
from tests.host import machine_rig as rig

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def boot() -> BootFiles:
    rig.skip_unless_able()
    return rig.counting_guest()


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_a_guest_boots_stands_still_while_paused_and_goes_on(boot: BootFiles, tmp_path: Path) -> None:
    async def scenario() -> None:
        with rig.ram() as ram_fd:
            async with rig.running(rig.options(boot, tmp_path / "a", ram_fd)) as machine:
                await rig.order(machine, "count")
                await rig.wait_alive(machine.run_dir, 5)
                stopped_at = await machine.pause()
                assert abs(stopped_at - time.time()) < 60
                assert await machine.status() == "paused"
                assert await machine.pause() >= stopped_at  # idempotent
                stands_at = rig.alive(machine.run_dir)
                await asyncio.sleep(0.3)
                assert rig.alive(machine.run_dir) == stands_at
                assert await machine.resume() > stopped_at
                await machine.resume()
                await rig.wait_alive(machine.run_dir, stands_at + 5)

    asyncio.run(scenario())


def test_qemu_is_nobody_without_rights_in_a_session_of_its_own(boot: BootFiles, tmp_path: Path) -> None:
    async def scenario() -> None:
        with rig.ram() as ram_fd:
            async with rig.running(rig.options(boot, tmp_path / "a", ram_fd, shim=rig.SHIM, uid=64055)) as machine:
                pid = machine.qemu_pid
                status = status_of(pid)
                assert status["Uid"].split() == status["Gid"].split() == ["64055"] * 4
                assert status["Groups"] == ""
                assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
                assert status["NoNewPrivs"] == "1"
                assert status["Seccomp"] == "2"
                assert os.getsid(pid) == pid
                assert os.getpgid(pid) == pid
                assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "300"
                assert os.readlink(f"/proc/{pid}/fd/900") == "anon_inode:[userfaultfd]"
                assert machine.has_uffd
                links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
                assert "/dev/userfaultfd" not in links  # the shim has closed what it inherited
                assert "LD_PRELOAD" not in Path(f"/proc/{pid}/maps").read_text()

    asyncio.run(scenario())


def test_a_shim_that_makes_no_userfaultfd_is_named_at_once(boot: BootFiles, tmp_path: Path) -> None:
    async def scenario() -> None:
        with rig.ram() as ram_fd:
            with pytest.raises(HostError, match="made no userfaultfd"):
                await Machine.start(rig.options(boot, tmp_path / "a", ram_fd, shim=Path("/usr/lib/os-release")))
            with pytest.raises(HostError, match=r"missing.so: No such file .*make setup"):
                await Machine.start(rig.options(boot, tmp_path / "a", ram_fd, shim=tmp_path / "missing.so"))
        assert find_machine(tmp_path / "a") is None

    asyncio.run(scenario())


def test_the_shim_may_lie_where_the_machines_user_cannot_go(boot: BootFiles, tmp_path: Path) -> None:
    """As in a clone below /root."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    shutil.copy(rig.SHIM, closed / "shim.so")

    async def scenario() -> None:
        with rig.ram() as ram_fd:
            options = rig.options(boot, tmp_path / "a", ram_fd, shim=closed / "shim.so", uid=64055)
            async with rig.running(options) as machine:
                assert machine.has_uffd

    asyncio.run(scenario())


def test_a_machine_outlives_its_agent_and_is_found_again(boot: BootFiles, tmp_path: Path) -> None:
    agent_code = """
import asyncio, sys
from pathlib import Path
from architect.drafter.machine_options import BootFiles
from tests.host import machine_rig as rig
async def main():
    with rig.ram() as ram_fd:
        boot = BootFiles(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
        machine = await rig.Machine.start(rig.options(boot, Path(sys.argv[4]), ram_fd))
        await rig.order(machine, "count")
        print(machine.qemu_pid, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""
    folder = tmp_path / "a"

    arguments = [str(boot.kernel), str(boot.initramfs), boot.arguments, str(folder)]
    with subprocess.Popen([sys.executable, "-c", agent_code, *arguments], stdout=subprocess.PIPE, cwd=rig.ROOT) as agent:
        try:
            assert agent.stdout is not None
            pid = int(agent.stdout.readline())
        finally:
            agent.send_signal(signal.SIGKILL)

    async def scenario() -> None:
        try:
            machine = await Machine.reattach(folder)
            assert machine.qemu_pid == pid
            assert machine.spec == rig.SPEC
            assert await machine.status() == "running"
            await rig.wait_alive(folder, rig.alive(folder) + 5)
            await machine.detach()
            machine = await Machine.reattach(folder)  # and again, by the next one
            await machine.pause()
            await machine.quit()
            assert find_machine(folder) is None
        finally:
            await destroy_machine(folder)
        with pytest.raises(NotFoundError):
            await Machine.reattach(folder)

    asyncio.run(scenario())


def test_another_process_with_the_same_pid_is_never_taken_for_it(tmp_path: Path) -> None:
    rig.skip_unless_able()

    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            identity = identity_of(stranger.pid)
            find_process(identity).close()
            older = msgspec.structs.replace(identity, start_ticks=identity.start_ticks - 1)
            rebooted = msgspec.structs.replace(identity, boot_id="another")
            for wrong in (older, rebooted):
                with pytest.raises(NotFoundError):
                    find_process(wrong)
            asyncio.run(destroy_machine(tmp_path))
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_machine_whose_record_was_never_written_is_found_refused_and_destroyed(boot: BootFiles, tmp_path: Path) -> None:
    folder = tmp_path / "a"

    async def scenario() -> None:
        with rig.ram() as ram_fd:
            machine = await Machine.start(rig.options(boot, folder, ram_fd))
            try:
                (folder / "machine.json").unlink()
                with pytest.raises(ConflictError):
                    await Machine.start(rig.options(boot, folder, ram_fd))
                assert await machine.status() == "running"
            finally:
                await destroy_machine(folder)
            assert find_machine(folder) is None
            await destroy_machine(folder)  # idempotent
            await machine.kill()

    asyncio.run(scenario())


def test_a_monitor_that_does_not_answer_keeps_nobody_from_ending_the_machine(
    boot: BootFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        with rig.ram() as ram_fd:
            async with rig.running(rig.options(boot, tmp_path / "a", ram_fd)) as machine:
                os.kill(machine.qemu_pid, signal.SIGSTOP)
                with pytest.raises(OutcomeUnknownError):
                    await machine.pause(timeout_s=0.2)
                assert "CPU 0/TCG: do_signal_stop" in caplog.text, "where QEMU's threads stand, not the agent's"
                await machine.quit(timeout_s=0.2)
                assert not machine.is_running
                await machine.quit()

    asyncio.run(scenario())


@pytest.mark.parametrize(("word", "reason"), [("exit", "guest-shutdown"), ("panic", "guest-reset")])
def test_a_guest_that_ends_ends_its_qemu_and_the_last_event_says_how(
    boot: BootFiles, tmp_path: Path, word: str, reason: str
) -> None:
    async def scenario() -> list[MachineEvent]:
        with rig.ram() as ram_fd:
            async with rig.running(rig.options(boot, tmp_path / "a", ram_fd)) as machine:
                async with contextlib.aclosing(machine.events()) as events:
                    await machine.pause()
                    await machine.resume()
                    with contextlib.suppress(AssertionError):  # it may be gone before its ORDER line is seen
                        await rig.order(machine, word)
                    async with asyncio.timeout(60):
                        return [event async for event in events]

    events = asyncio.run(scenario())
    assert isinstance(events[0], MachineStopped)
    assert isinstance(events[1], MachineResumed)
    assert [event.reason for event in events if isinstance(event, MachineShutDown)] == [reason]
    last = events[-1]
    assert isinstance(last, MachineEnded)
    assert (last.exit_status, last.shutdown) == (0, reason)


def test_a_killed_qemu_is_reported_without_a_shutdown(boot: BootFiles, tmp_path: Path) -> None:
    async def scenario() -> MachineEvent:
        with rig.ram() as ram_fd:
            async with rig.running(rig.options(boot, tmp_path / "a", ram_fd)) as machine:
                async with contextlib.aclosing(machine.events()) as events:
                    os.kill(machine.qemu_pid, signal.SIGKILL)
                    return [event async for event in events][-1]

    last = asyncio.run(scenario())
    assert isinstance(last, MachineEnded)
    assert (last.exit_status, last.shutdown) == (-9, "")


def test_a_qemu_that_ends_at_once_is_a_host_error_with_its_last_words(boot: BootFiles, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"no kernel" * 1000)
    kernel.chmod(0o644)

    async def scenario() -> None:
        with rig.ram() as ram_fd:
            with pytest.raises(HostError, match="kernel"):
                await Machine.start(rig.options(msgspec.structs.replace(boot, kernel=kernel), tmp_path / "a", ram_fd))
            with pytest.raises(HostError, match="No such file"):
                await Machine.start(rig.options(boot, tmp_path / "b", ram_fd, binary="/nowhere/qemu"))
        assert find_machine(tmp_path / "a") is None

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "change", [{"cpu_model": "Nehalem-v2,+avx512f"}, {"cpu_model": "Zebra-v1"}, {"machine": "pc-q35-99.9"}], ids=str
)
def test_hardware_that_this_qemu_cannot_build_is_incompatible(boot: BootFiles, tmp_path: Path, change: dict[str, str]) -> None:
    async def scenario() -> None:
        with rig.ram() as ram_fd:
            spec = msgspec.structs.replace(rig.SPEC, **change)
            with pytest.raises(IncompatibleError):
                await Machine.start(rig.options(boot, tmp_path / "a", ram_fd, spec=spec))

    asyncio.run(scenario())


def test_the_spec_of_every_vm_is_built_without_a_warning(boot: BootFiles, tmp_path: Path) -> None:
    async def scenario() -> None:
        with rig.ram() as ram_fd:
            async with rig.running(rig.options(boot, tmp_path / "a", ram_fd, paused=True)) as machine:
                assert await machine.status() == "prelaunch"
                assert machine.last_words() == ""

    asyncio.run(scenario())


def test_device_state_of_a_running_guest_is_refused(boot: BootFiles, tmp_path: Path) -> None:
    async def scenario() -> None:
        with rig.ram() as ram_fd:
            async with rig.running(rig.options(boot, tmp_path / "a", ram_fd)) as machine:
                with pytest.raises(ConflictError):
                    await machine.save_device_state()
                assert await machine.status() == "running"

    asyncio.run(scenario())


def test_device_state_of_other_hardware_is_incompatible(boot: BootFiles, tmp_path: Path) -> None:
    async def scenario() -> None:
        with rig.ram() as ram_fd, rig.ram() as other_fd:
            async with rig.running(rig.options(boot, tmp_path / "a", ram_fd)) as machine:
                await machine.pause()
                state = await machine.save_device_state()
            two = msgspec.structs.replace(rig.SPEC, cpus=2)
            for folder, wrong in (("b", state[: len(state) // 2]), ("c", b"QEVM" + bytes(5000)), ("d", b"garbage"), ("e", b"")):
                async with rig.running(rig.options(boot, tmp_path / folder, other_fd, incoming=True)) as target:
                    with pytest.raises(IncompatibleError):
                        await target.load_device_state(wrong)
            async with rig.running(rig.options(boot, tmp_path / "two", other_fd, spec=two, paused=True)) as machine:
                state = await machine.save_device_state()
            async with rig.running(rig.options(boot, tmp_path / "one", other_fd, incoming=True)) as target:
                with pytest.raises(IncompatibleError):
                    await target.load_device_state(state)

    asyncio.run(scenario())


def test_the_console_log_is_bounded(boot: BootFiles, tmp_path: Path) -> None:
    async def scenario() -> None:
        with rig.ram() as ram_fd:
            async with rig.running(rig.options(boot, tmp_path / "a", ram_fd)) as machine:
                await rig.order(machine, "count")
                await rig.wait_alive(machine.run_dir, 20)
                machine.trim_console(bytes_max=10)
                assert (machine.run_dir / "console.log").stat().st_size < 100
                await rig.wait_alive(machine.run_dir, 25)

    asyncio.run(scenario())
