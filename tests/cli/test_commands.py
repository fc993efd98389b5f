"""The command line as users have it: real processes, real sockets, fake hosts."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from architect.cli.output import REASON_WIDTH
from architect.errors import IncompatibleError, InvalidImageError
from architect.model.compression import Compression
from architect.model.handover_state import HandoverState
from architect.model.ids import HostName, VmId
from architect.model.vm_state import VmState
from architect.wire.agent_messages import MigrateVm
from tests.cli.process_rig import COMMAND, ProcessRig, process_rig

INSPECT_KEYS = (
    "id", "name", "image", "state", "reason", "host", "term", "exit_code", "endpoints", "memory_bytes", "cpus", "last_epoch",
    "restarts", "created_at",
)  # fmt: skip
HOST_KEYS = ["name", "provider", "region", "state", "vms", "memory_bytes", "memory_free_bytes", "notice"]
MIGRATE_KEYS = [
    "vm", "source", "target", "mode", "outcome", "reason", "total_s", "downtime_ms", "rounds", "bytes_sent", "bytes_by_source",
    "phases", "spans", "clock_error_ms",
]  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessRig]:
    """One fabric of two hosts for all tests that leave it as it was."""
    with process_rig(tmp_path_factory.mktemp("fabric"), "aws-1", "gcp-1") as one:
        yield one


@pytest.fixture
def web(shared: ProcessRig) -> Iterator[str]:
    """A VM on aws-1, gone afterwards."""
    shared.json("run", "oci:./image", "--name", "web", "--host", "aws-1", "--publish", "8080:80", "--publish", "53:53/udp")
    yield "web"
    shared.cli("rm", "--force", "web")


def line_of(done: subprocess.CompletedProcess[bytes]) -> str:
    """The one line on stderr."""
    text = done.stderr.decode()
    assert re.fullmatch(r"architect: [^\n]+: [^\n]+; [^\n]+\n", text), text
    return text.strip()


def hold_moves(rig: ProcessRig) -> asyncio.Event:
    """Moves stop before their switchover from now on."""
    held = rig.world.hold[HandoverState.SWITCHOVER] = rig.call(_event())
    return held


async def _event() -> asyncio.Event:
    return asyncio.Event()


def let_go(rig: ProcessRig, held: asyncio.Event) -> None:
    """They go on."""

    async def release() -> None:
        held.set()

    rig.call(release())


def wait_migrating(rig: ProcessRig, name: str) -> None:
    """Until the VM's move is under way."""
    deadline_s = time.monotonic() + 20
    while rig.json("inspect", name)["state"] != "migrating":
        assert time.monotonic() < deadline_s


def test_run_inspect_and_ps_print_what_the_design_says(shared: ProcessRig) -> None:
    vm = shared.json("run", "oci:./image:v1", "--name", "job", "--memory", "128M", "--env", "A=b", "--", "/bin/job", "--fast")
    try:
        assert tuple(vm) == INSPECT_KEYS
        assert (vm["state"], vm["memory_bytes"], vm["exit_code"], vm["last_epoch"]) == ("running", 128 << 20, None, None)
        assert vm["image"] == f"oci:{shared.folder}/image:v1"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", vm["created_at"])
        assert shared.json("inspect", "job") == vm
        assert shared.json("inspect", vm["id"]) == vm
        assert shared.json("ps") == [vm]
        request = next(fake.request for agent in shared.world.agents.values() for fake in agent.vms.values())
        assert (request.args, request.env) == (("/bin/job", "--fast"), ("A=b",))
    finally:
        shared.json("rm", "--force", "job")
    assert shared.json("ps") == []


def test_tables_are_aligned_and_lead_with_the_name(shared: ProcessRig, web: str) -> None:
    image = f"oci:{shared.folder}/image"
    image = image if len(image) <= REASON_WIDTH else image[: REASON_WIDTH - 1] + "…"  # the folder's name grows with pytest's runs
    assert shared.cli("ps").stdout.decode().splitlines() == [
        f"NAME  STATE    HOST   MEMORY     {'ENDPOINTS':<49} {'IMAGE'.ljust(len(image))}  REASON",
        f"web   running  aws-1  256.0 MiB  203.0.113.1:8080/tcp->80, 203.0.113.1:53/udp->53  {image}",
    ]
    assert shared.cli("host", "ls").stdout.decode().splitlines() == [
        "NAME   PROVIDER  REGION        STATE  VMS  MEMORY   FREE     NOTICE",
        "aws-1  aws       aws-region-1  ready  1    2.0 GiB  1.8 GiB",
        "gcp-1  gcp       gcp-region-1  ready  0    2.0 GiB  2.0 GiB",
    ]


