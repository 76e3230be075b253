"""A task's life as the specification has it, in plain Python: what the server is compared with.

A `Model` is told each step that the server is told, and answers what the server must answer. It
knows nothing of scripts, keys or packed records. Times are in ms; only `Model.now` moves the clock.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from conveyor.records import FOREVER, UNLIMITED, Flag, Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SCHEDULED, QUEUED, PROCESSING, SUCCESS, FAILED, CANCELLED, PARKED = range(7)
ENDED = {SUCCESS: "ok", FAILED: "failed", CANCELLED: "cancelled"}
#: Where a task of each state that is no queue is found.
SETS = {SCHEDULED: "s", PROCESSING: "l", PARKED: "parked", **ENDED}
#: What one claim moves of each kind that is due.
CLAIM_MOVES = 20
#: What one step trims or settles at most.
BATCH = 100
#: For how long a caller that got no reply may send a task again.
RESEND = 6000
#: What a lease that has run out is given: its moment is no whole one then.
NOTICE = 500.5


class Settlement(NamedTuple):
    """One lease's end: which task, with which token, how, and when to retry."""

    id: str
    token: bytes
    outcome: str
    delay: int


@dataclass
class Task:
    """A task that has a record."""

    id: str
    name: str
    version: int
    limits: Limits
    due: int
    expires: int
    state: int
    created: int = 0
    starts: int = 0
    nonce: bytes = bytes(8)
    errors: int = 0
    stalls: int = 0
    interruptions: int = 0
    cancel_asked: bool = False
    attempts: int = 0

    @property
    def token(self) -> bytes:
        return struct.pack("<I8s", self.starts, self.nonce)

    @property
    def call(self) -> tuple[str, str, int]:
        return self.id, self.name, self.version

    @property
    def begun(self) -> bool:
        """Whether a run of it has been counted."""
        return self.errors + self.stalls + self.interruptions > 0

    @property
    def ready_list(self) -> str:
        return f"{'a' if self.limits.flags & Flag.ASYNC else 'r'}:{self.limits.priority}"


