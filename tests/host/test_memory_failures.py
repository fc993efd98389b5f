"""What kills, garbage and lost peers do to a move of memory."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from architect.errors import ArchitectError, ConflictError, HandoverError, LostError, UnavailableError
from architect.runtime.certificates import make_ca, make_certificate
from architect.silo.memory_client import MemoryProcess, MemoryStartError
from architect.silo.memory_role import MemoryRole
from tests.host.memory_rig import ADDRESS, Host, Rig, connect, cut_over, pair, rig, wait_gone

pytestmark = pytest.mark.host
SLOW_BYTES_S = 1 << 20  # so that what is to be interrupted has not ended before, however late the interruption comes


async def _finish_precopy(source: Host, target: Host) -> None:
    await source.memory.bulk()
    await source.memory.round()
    cut = await cut_over(source, target, postcopy=False)
    assert cut.root == await target.memory.full_hash()
    await asyncio.to_thread(target.guest.check)


async def _rounds(source: Host) -> None:
    for _ in range(100):
        await source.memory.round()


_GARBAGE = """
import os, socket, ssl, sys
port, tls = int(sys.argv[1]), sys.argv[2]
for data in (b"", b"GET / HTTP/1.0\\r\\n\\r\\n", os.urandom(70000)):
    with socket.create_connection(("127.0.0.1", port)) as plain:
        plain.sendall(data)
        plain.settimeout(10)
        try:
            plain.recv(1000)
        except OSError:
            pass
context = ssl.create_default_context(cafile=tls + "/ca.pem")
context.check_hostname = False
try:  # TLS, but no certificate
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port))) as secure:
        secure.sendall(b"x" * 100)
        assert secure.recv(1000) == b""
except OSError:
    pass
context.load_cert_chain(tls + "/cert.pem", tls + "/cert.key")
for data in (b"\\xff" * 8, b"\\0\\0\\0\\1\\0\\0\\0\\0\\x80", os.urandom(5000)):  # a fabric's certificate, but no Hello
    try:
        with context.wrap_socket(socket.create_connection(("127.0.0.1", port))) as secure:
            secure.sendall(data)
            secure.settimeout(10)
            secure.recv(1000)
    except OSError:
        pass
