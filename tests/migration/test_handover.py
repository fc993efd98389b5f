"""Both services together, over real channels in a simulated fabric without faults: who may ask what, and what is reported."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from architect.errors import ArchitectError, ConflictError, IncompatibleError, NotFoundError, PeerError, UnavailableError
from architect.migration import HandoverSource, HandoverTarget, TargetPorts, error_of_report
from architect.model.handover_state import HandoverState, MigrationMode
from architect.model.ids import HostName, MigrationId, VmId
from architect.model.ownership import OwnershipRecord
from architect.testing.sim_agent_moves import RECORD_TIMEOUT_S
from architect.testing.sim_scenario import draw_scenario
from architect.testing.simulator import VM, Simulation
from architect.testing.virtual_clock import VirtualLoop, run_virtual
from architect.wire.agent_messages import MigrateVm, MigrationReport
from architect.wire.framing import PROTOCOL_VERSION
from architect.wire.migration_messages import Alive, AskStatus, Hold, PeerHello, PeerWelcome, Prepare, Release, Released
from tests.kept_memory import counting_memory, kept_bytes

WARM_UP_MOVES, COUNTED_MOVES = 4, 8
KEPT_BYTES_MAX = 2048
"""Of a move that is over, at both hosts together; its report alone has some 15 KiB."""

QUIET = msgspec.structs.replace(draw_scenario(8), faults=(), moves=(), has_base_everywhere=False)


class Fabric(Simulation):
    """A simulation that plays a test instead of a scenario."""

    def __init__(self, loop: VirtualLoop, test: Callable[[Fabric], Awaitable[None]]) -> None:
        super().__init__(loop, QUIET, None)
        self._test = test
        self.was_played = False

    async def play(self) -> None:
        await self.start()
        await self._test(self)
        self.was_played = True

    def source(self, name: str = "h1") -> HandoverSource:
        agent = self.hosts[name].agent
        assert agent is not None
        return agent.source

    def target(self, name: str = "h2") -> HandoverTarget:
        agent = self.hosts[name].agent
        assert agent is not None
        return agent.target

    def request(
        self, number: int = 1, target: str = "h2", mode: MigrationMode = MigrationMode.AUTO, verify: bool = False
    ) -> MigrateVm:
        return MigrateVm(MigrationId(f"mig-{number:012x}"), VM, self.hosts[target].facts, mode, None, verify)

    async def ask(self, request: MigrateVm, name: str = "h1") -> MigrationReport:
        return await self.ask_agent(self.hosts[name], request)

    def reserve_slowly(self, monkeypatch: pytest.MonkeyPatch, delay_s: float) -> None:
        """From now on the target takes its time to reserve what a VM needs."""
        agent = self.hosts["h2"].agent
        assert agent is not None
        reserve = agent.moves.reserve

        async def reserve_late(request: Prepare) -> TargetPorts:
            await asyncio.sleep(delay_s)
            return await reserve(request)

        monkeypatch.setattr(agent.moves, "reserve", reserve_late)


def play(test: Callable[[Fabric], Awaitable[None]]) -> None:
    async def main(loop: VirtualLoop) -> None:
        fabric = Fabric(loop, test)
        await fabric.run()
        assert fabric.was_played and not fabric.world.judge.violations, fabric.world.judge.violations

    run_virtual(main)


def test_a_report_has_its_phases_its_pause_and_its_bytes() -> None:
    async def test(fabric: Fabric) -> None:
        report = await fabric.ask(fabric.request(verify=True))
        names = [phase.name for phase in report.phases]
        assert report.state is HandoverState.DONE and error_of_report(report) is None
        assert [name for name in names if not name.startswith(("round", "wait"))][:6] == [
            "connect", "prepare", "base", "start", "open", "bulk",
        ]  # fmt: skip
        assert {"pause", "cut", "verify", "commit", "target-load", "target-claim", "target-resume", "destroy"} <= set(names)
        assert all(0 <= phase.start_s <= phase.end_s <= report.total_s for phase in report.phases)
        pause_ms = report.downtime_ms
        assert pause_ms is not None and 1 < pause_ms < 100, "two full hashes of 500 ms each are not part of the pause"
        assert report.verified is True and report.progress == 1.0
        assert report.bytes_sent >= report.memory_bytes + report.disk_bytes_sent + fabric.vm.spec.base.size_bytes

    play(test)


def test_a_report_has_the_spans_of_all_sides_in_the_order_of_time() -> None:
    async def test(fabric: Fabric) -> None:
        report = await fabric.ask(fabric.request())
        at = {(span.side.value, span.name): span for span in report.spans}
        way = [
            ("target", "start-machine"), ("source", "bulk"), ("guest", "hook-suspend"), ("source", "pause"),
            ("source", "save-state"), ("source", "cut"), ("target", "apply"), ("target", "load"), ("target", "claim"),
            ("target", "resume"), ("guest", "sync-clock"), ("source", "release"), ("source", "destroy"),
        ]  # fmt: skip
        starts = [at[step].start_s for step in way]
        assert starts == sorted(starts)
        assert at["source", "save-state"].parent == "last-round" and not at["source", "last-round"].parent
        assert at["guest", "first-packet"].end_s <= at["source", "destroy"].start_s, "the source's copy goes when the guest is seen"
        commit = at["source", "commit"]
        assert commit.start_s < at["target", "apply"].start_s and at["target", "resume"].end_s < commit.end_s
        assert report.clock_error_ms is not None and 0 < report.clock_error_ms < 50

    play(test)


def test_a_second_move_of_a_vm_that_moves_is_a_conflict() -> None:
    async def test(fabric: Fabric) -> None:
        first = asyncio.create_task(fabric.ask(fabric.request(1)))
        await asyncio.sleep(0.2)
        with pytest.raises(ConflictError, match="moved"):
            await fabric.ask(fabric.request(2, target="h3"))
        assert (await first).state is HandoverState.DONE

    play(test)


def test_a_handover_that_is_over_is_still_known_at_the_target_and_nothing_of_its_session_is_kept() -> None:
    async def test(fabric: Fabric) -> None:
        request = fabric.request()
        assert (await fabric.ask(request)).state is HandoverState.DONE
        await asyncio.sleep(1)  # of virtual time: it is greeted
        kept = fabric.target().ended(request.migration)
        assert kept is not None
        assert isinstance(kept.answer(Release(request.migration)), Released), "the answer to the first may have been lost"
        assert kept.answer(AskStatus(request.migration)) == kept.status
        assert (kept.status.state, kept.owns, kept.source) == (HandoverState.DONE, True, HostName("h1"))
        with pytest.raises(ConflictError, match="is running at the target"):
            kept.answer(Hold(request.migration))
        with pytest.raises(NotFoundError):
            fabric.target().session(request.migration)

    play(test)


def test_hosts_keep_little_of_moves_that_are_over() -> None:
    async def test(fabric: Fabric) -> None:
        ends, kept = ("h1", "h2"), []
        for number in range(1, WARM_UP_MOVES + COUNTED_MOVES + 1):
            source, target = ends if number % 2 else ends[::-1]
            assert (await fabric.ask(fabric.request(number, target), source)).state is HandoverState.DONE
            await asyncio.sleep(2)  # of virtual time: the VM is greeted, the session is over
            kept.append(kept_bytes() if number in (WARM_UP_MOVES, WARM_UP_MOVES + COUNTED_MOVES) else 0)
        assert (kept[-1] - kept[WARM_UP_MOVES - 1]) / COUNTED_MOVES < KEPT_BYTES_MAX

    with counting_memory():
        play(test)


def test_asking_again_by_the_same_id_joins_the_move_and_later_reports_its_end() -> None:
    async def test(fabric: Fabric) -> None:
        first = asyncio.create_task(fabric.ask(fabric.request(1)))
        await asyncio.sleep(0.2)
        joined = asyncio.create_task(fabric.ask(fabric.request(1)))
        assert await first == await joined == await fabric.ask(fabric.request(1))

    play(test)


def test_every_step_is_told_to_who_asked_and_the_last_word_is_the_answer() -> None:
    async def test(fabric: Fabric) -> None:
        told: list[MigrationReport] = []
        report = await fabric.ask_agent(fabric.hosts["h1"], fabric.request(1), told.append)
        assert [state for state in HandoverState if state in {r.state for r in told}] == [
            HandoverState.PREPARING, HandoverState.PRECOPY, HandoverState.SWITCHOVER, HandoverState.COMMITTED, HandoverState.DONE,
        ]  # fmt: skip
        assert told[-1] == report

    play(test)


@pytest.mark.parametrize("point", ["machine.start-incoming", "memory.bulk", "flows.hold", "machine.pause", "memory.cut"])
def test_a_move_that_is_given_up_is_undone_at_once_and_the_vm_runs_on(point: str) -> None:
    async def test(fabric: Fabric) -> None:
        request = fabric.request(1)
        told: list[MigrationReport] = []

        def give_up_there(number: int, phase: str, process: object, name: str) -> None:
            if name == point and phase == "before":
                fabric.source().give_up(request.migration, "it is to be stopped")

        fabric.world.on_call = give_up_there
        report = await fabric.ask_agent(fabric.hosts["h1"], request, told.append)
        assert (report.state, report.reason) == (HandoverState.FAILED, "it is to be stopped")
        assert [copy.host.name for copy in fabric.vm.running()] == ["h1"]
        newest = fabric.ownership.newest(VM)
        assert newest is not None and newest.term == 1, "no record was needed"
        fabric.world.on_call = lambda *_: None
        assert (await fabric.ask(fabric.request(2))).state is HandoverState.DONE

    play(test)


def test_a_move_is_given_up_in_the_middle_of_a_copy() -> None:
    async def test(fabric: Fabric) -> None:
        request = fabric.request(1)
        phases: list[str] = []

        def give_up_there(number: int, phase: str, process: object, name: str) -> None:
            if name == "memory.bulk":
                phases.append(phase)
                fabric.source().give_up(request.migration, "it is to be stopped")

        fabric.world.on_call = give_up_there
        assert (await fabric.ask(request)).reason == "it is to be stopped"
        assert phases == ["before"], "the copy was not waited for"

    play(test)


def test_a_move_past_its_cut_is_not_given_up() -> None:
    async def test(fabric: Fabric) -> None:
        request = fabric.request(1)

        def give_up_there(number: int, phase: str, process: object, name: str) -> None:
            if name == "store.create":
                fabric.source().give_up(request.migration, "it is to be stopped")

        fabric.world.on_call = give_up_there
        assert (await fabric.ask(request)).state is HandoverState.DONE
        assert [copy.host.name for copy in fabric.vm.running()] == ["h2"]

    play(test)


def test_a_move_that_was_given_up_before_it_was_asked_for_is_refused() -> None:
    async def test(fabric: Fabric) -> None:
        request = fabric.request(1)
        fabric.source().give_up(request.migration, "it is to be stopped")
        with pytest.raises(ConflictError, match="it is to be stopped"):
            await fabric.ask(request)
        assert (await fabric.ask(fabric.request(2))).state is HandoverState.DONE

    play(test)


def test_a_vm_that_is_not_here_is_not_found() -> None:
    async def test(fabric: Fabric) -> None:
        with pytest.raises(NotFoundError):
            await fabric.ask(fabric.request(1), name="h3")

    play(test)


def test_a_target_that_does_not_fit_refuses_by_name_and_nothing_has_changed() -> None:
    async def test(fabric: Fabric) -> None:
        fabric.target().facts = msgspec.structs.replace(fabric.target().facts, kernel_sha256="other")
        report = await fabric.ask(fabric.request(1))
        assert report.state is HandoverState.FAILED and "another guest kernel" in report.reason
        assert isinstance(error_of_report(report), ArchitectError)
        newest = fabric.ownership.newest(VM)
        assert newest is not None and newest.term == 1
        assert fabric.vm.running()[0].host.name == "h1" and not fabric.hosts["h2"].arriving

    play(test)


def test_a_target_that_is_slow_to_reserve_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(fabric: Fabric) -> None:
        fabric.reserve_slowly(monkeypatch, 4)
        report = await fabric.ask(fabric.request(1))
        assert (report.state, report.reason) == (HandoverState.DONE, "")

    play(test)


def test_what_a_target_lacks_is_a_part_of_the_reason_once(monkeypatch: pytest.MonkeyPatch) -> None:
    full = "host h2: its file system /srv is full: free some space there, or choose another host"

    async def test(fabric: Fabric) -> None:
        agent = fabric.hosts["h2"].agent
        assert agent is not None
        monkeypatch.setattr(agent.moves, "shortage", lambda: full)

        def kill_the_mirror(number: int, phase: str, process: object, name: str) -> None:
            if name == "mirror.progress" and phase == "before":
                fabric.hosts["h2"].kill_memory(VM)

        fabric.world.on_call = kill_the_mirror
        report = await fabric.ask(fabric.request(1))
        assert (report.state, report.reason.count(full)) == (HandoverState.FAILED, 1), report.reason
        assert not report.reason.startswith("host h2: its file system"), "what failed is said first"
        assert fabric.vm.running()[0].host.name == "h1"

    play(test)


def test_a_vm_that_still_fills_cannot_move_on() -> None:
    async def test(fabric: Fabric) -> None:
        first = asyncio.create_task(fabric.ask(fabric.request(1, mode=MigrationMode.POSTCOPY)))
        await _fills(fabric)
        with pytest.raises(ConflictError, match="still arriving"):
            await fabric.target().let_go(VM)
        await first

    play(test)


@pytest.mark.parametrize("resets", [False, True])
def test_a_post_copy_whose_hosts_are_cut_off_from_each_other_ends_well_when_they_are_not_any_more(resets: bool) -> None:
    async def test(fabric: Fabric) -> None:
        moving = asyncio.create_task(fabric.ask(fabric.request(1, mode=MigrationMode.POSTCOPY)))
        await _fills(fabric)
        fabric.network.cut("h1", "h2", 500, resets=resets)
        await asyncio.sleep(499)
        agent = fabric.hosts["h2"].agent
        assert agent is not None and "host h1, which has not been reached since" in agent.waits[VM] and not moving.done()
        report = await moving
        assert (report.state, report.reason) == (HandoverState.DONE, "") and not agent.waits[VM]
        assert [copy.host.name for copy in fabric.vm.running()] == ["h2"]

    play(test)


def test_a_post_copy_whose_source_is_said_to_be_gone_is_lost_only_if_it_is_not_reached_either() -> None:
    async def test(fabric: Fabric) -> None:
        moving = asyncio.create_task(fabric.ask(fabric.request(1, mode=MigrationMode.POSTCOPY)))
        await _fills(fabric)
        fabric.target().source_is_gone(HostName("h1"), "its provider has it no more")
        assert (await moving).state is HandoverState.DONE
        moving = asyncio.create_task(fabric.ask(fabric.request(2, target="h3", mode=MigrationMode.POSTCOPY), "h2"))
        while not any(copy.host.name == "h3" for copy in fabric.vm.running()):  # noqa: ASYNC110
            await asyncio.sleep(0.0005)
        fabric.network.cut("h2", "h3", 30)
        await asyncio.sleep(10)
        fabric.target("h3").source_is_gone(HostName("h2"), "its provider has it no more")
        fabric.target("h3").source_is_gone(HostName("h1"), "and another one has nothing to do with it")
        await asyncio.sleep(2)
        reason = fabric.hosts["h3"].records[VM].reason
        assert "still at host h2, which is gone: its provider has it no more" in reason and not fabric.vm.running()
        fabric.world.judge.excuse(VM, "it was said")
        report = await moving
        assert (report.state, report.reason) == (HandoverState.LOST, reason)

    play(test)


async def _fills(fabric: Fabric) -> None:
    """Until the VM runs at the target."""
    for _ in range(10_000):
        if any(copy.host.name == "h2" for copy in fabric.vm.running()):
            return
        await asyncio.sleep(0.0005)
    raise AssertionError("the VM does not come to run at h2")


@pytest.mark.parametrize("agent_dies_too", [False, True])
def test_a_post_copy_whose_source_loses_its_qemu_ends_well(agent_dies_too: bool) -> None:
    async def test(fabric: Fabric) -> None:
        source = fabric.hosts["h1"]
        moving = asyncio.create_task(fabric.ask(fabric.request(1, mode=MigrationMode.POSTCOPY)))
        await _fills(fabric)
        source.kill_qemu(VM)
        if agent_dies_too:
            source.kill_agent("with its QEMU")
            with pytest.raises(ArchitectError, match="ask again"):
                await moving
            while len(fabric.vm.copies) > 1 and VM in source.qemus:  # noqa: ASYNC110 nothing else tells that it is over
                await asyncio.sleep(0.1)
        else:
            report = await moving
            assert (report.state, report.reason) == (HandoverState.DONE, "")
        assert [copy.host.name for copy in fabric.vm.running()] == ["h2"]

    play(test)


def test_a_source_whose_target_lost_its_agent_has_pages_served_while_it_asks() -> None:
    """The agent that is started there may have to wait for one of them, before its QEMU answers and it knows the move."""

    async def test(fabric: Fabric) -> None:
        names: list[str] = []

        def kill_there(number: int, phase: str, process: object, name: str) -> None:
            names.append(name)
            if (name, phase) == ("memory.serve", "before") and names.count(name) == 1:
                fabric.hosts["h2"].kill_agent("before anything is served")

        fabric.world.on_call = kill_there
        report = await fabric.ask(fabric.request(1, mode=MigrationMode.POSTCOPY))
        assert (report.state, report.reason) == (HandoverState.DONE, "")
        assert names.index("memory.serve") < names.index("memory.start-serving")

    play(test)


@pytest.mark.parametrize(
    ("host", "when", "point"),
    [
        ("h1", "before", "memory.bulk"),
        ("h2", "before", "memory.bulk"),
        ("h2", "before", "disk.stop-export"),
        ("h2", "after", "machine.load"),
    ],
)
def test_a_move_that_fails_because_a_qemu_has_ended_says_so_and_not_what_that_has_made(host: str, when: str, point: str) -> None:
    async def test(fabric: Fabric) -> None:
        def kill_there(number: int, phase: str, process: object, name: str) -> None:
            if (name, phase) == (point, when):
                fabric.hosts[host].kill_qemu(VM)

        fabric.world.on_call = kill_there
        report = await fabric.ask(fabric.request(1))
        assert (report.state, report.reason) == (HandoverState.FAILED, f"QEMU of vm {VM} on host {host} ended")

    play(test)


def test_a_host_that_does_not_own_the_vm_ends_no_move_by_asking_for_another() -> None:
    async def test(fabric: Fabric) -> None:
        moving = asyncio.create_task(fabric.ask(fabric.request(1)))
        await asyncio.sleep(0.2)
        stranger = Prepare(MigrationId("mig-000000000002"), fabric.vm.spec, 1, fabric.hosts["h3"].facts, MigrationMode.AUTO)
        with pytest.raises(ConflictError, match="it is host h1's, not host h3's to move"):
            await fabric.target().prepare(stranger)
        assert (await moving).state is HandoverState.DONE

    play(test)


def test_a_target_whose_ownership_log_hangs_refuses_a_retry_before_its_source_has_given_up_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(fabric: Fabric) -> None:
        moving = asyncio.create_task(fabric.ask(fabric.request(1)))
        await asyncio.sleep(0.2)
        fabric.network.cut("h1", "h2", 20)  # what has begun stays as it is
        agent = fabric.hosts["h2"].agent
        assert agent is not None
        limits, answered = fabric.hosts["h2"].limits, agent.moves.latest_record

        async def find_late(_: VmId) -> None:
            await asyncio.sleep(limits.leftover_timeout_s - 0.5)

        async def answer_late(vm: VmId) -> OwnershipRecord | None:
            await asyncio.sleep(RECORD_TIMEOUT_S - 0.1)
            return await answered(vm)

        monkeypatch.setattr(agent.moves, "wait_known", find_late)
        monkeypatch.setattr(agent.moves, "latest_record", answer_late)
        again = Prepare(MigrationId("mig-000000000002"), fabric.vm.spec, 1, fabric.hosts["h1"].facts, MigrationMode.AUTO)
        async with asyncio.timeout(limits.machine_timeout_s):
            with pytest.raises(UnavailableError, match="host h2 has of an earlier move of it could not be ended in 8 s"):
                await fabric.target().prepare(again)
        assert (await moving).state.is_terminal and len(fabric.vm.running()) == 1

    play(test)


def test_a_vm_is_prepared_for_by_one_handover_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(fabric: Fabric) -> None:
        fabric.reserve_slowly(monkeypatch, 1)
        moving = asyncio.create_task(fabric.ask(fabric.request(1)))
        await asyncio.sleep(0.5)
        again = Prepare(MigrationId("mig-000000000002"), fabric.vm.spec, 1, fabric.hosts["h1"].facts, MigrationMode.AUTO)
        with pytest.raises(ConflictError, match="is being prepared for it by another move"):
            await fabric.target().prepare(again)
        assert (await moving).state is HandoverState.DONE

    play(test)


def test_the_first_message_must_be_a_hello_of_this_version_and_of_the_host_in_the_certificate() -> None:
    async def test(fabric: Fabric) -> None:
        connection = fabric.target().connection(HostName("h1"))
        with pytest.raises(PeerError, match="before PeerHello"):
            await connection.handle(Alive(MigrationId("mig-000000000001")), b"", None)
        with pytest.raises(IncompatibleError, match="version"):
            await connection.handle(PeerHello(PROTOCOL_VERSION + 1, HostName("h1")), b"", None)
        with pytest.raises(PeerError, match="h3"):
            await connection.handle(PeerHello(PROTOCOL_VERSION, HostName("h3")), b"", None)
        welcome = await connection.handle(PeerHello(PROTOCOL_VERSION, HostName("h1")), b"", None)
        assert welcome == PeerWelcome(PROTOCOL_VERSION, HostName("h2"))
        with pytest.raises(NotFoundError):
            await connection.handle(AskStatus(MigrationId("mig-000000000001")), b"", None)

    play(test)


def test_a_host_can_speak_only_for_handovers_of_which_it_is_the_source() -> None:
    async def test(fabric: Fabric) -> None:
        await fabric.ask(fabric.request(1))
        stranger = fabric.target().connection(HostName("h3"))
        await stranger.handle(PeerHello(PROTOCOL_VERSION, HostName("h3")), b"", None)
        with pytest.raises(PeerError, match="not the source"):
            await stranger.handle(AskStatus(MigrationId("mig-000000000001")), b"", None)

    play(test)