def test_hosts_print_what_the_design_says(shared: ProcessRig) -> None:
    hosts = shared.json("host", "ls")
    assert [list(host) for host in hosts] == [HOST_KEYS, HOST_KEYS]
    assert [host["name"] for host in hosts] == ["aws-1", "gcp-1"]


def test_migrate_prints_the_move_and_progress_on_stderr(shared: ProcessRig, web: str) -> None:
    asked_for = ("--verify", "--bandwidth", "200M/s", "--compression", "off")
    done = shared.cli("--json", "migrate", web, "--to", "gcp-1", *asked_for)
    move = json.loads(done.stdout)
    assert (move["verified"], done.stderr) == (
        None,
        b"the memory of both ends was not compared whole: a move that becomes a post-copy proves its root instead\n",
    )
    asked = [one for one in shared.world.requests if isinstance(one, MigrateVm)][-1]
    assert (asked.bandwidth_bytes_s, asked.compression) == (200 << 20, Compression.OFF)
    assert (move["bytes_sent"], move["bytes_saved"], move["compression_ratio"]) == (4096, 2048, 1.5)
    assert list(move)[: len(MIGRATE_KEYS)] == MIGRATE_KEYS
    assert (move["source"], move["target"], move["outcome"]) == ("aws-1", "gcp-1", "done")
    assert shared.json("inspect", web)["host"] == "gcp-1"
    done = shared.cli("migrate", web, "--to", "aws-1")
    assert (
        done.stdout.decode()
        == "web moved gcp-1 to aws-1 in 0.25 s: pause 22 ms, 3 rounds, 4.0 KiB (1.5 times that before compression)\n"
    )
    assert done.stderr.decode().splitlines()[0] == "planned"


def test_ctrl_c_leaves_a_move_to_itself_and_says_so(shared: ProcessRig, web: str) -> None:
    held = hold_moves(shared)
    moving = shared.start_cli("migrate", web, "--to", "gcp-1")
    assert moving.stderr is not None and moving.stderr.readline() == b"planned\n"
    moving.send_signal(signal.SIGINT)
    _, error = moving.communicate(timeout=40)
    let_go(shared, held)
    shared.world.hold.clear()
    assert moving.returncode == 130
    assert re.fullmatch(rb"the move mig-\w+ goes on; `architect events -f` shows it", error.splitlines()[-1]), error
    deadline_s = time.monotonic() + 20
    while shared.json("inspect", web)["host"] != "gcp-1":
        assert time.monotonic() < deadline_s


def test_a_path_that_leads_nowhere_is_refused_before_a_vm_is_placed(shared: ProcessRig) -> None:
    known = len(shared.json("ps"))
    done = shared.cli("run", "oci:./nope")
    path = shared.folder / "nope"
    assert line_of(done) == f"architect: image oci:./nope: {path} is not a directory that exists; check the path"
    assert len(shared.json("ps")) == known and b"goes to" not in done.stderr


def test_a_move_that_the_target_refuses_exits_with_its_kind(shared: ProcessRig, web: str) -> None:
    shared.world.refuse_move[HostName("gcp-1")] = IncompatibleError("host gcp-1", "has another TSC", "choose another host")
    try:
        done = shared.cli("migrate", web, "--to", "gcp-1", "--json")
        assert (done.returncode, line_of(done)) == (6, "architect: host gcp-1: has another TSC; choose another host")
    finally:
        shared.world.refuse_move.clear()


def test_a_move_that_fails_on_its_way_is_printed_and_exits_10(shared: ProcessRig, web: str) -> None:
    target = shared.world.agents.pop(HostName("gcp-1"))
    try:
        done = shared.cli("migrate", web, "--to", "gcp-1", "--json")
        move = json.loads(done.stdout)
        assert (done.returncode, move["outcome"], move["reason"]) == (10, "failed", "the target does not answer")
        assert "the target does not answer" in line_of(done)
    finally:
        shared.world.agents[HostName("gcp-1")] = target
    assert shared.json("inspect", web)["state"] == "running"