"""


def test_garbage_on_the_data_port_is_refused_with_a_line_each_and_harms_no_move() -> None:
    async def move() -> None:
        source = await made.host("alpha", MemoryRole.FRESH)
        source.guest.fill(70)
        source.guest.run(100, 0)
        target = await made.host("beta", MemoryRole.INCOMING)
        endpoint = await target.memory.open_target("secret-1", ADDRESS)
        options = made.source_options(endpoint.port, "wrong-secret")
        with pytest.raises(UnavailableError, match="unknown session"):
            await source.memory.open_source(options)
        make_ca(made.folder / "strange-ca")
        make_certificate(made.folder / "strange-ca", made.folder / "tls-strange", "agent:alpha")
        stranger = await made.host("strange", MemoryRole.FRESH)
        with pytest.raises(UnavailableError):
            await stranger.memory.open_source(made.source_options(endpoint.port, "secret-1"))
        await source.memory.open_source(made.source_options(endpoint.port, "secret-1"))
        command = ["ip", "netns", "exec", made.namespace, sys.executable, "-c", _GARBAGE, str(endpoint.port)]
        await asyncio.to_thread(subprocess.run, [*command, str(made.folder / "tls-alpha")], check=True, timeout=60)
        log = (target.run_dir / "memory.log").read_text()
        assert log.count("refused memory process at") >= 8
        assert "Traceback" not in log
        await _finish_precopy(source, target)

    with rig() as made:
        asyncio.run(move())


def test_a_target_killed_in_precopy_fails_the_round_and_the_source_moves_to_another_target() -> None:
    async def move() -> None:
        async with pair(made) as (source, target):
            source.guest.run(0, 1000)
            await source.memory.bulk()
            await target.kill_memory()
            with pytest.raises(UnavailableError):
                await _rounds(source)
            await source.memory.abort_source()
            other = await made.host("gamma", MemoryRole.INCOMING, tls="beta")
            await connect(source, other, session="secret-2")
            await _finish_precopy(source, other)

    with rig() as made:
        asyncio.run(move())


def test_a_source_process_killed_in_precopy_is_restarted_and_moves_all_pages_again() -> None:
    async def move() -> None:
        async with pair(made) as (source, target):
            source.guest.run(0, 1000)
            await source.memory.bulk()
            round_task = asyncio.create_task(source.memory.round())
            await asyncio.sleep(0.005)
            await source.restart_memory()
            await asyncio.wait([round_task])
            status = await source.memory.status()
            assert (status.state, status.role) == ("tracking", "fresh")
            with pytest.raises(ArchitectError):
                await target.memory.apply_cut("00", postcopy=False)
            await target.memory.abort_target()
            await connect(source, target, session="secret-2")
            await _finish_precopy(source, target)

    with rig() as made:
        asyncio.run(move())


@pytest.mark.parametrize("who", ["source", "target", "both"])
def test_a_memory_process_killed_in_postcopy_is_restarted_and_the_guest_goes_on(who: str) -> None:
    async def move() -> None:
        async with pair(made) as (source, target):
            source.guest.run(0, 3000)
            await source.memory.bulk(0.02)
            cut = await cut_over(source, target, postcopy=True)
            assert cut.pages_missing > 1000
            target.guest.run(200, 3000)
            await asyncio.sleep(0.1)
            if who != "source":
                await target.restart_memory()
                assert (await target.memory.status()).state == "postcopy"
            if who != "target":
                endpoint_port = await _data_port(target)
                await source.restart_memory()
                await source.memory.open_source(made.source_options(endpoint_port, "secret-1"), resume=True)
            await asyncio.sleep(0.1)
            served = await source.memory.serve_until_done(60)
            applied = await target.memory.wait_all_present(60)
            assert applied.root == served.root == await source.memory.full_hash()
            await asyncio.to_thread(target.guest.pause)
            await asyncio.to_thread(target.guest.check)

    with rig() as made:
        asyncio.run(move())


def test_a_source_that_has_only_begun_to_serve_finds_a_target_that_was_killed_since_the_cut() -> None:
    async def move() -> None:
        async with pair(made) as (source, target):
            source.guest.run(0, 1000)
            await cut_over(source, target, postcopy=True)
            await target.restart_memory()
            await source.memory.start_serving()
            applied = await target.memory.wait_all_present(60)
            assert applied.root == await source.memory.full_hash()
            assert (await source.memory.serve_until_done(10)).root == applied.root
            await asyncio.to_thread(target.guest.check)

    with rig() as made:
        asyncio.run(move())


def test_a_target_that_was_away_for_longer_than_its_source_looks_for_it_is_served_when_asked_again() -> None:
    async def move() -> None:
        source, target = await made.host("alpha", MemoryRole.FRESH), await made.host("beta", MemoryRole.INCOMING)
        source.guest.fill(70)
        endpoint = await target.memory.open_target("secret-1", ADDRESS)
        await source.memory.open_source(made.source_options(endpoint.port, "secret-1", reconnect_s=0.3))
        source.guest.run(0, 1000)
        await cut_over(source, target, postcopy=True)
        await target.kill_memory()
        for _ in range(2):
            with pytest.raises(LostError, match="not reached for 0"):
                await source.memory.serve_until_done(60)
        target.memory = await MemoryProcess.spawn(made.options("beta"), made.server)
        served = await source.memory.serve_until_done(60)
        assert (await target.memory.wait_all_present(60)).root == served.root
        await asyncio.to_thread(target.guest.check)
        await source.memory.close()
        await target.memory.close()

    with rig() as made:
        asyncio.run(move())


@pytest.mark.parametrize("postcopy", [False, True])
def test_a_memory_process_that_is_killed_after_all_had_come_is_followed_by_one_that_knows(postcopy: bool) -> None:
    async def move() -> None:
        async with pair(made) as (source, target):
            source.guest.run(0, 100)
            await source.memory.bulk()
            cut = await cut_over(source, target, postcopy=postcopy)
            root = (await source.memory.serve_until_done()).root if postcopy else cut.root
            endpoint_port = await _data_port(target)
            await target.restart_memory()
            assert (await target.memory.status()).state == "received"
            assert (await target.memory.wait_all_present(5)).root == root
            target.guest.run(200, 100)
            # What still streams is the disk: a source that is killed as well finds its way to the new process, too.
            await source.restart_memory()
            await source.memory.open_source(made.source_options(endpoint_port, "secret-1"), resume=True)
            assert (await source.memory.serve_until_done(60)).root == root
            await asyncio.to_thread(target.guest.pause)
            await asyncio.to_thread(target.guest.check)

    with rig() as made:
        asyncio.run(move())


async def _data_port(target: Host) -> int:
    import json

    return int(json.loads((target.run_dir / "memory-state.json").read_text())["incoming"]["port"])


def test_connections_that_are_cut_in_postcopy_are_taken_up_again() -> None:
    async def move() -> None:
        async with pair(made) as (source, target):
            source.guest.run(0, 3000)
            cut = await cut_over(source, target, postcopy=True)
            assert cut.pages_missing > 8000
            target.guest.run(0, 3000)
            await source.memory.set_bandwidth(SLOW_BYTES_S)
            served = asyncio.create_task(source.memory.serve_until_done(60))
            await asyncio.sleep(0.01)
            kill = ["ip", "netns", "exec", made.namespace, "ss", "-K", "dst", ADDRESS]
            await asyncio.to_thread(subprocess.run, kill, check=True, capture_output=True)
            await source.memory.set_bandwidth(0)
            applied = await target.memory.wait_all_present(60)
            assert (await served).reconnects >= 1
            assert applied.root == await source.memory.full_hash()
            await asyncio.to_thread(target.guest.pause)
            await asyncio.to_thread(target.guest.check)

    with rig() as made:
        asyncio.run(move())


def test_a_source_that_never_comes_back_in_postcopy_is_reported_as_lost() -> None:
    async def move() -> None:
        async with pair(made) as (source, target):
            source.guest.run(0, 3000)
            await cut_over(source, target, postcopy=True)
            await source.kill_memory()
            with pytest.raises(LostError, match="pages are missing"):
                await target.memory.wait_all_present(3)

    with rig() as made:
        asyncio.run(move())


def test_a_target_that_never_comes_back_in_postcopy_is_reported_as_lost() -> None:
    async def move() -> None:
        async with pair(made) as (source, target):
            await source.memory.abort_source()
            await target.memory.abort_target()
            endpoint = await target.memory.open_target("secret-1", ADDRESS)
            await source.memory.open_source(made.source_options(endpoint.port, "secret-1", reconnect_s=1.0))
            source.guest.run(0, 3000)
            await cut_over(source, target, postcopy=True)
            await target.kill_memory()
            with pytest.raises(LostError):
                await source.memory.serve_until_done(30)

    with rig() as made:
        asyncio.run(move())


def test_the_agents_death_stops_neither_the_process_nor_a_postcopy() -> None:
    async def move() -> None:
        async with pair(made) as (source, target):
            source.guest.run(0, 3000)
            await cut_over(source, target, postcopy=True)
            target.guest.run(0, 3000)
            serving = asyncio.create_task(source.memory.serve_until_done(60))
            await asyncio.sleep(0.01)
            await source.memory.close()
            await asyncio.wait([serving])
            source.memory = await MemoryProcess.reattach(source.run_dir)
            applied = await target.memory.wait_all_present(60)
            assert (await source.memory.serve_until_done(10)).root == applied.root
            await asyncio.to_thread(target.guest.pause)
            await asyncio.to_thread(target.guest.check)

    with rig() as made:
        asyncio.run(move())


def test_a_wrong_root_at_the_cut_is_refused() -> None:
    async def move() -> None:
        async with pair(made) as (source, target):
            await source.memory.bulk()
            cut = await source.memory.cut(postcopy=False)
            with pytest.raises(HandoverError):
                await target.memory.apply_cut("0" * len(cut.root), postcopy=False)
            with pytest.raises(HandoverError):
                await target.memory.apply_cut("", postcopy=True, timeout_s=0.2)
            with pytest.raises(ConflictError):
                await source.memory.round()

    with rig() as made:
        asyncio.run(move())


def test_a_source_process_killed_after_its_last_page_costs_the_cut_nothing() -> None:
    async def move() -> None:
        async with pair(made) as (source, target):
            source.guest.run(0, 1000)
            await source.memory.bulk()
            await asyncio.to_thread(source.guest.pause)
            cut = await source.memory.cut(postcopy=False)
            await source.kill_memory()
            await asyncio.sleep(0.3)  # the target hears of it
            assert (await target.memory.apply_cut(cut.root, postcopy=False)).root == cut.root
            assert (await target.memory.wait_all_present(10)).root == cut.root
            await asyncio.to_thread(target.guest.check)

    with rig() as made:
        asyncio.run(move())


def test_a_cancelled_bulk_stops_and_nothing_is_lost_by_it() -> None:
    async def move() -> None:
        async with pair(made) as (source, target):
            source.guest.run(0, 1000)
            await source.memory.set_bandwidth(SLOW_BYTES_S)
            bulk = asyncio.create_task(source.memory.bulk())
            await asyncio.sleep(0.02)
            bulk.cancel()
            with pytest.raises(asyncio.CancelledError):
                await bulk
            await source.memory.set_bandwidth(0)
            while True:
                try:
                    await source.memory.round()
                    break
                except ConflictError:
                    await asyncio.sleep(0.01)
            cut = await cut_over(source, target, postcopy=False)
            assert cut.root == await target.memory.full_hash()
            await asyncio.to_thread(target.guest.check)

    with rig() as made:
        asyncio.run(move())


def test_a_moved_guest_moves_on_from_the_same_registration() -> None:
    async def move() -> None:
        async with pair(made) as (source, target):
            source.guest.run(0, 2000)
            await source.memory.bulk()
            await cut_over(source, target, postcopy=True)
            target.guest.run(0, 2000)
            await source.memory.serve_until_done(60)
            await target.memory.wait_all_present(60)
            await target.memory.abort_target()
            third = await made.host("gamma", MemoryRole.INCOMING, tls="beta")
            await connect(target, third, session="secret-2")
            await target.memory.bulk()
            for _ in range(3):
                await target.memory.round()
            cut = await cut_over(target, third, postcopy=False)
            assert cut.root == await third.memory.full_hash() == await target.memory.full_hash()
            await asyncio.to_thread(third.guest.check)

    with rig() as made:
        asyncio.run(move())


def test_a_second_process_in_the_same_run_directory_is_refused() -> None:
    async def start(made: Rig) -> None:
        first = await MemoryProcess.spawn(made.options("alpha"), made.server)
        with pytest.raises(MemoryStartError, match="another memory process"):
            await MemoryProcess.spawn(made.options("alpha"), made.server)
        (made.folder / "alpha" / "memory.pid").write_text(f"{first.pid}\n")
        await first.shutdown()
        await asyncio.to_thread(wait_gone, first.pid)

    with rig() as made:
        asyncio.run(start(made))