@dataclass
class Model:
    """One queue.

    Attributes:
        now: The time.
        tasks: Those that have a record.
        ready: Ids in each ready list, those that ended there too.
        tombstones: How often an id is in a ready list without being queued.
        sets: Ids and moments of each sorted set, of "e" (expiring) too.
        ended: How many tasks ever ended so.
        gap: Until when the server was silent.
        gone: When calls were created that soon ended without a record.
        paused: Whether nothing may be claimed.
        limit: At most so many starts in any window of so many ms, or None.
        starts: The moments of the last starts, as many as a limit allowed.
    """

    now: int
    tasks: dict[str, Task] = field(default_factory=dict)
    ready: dict[str, list[str]] = field(default_factory=dict)
    tombstones: Counter[str] = field(default_factory=Counter)
    sets: dict[str, dict[str, float]] = field(
        default_factory=lambda: {name: {} for name in (*SETS.values(), "e")}
    )
    ended: Counter[str] = field(default_factory=Counter)
    gap: int = 0
    gone: dict[tuple[str, str, int], int] = field(default_factory=dict)
    paused: bool = False
    limit: tuple[int, int] | None = None
    starts: list[int] = field(default_factory=list)
    _claims: dict[bytes, tuple[int, list[str]]] = field(default_factory=dict)

    # What callers do.

    def enqueue(self, new: Task, *, replace: bool) -> bool:
        """Adds a task; False when another one has its id."""
        if self.gone.get(new.call, 0) > self.now - RESEND:
            return True
        new.created = self.now
        old = self.tasks.get(new.id)
        if old is not None and old.call == new.call:
            return True
        if old is not None and replace and old.state in ENDED:
            del self.sets[ENDED[old.state]][old.id]
            self._forget(old)
            old = None
        if old is not None:
            return False
        self.tasks[new.id] = new
        if new.expires:
            self.sets["e"][new.id] = new.expires
        if new.due > self.now:
            self._put(new, SCHEDULED, new.due)
        else:
            self._queue(new)
        return True

    def cancel(self, task_id: str) -> int:
        """1: cancelled or asked for; 0: had ended; -1: is not there."""
        task = self.tasks.get(task_id)
        if task is None:
            return -1
        if task.state in ENDED:
            return 0
        if task.state == PROCESSING:
            task.cancel_asked = True
        else:
            self._leave(task)
            self.sets["e"].pop(task_id, None)
            self._finish(task, CANCELLED)
        return 1

    def remove(self, task_id: str) -> bool:
        """False when it is not there."""
        task = self.tasks.get(task_id)
        if task is None:
            return False
        self._leave(task)
        self.sets["e"].pop(task_id, None)
        self._forget(task)
        return True

    def retry(self, task_id: str) -> int:
        """1: queued as new; 0: has not ended; -1: is not there."""
        task = self.tasks.get(task_id)
        if task is None:
            return -1
        if task.state not in ENDED:
            return 0
        self._leave(task)
        task.attempts += task.state == SUCCESS
        task.errors = task.stalls = task.interruptions = task.expires = 0
        task.cancel_asked = False
        self._queue(task)
        return 1

    def pause(self, paused: bool) -> bool:
        """Whether that changed anything."""
        changed = self.paused != paused
        self.paused = paused
        return changed

    def set_limit(self, limit: tuple[int, int] | None) -> bool:
        """Whether that changed anything."""
        changed = self.limit != limit
        self.limit = limit
        self.starts = self.starts if limit else []
        return changed

    # What workers do.

    def settle(
        self, settlements: Iterable[Settlement], keep_success: int, park_ms: int
    ) -> list[int]:
        """The verdicts: 1 accepted, 0 stale, 2 settled before."""
        verdicts = [self._settle(one, park_ms) for one in settlements]
        successes = self.sets["ok"]
        if verdicts:
            for task_id in self._earliest("ok")[: max(len(successes) - keep_success, 0)][:BATCH]:
                self._remove(task_id)
        return verdicts

    def claim(self, worker: bytes, call: int, sync: int, asynchronous: int) -> list[str]:
        """The ids that are leased, or were by an earlier call of this number."""
        nonce = struct.pack("<4sI", worker, call)
        last, claimed = self._claims.get(worker, (0, []))
        if last == call:
            held = [self.tasks[one] for one in claimed if one in self.tasks]
            return [one.id for one in held if one.state == PROCESSING and one.nonce == nonce]
        for name in ("s", "l", "e"):
            self._move_due(name, CLAIM_MOVES)
        lanes = [("r", sync), ("a", asynchronous)]
        if self.limit and self.now % 2 == 0:
            lanes.reverse()
        most = self._may_start()
        claimed = []
        for lane, want in lanes:
            claimed += self._claim_lane(lane, min(want, most - len(claimed)), nonce)
        if self.limit and claimed:
            self.starts = [*self.starts, *[self.now] * len(claimed)][-self.limit[0] :]
        if claimed or self.limit or not self.paused:
            self._claims[worker] = (call, claimed)
        return claimed

    def renew(self, task_id: str, token: bytes) -> int:
        """1: extended; 0: lost; 2: extended, and its end was asked for."""
        task = self._held(task_id, token)
        if task is None:
            return 0
        self.sets["l"][task_id] = max(self.now + task.limits.stall_ms, self.sets["l"][task_id])
        return 2 if task.cancel_asked else 1

    def speak(self, task_id: str, token: bytes) -> bool:
        """Whether what a run says of itself is kept."""
        return self._held(task_id, token) is not None

    def unpark(self, names: Iterable[str]) -> None:
        """Queues the parked tasks of these names."""
        for task_id in self._earliest("parked"):
            task = self.tasks[task_id]
            if task.name in names:
                self._leave(task)
                self._queue(task)

    # What orchestrators do.

    def maintain(self, limit: int) -> int:
        """Moves what is due; how many."""
        names = ("l", "e", "parked", "s", *ENDED.values())
        return sum(self._move_due(name, limit) for name in names)

    def earliest(self) -> float:
        """When something is due next; infinite when nothing is."""
        return min(min(one.values(), default=math.inf) for one in self.sets.values())

    def counts(self) -> dict[str, int]:
        """What a status shows."""
        states = Counter(task.state for task in self.tasks.values())
        names = ("scheduled", "queued", "processing", "success", "failed", "cancelled", "parked")
        counts = dict(zip(names, map(states.__getitem__, range(7)), strict=True))
        return counts | {"queued": states[QUEUED] + states[PARKED]}

    def _earliest(self, name: str) -> list[str]:
        """The ids of a sorted set, in its order."""
        moments = self.sets[name]
        return sorted(moments, key=lambda one: (moments[one], one))

    def _move_due(self, name: str, limit: int) -> int:
        moves: dict[str, Callable[[str, float], None]] = {
            "s": self._promote,
            "l": self._reap,
            "e": self._expire,
            "parked": self._give_up,
        }
        due = [one for one in self._earliest(name) if self.sets[name][one] <= self.now][:limit]
        for task_id in due:
            moment = self.sets[name].pop(task_id)
            moves.get(name, self._trim)(task_id, moment)
        return len(due)

    def _promote(self, task_id: str, _: float) -> None:
        self._queue(self.tasks[task_id])

    def _reap(self, task_id: str, moment: float) -> None:
        task = self.tasks[task_id]
        noticed = moment != int(moment)
        if moment - noticed * NOTICE - task.limits.stall_ms <= self.gap:
            return self._put(task, PROCESSING, self.now + task.limits.stall_ms)
        if not noticed:
            return self._put(task, PROCESSING, self.now + NOTICE)
        task.nonce = task.nonce[:4] + bytes(4)
        return self._after_stall(task)

    def _expire(self, task_id: str, _: float) -> None:
        task = self.tasks[task_id]
        self._leave(task)
        self._finish(task, FAILED)

    def _give_up(self, task_id: str, _: float) -> None:
        self.sets["e"].pop(task_id, None)
        self._finish(self.tasks[task_id], FAILED)

    def _trim(self, task_id: str, _: float) -> None:
        self._forget(self.tasks[task_id])

    def _remove(self, task_id: str) -> None:
        del self.sets["ok"][task_id]
        self._forget(self.tasks[task_id])

    def _may_start(self) -> int:
        if self.paused:
            return 0
        if self.limit is None:
            return BATCH
        points, window = self.limit
        return max(0, points - sum(start >= self.now - window for start in self.starts))

    def _claim_lane(self, lane: str, want: int, nonce: bytes) -> list[str]:
        claimed: list[str] = []
        for priority in range(9, -1, -1):
            waiting = self.ready.get(f"{lane}:{priority}", [])
            while waiting and want:
                task = self.tasks.get(task_id := waiting.pop(0))
                if task is None or task.state != QUEUED:
                    self.tombstones[task_id] -= 1
                    continue
                want -= 1
                if not task.begun:
                    self.sets["e"].pop(task_id, None)
                if task.expires and not task.begun and task.expires <= self.now:
                    self._finish(task, FAILED)
                    continue
                task.starts += 1
                task.nonce = nonce
                self._put(task, PROCESSING, self.now + task.limits.stall_ms)
                claimed.append(task_id)
        return claimed

    def _held(self, task_id: str, token: bytes) -> Task | None:
        task = self.tasks.get(task_id)
        return task if task and task.token == token and task.state == PROCESSING else None

    def _settle(self, one: Settlement, park_ms: int) -> int:
        task = self.tasks.get(one.id)
        if task is None or task.token != one.token:
            return 0
        if task.state != PROCESSING:
            return 2
        del self.sets["l"][one.id]
        match one.outcome:
            case "success":
                self._finish(task, SUCCESS)
            case "cancelled":
                self._end_run(task, CANCELLED)
            case _ if task.cancel_asked:
                self._end_run(task, CANCELLED)
            case "error" | "timeout" | "fatal" | "fatal_timeout":
                retryable = one.outcome in ("error", "timeout")
                self._after_error(task, one.delay, retryable=retryable)
            case "stall":
                self._after_stall(task)
            case "interrupted":
                self._after_interruption(task)
            case "release":
                self._rearm(task)
                self._queue(task, head=True)
            case "park":
                self._rearm(task)
                self._put(task, PARKED, self.now + park_ms)
        return 1

    def _after_error(self, task: Task, delay: int, *, retryable: bool) -> None:
        if not retryable or not _may_retry(task, task.errors, task.limits.error_retry_limit):
            return self._end_run(task, FAILED)
        task.attempts += 1
        task.errors += 1
        self._again(task, delay)

    def _after_stall(self, task: Task) -> None:
        if task.cancel_asked:
            return self._end_run(task, CANCELLED)
        if not _may_retry(task, task.stalls, task.limits.stall_retry_limit):
            return self._end_run(task, FAILED)
        task.attempts += 1
        task.stalls += 1
        if task.stalls == 1:
            self._queue(task, head=True)
        else:
            self._again(task, min(1000 * 2 ** (task.stalls - 2), 60_000))

    def _after_interruption(self, task: Task) -> None:
        limits = task.limits
        if limits.retry_limit == 0 or limits.error_retry_limit == limits.stall_retry_limit == 0:
            return self._end_run(task, FAILED)
        task.attempts += 1
        task.interruptions += 1
        self._queue(task, head=True)

    def _rearm(self, task: Task) -> None:
        if task.expires and not task.begun:
            self.sets["e"][task.id] = task.expires

    def _again(self, task: Task, delay: int) -> None:
        if delay:
            task.due = self.now + delay
            self._put(task, SCHEDULED, task.due)
        else:
            self._queue(task)

    def _queue(self, task: Task, *, head: bool = False) -> None:
        task.state = QUEUED
        waiting = self.ready.setdefault(task.ready_list, [])
        waiting.insert(0 if head else len(waiting), task.id)

    def _put(self, task: Task, state: int, moment: float) -> None:
        task.state = state
        self.sets[SETS[state]][task.id] = moment

    def _leave(self, task: Task) -> None:
        """Takes a task from where it is."""
        if task.state == QUEUED:
            self.tombstones[task.id] += 1
        else:
            self.sets[SETS[task.state]].pop(task.id, None)

    def _end_run(self, task: Task, state: int) -> None:
        task.attempts += 1
        self._finish(task, state)

    def _finish(self, task: Task, state: int) -> None:
        self.ended[ENDED[state]] += 1
        limits = task.limits
        retain = limits.retain_success_ms if state == SUCCESS else limits.retain_failed_ms
        remove = {SUCCESS: Flag.REMOVE_ON_SUCCESS, FAILED: Flag.REMOVE_ON_FAILED, CANCELLED: 0}
        if retain == 0 or limits.flags & remove[state]:
            self._forget(task)
        else:
            self._put(task, state, math.inf if retain == FOREVER else self.now + retain)

    def _forget(self, task: Task) -> None:
        del self.tasks[task.id]
        if task.created > self.now - RESEND:
            self.gone[task.call] = task.created


def _may_retry(task: Task, count: int, limit: int) -> bool:
    common = task.limits.retry_limit
    within = common == UNLIMITED or task.errors + task.stalls < common
    return within and (limit == UNLIMITED or count < limit)
