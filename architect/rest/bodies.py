"""The bodies of requests, as FastAPI checks and documents them; turned into the use cases' values at once."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from architect.control.exec_vm import ExecWish
from architect.control.move_vm import MoveWish
from architect.control.run_vm import RunWish
from architect.model.compression import Compression
from architect.model.endpoints import Protocol, Publish
from architect.model.handover_state import MigrationMode
from architect.model.vm_spec import DEFAULT_DISK_BYTES, DEFAULT_MEMORY_BYTES


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PublishBody(_Body):
    """A port of the VM to make reachable at a port of the public address."""

    public_port: Annotated[int, Field(ge=1, le=65535)]
    guest_port: Annotated[int, Field(ge=1, le=65535)]
    protocol: Protocol = Protocol.TCP


class RunBody(_Body):
    """A VM to run. Without `name` it gets one, without `host` the one with most free memory. `check_wish` says what is allowed."""

    image: Annotated[str, Field(max_length=4096)]
    name: Annotated[str, Field(max_length=4096)] = ""
    cpus: int = 1
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    disk_bytes: int = DEFAULT_DISK_BYTES
    publish: list[PublishBody] = []
    env: list[str] = []
    args: list[str] = []
    host: str = ""
    host_fsync: bool = False

    def wish(self) -> RunWish:
        """As the use case takes it."""
        return RunWish(
            image=self.image,
            name=self.name,
            cpus=self.cpus,
            memory_bytes=self.memory_bytes,
            disk_bytes=self.disk_bytes,
            publish=tuple(Publish(port.public_port, port.guest_port, port.protocol) for port in self.publish),
            env=tuple(self.env),
            args=tuple(self.args),
            host=self.host,
            host_fsync=self.host_fsync,
        )


class StopBody(_Body):
    """How long the VM may take to end by itself."""

    grace_s: float = 10.0


class MigrateBody(_Body):
    """Where to, and how. `verify` compares the memory of both ends whole. `bandwidth_bytes_s` is what the move may send per second;
    0 is no limit, null the source host's default. `compression` `auto` compresses memory and disk where and while that pays."""

    to: str
    mode: MigrationMode = MigrationMode.AUTO
    verify: bool = False
    bandwidth_bytes_s: Annotated[int, Field(ge=0)] | None = None
    compression: Compression = Compression.AUTO

    def wish(self, vm: str) -> MoveWish:
        """As the use case takes it."""
        return MoveWish(vm, self.to, self.mode, self.verify, self.bandwidth_bytes_s, self.compression)


class ExecBody(_Body):
    """A command to run in the VM."""

    args: Annotated[list[str], Field(min_length=1)]
    env: list[str] = []
    tty: bool = False
    rows: int = 24
    columns: int = 80

    def wish(self, vm: str) -> ExecWish:
        """As the use case takes it."""
        return ExecWish(vm, tuple(self.args), tuple(self.env), self.tty, self.rows, self.columns)