def test_a_move_that_failed_because_the_vm_is_lost_exits_11(shared: ProcessRig) -> None:
    vm = VmId(shared.json("run", "oci:./image", "--name", "doomed", "--host", "aws-1")["id"])
    source, target = HostName("aws-1"), HostName("gcp-1")
    held = hold_moves(shared)
    moving = shared.start_cli("migrate", "doomed", "--to", target, "--json")
    wait_migrating(shared, "doomed")
    gone = shared.world.agents.pop(target)
    try:
        shared.call(shared.world.agents[source].end_vm(vm, VmState.LOST))
        let_go(shared, held)
        out, error = moving.communicate(timeout=40)
    finally:
        shared.world.hold.clear()
        shared.world.agents[target] = gone
        shared.cli("rm", "--force", "doomed")
    assert (moving.returncode, json.loads(out)["outcome"]) == (11, "failed")
    assert b"architect: vm doomed: " in error and b"`architect rm doomed` forgets it" in error


@pytest.mark.parametrize(
    ("words", "status", "thing"),
    [
        ("inspect nope", 3, "vm nope"),
        ("inspect a/b", 3, "vm 'a/b'"),
        ("logs nope", 3, "vm nope"),
        ("exec nope -- ls", 3, "vm nope"),
        ("stop nope", 3, "vm nope"),
        ("rm nope", 3, "vm nope"),
        ("migrate nope --to gcp-1", 3, "vm nope"),
        ("migrate web --to nope", 3, "host nope"),
        ("migrate web --to aws-1", 4, "vm web"),
        ("migrate web --to gcp-1 --bandwidth 4K", 2, "--bandwidth '4K': is not in 1M..1T"),
        ("migrate web --to gcp-1 --bandwidth -5M", 2, "--bandwidth '-5M': is not in 1M..1T"),
        ("migrate web --to gcp-1 --bandwidth 99999999999T", 2, "--bandwidth '99999999999T': is not in 1M..1T"),
        ("migrate web --to gcp-1 --mode postcopy --verify", 2, "--verify: a post-copy's memory is never whole at both ends"),
        ("host drain nope", 3, "host nope"),
        ("host rm nope", 3, "host nope"),
        ("host rm aws-1", 4, "host aws-1"),
        ("rm web", 4, "vm web"),
        ("run oci:x --name web", 4, "vm web"),
        ("run oci:x --publish 8080:1", 4, "port 8080/tcp"),
        ("run oci:x --memory 100G", 5, "vm x-"),
        ("run oci:x --memory 100G --host gcp-1", 5, "vm x-"),
        ("run oci:x --memory 1M", 2, "--memory"),
        ("run oci:x --memory -5M", 2, "--memory '-5M': not a size"),
        ("run oci:x --memory 99999999999T", 2, "--memory '99999999999T': more than any machine has"),
        ("run oci:./nope:v1", 2, "image oci:./nope:v1: "),
        ("run docker-archive:x", 2, "image docker-archive:x: "),
        ("run oci:x --name Web", 2, "--name 'Web'"),
        ("run oci:x --publish 8080", 2, "--publish 8080"),
        ("run oci:x --env A", 2, "--env A"),
        ("run oci:x --host nope", 3, "host nope"),
    ],
)
def test_each_refusal_is_one_line_with_its_exit_status(shared: ProcessRig, web: str, words: str, status: int, thing: str) -> None:
    done = shared.cli(*words.split())
    assert (done.returncode, done.stdout) == (status, b""), done
    assert line_of(done).startswith(f"architect: {thing}")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nope"],
        ["ps", "extra"],
        ["ps", "--nope"],
        ["inspect"],
        ["up", "--hosts", "x"],
        ["up", "--hosts", "-1"],
        ["run"],
        ["run", "oci:x", "--memory", "lots"],
        ["migrate", "web"],
        ["migrate", "web", "--to"],
        ["migrate", "web", "--to", "a", "--mode", "teleport"],
        ["migrate", "web", "--to", "a", "--bandwidth", "fast"],
        ["migrate", "web", "--to", "a", "--bandwidth", "0"],
        ["migrate", "web", "--to", "a", "--compression", "lz4"],
        ["local"],
        ["local", "preempt", "aws-1", "--notice", "soon"],
        ["host"],
        ["exec", "web"],
        ["exec", "web", "--"],
        ["ps", "--", "x"],
        ["stop", "web", "--grace", "nan"],
        ["--state-dir"],
        ["inspect", "--js", "web"],
    ],
)
def test_bad_usage_is_one_line_and_exit_2(tmp_path: Path, words: list[str]) -> None:
    environment = {**os.environ, "ARCHITECT_STATE": str(tmp_path)}
    done = subprocess.run([*COMMAND, *words], capture_output=True, env=environment)
    assert (done.returncode, done.stdout) == (2, b""), done
    line_of(done)


