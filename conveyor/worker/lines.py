"""The connections of one worker: one for calls and one that blocks, for all queues on a server.

On a cluster each queue has two of its own, since each may be on another node.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from conveyor.broker.link import Link
from conveyor.worker.bell import Bell

if TYPE_CHECKING:
    import selectors
    from collections.abc import Callable, Sequence

    from conveyor.broker.connect import Server
    from conveyor.worker.queue import WorkerQueue


class Lines:
    """Links and bells; nothing is opened before `open`.

    Args:
        server: Where to.
        queues: The worker's.
        selector: Of its loop.
        greet: Called with the queues and the link after each new connection for calls.
        heard: See `Bell`.
        beat: Whether to hear what comes due.

    Attributes:
        calls: The links for calls.
        bells: What blocks on the others.
    """

    def __init__(
        self,
        server: Server,
        queues: Sequence[WorkerQueue],
        selector: selectors.BaseSelector,
        *,
        greet: Callable[[Sequence[WorkerQueue], Link], None],
        heard: Callable[[WorkerQueue, str, bytes], None],
        beat: bool,
    ) -> None:
        self._server = server
        self._queues = queues
        self._selector = selector
        self._greet = greet
        self._heard = heard
        self._beat = beat
        self.calls: list[Link] = []
        self.bells: list[Bell] = []

    def open(self) -> None:
        """Makes the links, which connect when they are first ticked."""
        groups = [[queue] for queue in self._queues] if self._server.clustered else [self._queues]
        for group in groups:
            memory = group[0].keys.memory
            greet = functools.partial(self._greet, group)
            link = Link(self._server, memory, self._selector, greet)
            several = len(self._queues) > 1
            bell = Bell(group, several=several, beat=self._beat, heard=self._heard)
            bell.link = Link(self._server, memory, self._selector, bell.greet, blocking=True)
            for queue in group:
                queue.link = link
            self.calls.append(link)
            self.bells.append(bell)

    def tick(self, now: float) -> None:
        """Has each look after its connection."""
        for link in self._all():
            link.tick(now)

    def deadlines(self) -> list[float | None]:
        """When each has to be ticked next."""
        return [link.deadline() for link in self._all()]

    def descriptors(self) -> list[int]:
        """Those of the open sockets, which children close."""
        return [descriptor for link in self._all() for descriptor in link.filenos()]

    def close(self) -> None:
        """Closes all connections."""
        for link in self._all():
            link.close()

    def _all(self) -> list[Link]:
        return [*self.calls, *(bell.link for bell in self.bells)]
