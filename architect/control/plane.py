"""The control plane put together: one value with all its parts, and what keeps them running."""

from __future__ import annotations

import asyncio

from architect.clouds import InstanceSource
from architect.control.agent_desk import AgentDesk
from architect.control.bell import Bell
from architect.control.book import Book
from architect.control.database import Database
from architect.control.edge_link import Dial, EdgeLink
from architect.control.exec_vm import ExecSessions
from architect.control.fabric import Fabric
from architect.control.fleet import Fleet
from architect.control.followers import Followers
from architect.control.jobs import Jobs
from architect.control.reconcile import Reconciler
from architect.control.records import EventKind
from architect.model.config import ControlConfig
from architect.runtime.clock import Clock, Entropy
from architect.version import VERSION


class ControlPlane:
    """One control plane over an open database.

    :param dial_edge: opens a channel to the edge.
    :param instances: the provider, if one can be asked.
    """

    def __init__(
        self,
        config: ControlConfig,
        database: Database,
        dial_edge: Dial,
        clock: Clock,
        entropy: Entropy,
        instances: InstanceSource | None = None,
    ) -> None:
        bell = Bell()
        book = Book(database, clock, bell)
        fleet = Fleet(clock, bell, config.host_lost_after_s)
        self.fabric = Fabric(
            config=config,
            book=book,
            fleet=fleet,
            edge=EdgeLink(config.edge_name, dial_edge, clock, bell),
            jobs=Jobs(clock, lambda _key, _failure: bell.ring()),
            followers=Followers(),
            bell=bell,
            clock=clock,
            entropy=entropy,
            instances=instances,
        )
        self.desk = AgentDesk(book, fleet, config.fabric, config.report_interval_s)
        self.sessions = ExecSessions(self.fabric)
        self._reconciler = Reconciler(self.fabric)

    async def run(self) -> None:
        """Reconcile for ever; agents are served by `desk`, users by the use cases on `fabric`."""
        async with self.fabric.book.change() as change:
            change.say(EventKind.CONTROL_STARTED, f"version {VERSION}")
        async with asyncio.TaskGroup() as group:
            group.create_task(self.fabric.jobs.run())
            group.create_task(self.fabric.edge.run())
            group.create_task(self._reconciler.run())