def test_without_a_control_plane_the_next_step_is_up(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "--state-dir", str(tmp_path), "ps"], capture_output=True)
    assert done.returncode == 7
    assert "run `architect up`" in line_of(done)


def test_help_and_version_need_nothing(tmp_path: Path) -> None:
    for words in (["--help"], ["run", "--help"], ["host", "--help"], ["local", "preempt", "--help"], ["--version"]):
        done = subprocess.run([*COMMAND, *words], capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"") and done.stdout


def test_an_image_that_is_refused_exits_2_and_leaves_no_vm(shared: ProcessRig) -> None:
    shared.world.refuse_run = InvalidImageError("image oci:/x", "has no layers", "build it again")
    try:
        done = shared.cli("run", "oci:x", "--name", "broken")
        assert done.returncode == 2
        assert done.stderr.decode().splitlines()[-1] == "architect: image oci:/x: has no layers; build it again"
    finally:
        shared.world.refuse_run = None
    assert shared.json("ps") == []
    events = [json.loads(line) for line in shared.cli("events", "--json").stdout.splitlines()]
    assert any(event["kind"] == "vm-creation-failed" and "has no layers" in event["message"] for event in events)


def test_logs_follow_a_vm_over_a_move_until_it_is_over(shared: ProcessRig, web: str) -> None:
    vm = shared.json("inspect", web)["id"]
    following = shared.start_cli("logs", "-f", web)
    assert following.stdout is not None
    assert following.stdout.readline() == b"web says hello\n"
    shared.call(shared.world.agents[HostName("aws-1")].print(vm, b"one\n"))
    assert following.stdout.readline() == b"one\n"
    shared.json("migrate", web, "--to", "gcp-1")
    shared.call(shared.world.agents[HostName("gcp-1")].print(vm, b"two \xff\n"))
    assert following.stdout.readline() == b"two \xff\n"
    shared.call(shared.world.agents[HostName("gcp-1")].end_vm(vm, VmState.EXITED, 0))
    assert following.communicate(timeout=20) == (b"", b"")
    assert following.returncode == 0
    assert shared.json("logs", web) == {"offset": 0, "text": "web says hello\none\ntwo �\n"}


def test_logs_says_in_words_what_the_host_has_dropped_and_goes_on(shared: ProcessRig, web: str) -> None:
    shared.world.agents[HostName("aws-1")].vms[VmId(shared.json("inspect", web)["id"])].log_start = 4
    done = shared.cli("logs", web)
    assert (done.returncode, done.stdout) == (0, b"says hello\n")
    kept = "its host keeps the newest output only, at least 32.0 MiB"
    assert done.stderr.decode() == f"4 B of what {web} printed is gone here: {kept}\n"
    assert shared.json("logs", web) == {"offset": 4, "text": "says hello\n"}


def test_exec_passes_input_output_and_exit_code_on(shared: ProcessRig, web: str) -> None:
    done = shared.cli("exec", web, "--", "echo", "a b")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"echo a b\n", b"and an error\n")
    data = os.urandom(300_000)
    assert shared.cli("exec", "-i", web, "--", "cat", stdin=data).stdout == data
    assert shared.cli("exec", web, "--", "cat", stdin=b"unread").stdout == b""
    assert shared.cli("exec", web, "--", "exit", "7").returncode == 7
    done = shared.cli("exec", "--json", web, "--", "hi")
    assert json.loads(done.stdout) == {"exit_code": 0, "stdout": "hi\n", "stderr": "and an error\n"}


def test_events_print_one_line_each_and_follow(shared: ProcessRig) -> None:
    following = shared.start_cli("events", "-f", "--json")
    shared.json("run", "oci:./image", "--name", "seen")
    shared.json("rm", "--force", "seen")
    assert following.stdout is not None
    kinds: list[str] = []
    while "vm-removed" not in kinds or kinds.count("vm-removed") < len([kind for kind in kinds if kind == "vm-creating"]):
        event = json.loads(following.stdout.readline())
        assert list(event)[:4] == ["time", "kind", "vm", "host"]
        kinds.append(event["kind"])
    assert kinds[0] == "control-started"
    following.send_signal(signal.SIGINT)
    assert following.communicate(timeout=20)[1] == b""
    assert following.returncode == 130


def test_a_reader_that_goes_away_is_no_error(shared: ProcessRig) -> None:
    script = f"{' '.join(COMMAND)} events | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, env=shared.environment())
    assert (done.returncode, done.stderr) == (0, b"")


def test_draining_moves_vms_and_can_be_taken_back(shared: ProcessRig, web: str) -> None:
    assert shared.json("host", "drain", "aws-1") == {"host": "aws-1", "moved": ["web"], "left": []}
    assert [host["state"] for host in shared.json("host", "ls")] == ["draining", "ready"]
    assert shared.json("host", "drain", "--off", "aws-1")["state"] == "ready"


def test_the_socket_is_its_owners_only(shared: ProcessRig) -> None:
    assert stat.S_IMODE((shared.state_dir / "control.sock").stat().st_mode) == 0o600


def test_a_second_control_plane_is_refused(shared: ProcessRig) -> None:
    done = shared.cli("control", "--config", str(shared.state_dir / "control.json"))
    assert done.returncode == 7
    assert "another control plane answers there" in done.stderr.decode()
    assert shared.json("host", "ls")


def test_a_control_plane_that_is_killed_in_a_move_or_a_creation_is_waited_for(tmp_path: Path) -> None:
    with process_rig(tmp_path, "aws-1", "gcp-1") as one:
        one.json("run", "oci:./image", "--name", "web", "--host", "aws-1")

        held = hold_moves(one)
        moving = one.start_cli("migrate", "web", "--to", "gcp-1")
        logs = one.start_cli("logs", "-f", "web")
        assert logs.stdout is not None and logs.stdout.readline() == b"web says hello\n"
        wait_migrating(one, "web")
        one.kill_control()
        one.start_control()
        for agent in one.world.agents.values():
            one.call(agent.disconnect())
            one.connect(agent)
        let_go(one, held)
        out, error = moving.communicate(timeout=40)
        assert moving.returncode == 0, error
        assert out.startswith(b"web moved aws-1 to gcp-1 in ")
        assert b"the control plane does not answer; it is waited for, up to 30 s\n" in error
        vm = one.json("inspect", "web")
        assert (vm["host"], vm["state"]) == ("gcp-1", "running")
        one.call(one.world.agents[HostName("gcp-1")].print(vm["id"], b"again\n"))
        line = logs.stdout.readline()
        assert line == b"again\n", (line, logs.poll(), logs.communicate())
        logs.kill()
        logs.communicate()

        one.world.run_gate = one.call(_event())  # and in a creation, that fails before it is back
        running = one.start_cli("run", "oci:./image", "--host", "aws-1")
        assert running.stderr is not None
        name = running.stderr.readline().decode().partition(" ")[0]
        one.kill_control()
        one.world.refuse_run = InvalidImageError("image oci:/x", "has no layers", "build it again")
        one.start_control()
        for agent in one.world.agents.values():
            one.call(agent.disconnect())
            one.connect(agent)
        _, error = running.communicate(timeout=40)
        last = error.decode().splitlines()[-1]
        assert last == f"architect: vm {name}: its creation failed: image oci:/x: has no layers; build it again"
        assert running.returncode == 7, "its kind is not known any more"
        assert "Traceback" not in one.log()


def test_the_control_plane_logged_no_traceback(shared: ProcessRig) -> None:
    assert "Traceback" not in shared.log()
