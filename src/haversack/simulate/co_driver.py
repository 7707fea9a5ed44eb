"""The co-driver: a secure world borrows an accelerator whose driver stays in the untrusted one.

Paper: "TZ-LLM: Protecting On-Device Large Language Models with Arm TrustZone" (2025, arXiv 2511.13717),
secure sharing of the accelerator; the order of the steps from its published artifact. The checks against a
world that lies are [inferred]: the paper needs them, and its artifact trusts.
What is here: the untrusted world (REE) keeps queue, power and clocks. For each secure job the secure world
(TEE) asks it to queue a shadow job and to say when that is at the head; then it (1) routes the interrupt to
itself, (2) takes the registers, so that the other world reaches them no more, (3) makes the accelerator a
secure master, (4) saves and turns off the address translation that the other world controls, (5) starts the
job and waits for the interrupt, (6) puts everything back in the opposite order, and (7) tells the REE that
the shadow job is done. The artifact turns one firewall for (2) and (3); here they are two steps, and
between them the TEE looks whether the accelerator is idle: a job of the other world that still runs would
become a secure master with it. `Device` is the hardware: it obeys whoever may reach it, and `violations`
lists what must never happen: a secure job run where the window was open, or a job of the other world run
inside one. `Liar` is a REE that skips, repeats and reorders shadow jobs, keeps its own job running when it
says the head is free, lends pages that overlap or are not adjacent, forges interrupts, and reaches for
registers at any moment.
Pages: memory for weights grows at the top of one range. The REE offers pages; `Range` takes only those that
are exactly adjacent, aligned and not secure yet. Every wait of the TEE is bounded by `patience`, so a REE
that does nothing makes jobs end refused, not stuck: a world that schedules can always refuse service, and
no protocol takes that from it.
Cost: `switch_us` of a job are its secure calls and register writes, by `COSTS` [assumed].
Limits: steps are atomic; one accelerator, whose cores are switched together; side channels are out of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

SYSTEM = 29

NORMAL, SECURE = "normal", "secure"
COSTS = {"call": 5.0, "interrupt": 2.0, "registers": 1.5, "master": 1.5, "translation": 4.0, "start": 1.0}
"""Microseconds of a step of the switch, on a board of 2 GHz [assumed]."""
PATIENCE = 40


class AccessError(Exception):
    """An access that the hardware refuses."""


@dataclass
class Device:
    """An accelerator behind a bus firewall, with its interrupt and address translation.

    `registers`: the world that reaches them. `master`: as whose its accesses to memory count; pages of a
    secure range open to secure masters alone. `violations` are sentences on what happened and must not.
    """

    registers: str = NORMAL
    master: str = NORMAL
    interrupt_to: str = NORMAL
    translating: bool = True
    running: tuple[str, int] | None = None
    pending: list[tuple[str, int]] = field(default_factory=list)
    done: list[tuple[str, int]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    refused: int = 0

    def _reach(self, world: str) -> None:
        if self.registers == SECURE and world == NORMAL:
            self.refused += 1
            raise AccessError("the firewall gives the registers to the secure world")

    def _own(self, world: str) -> None:
        if world != SECURE:
            self.refused += 1
            raise AccessError("firewall and routing are the secure world's")

    def give_registers(self, world: str, to: str) -> None:
        """Part of the firewall, which is the secure world's."""
        self._own(world)
        self.registers = to

    def make_master(self, world: str, whose: str) -> None:
        """Part of the firewall, which is the secure world's."""
        self._own(world)
        self.master = whose
        if self.running is not None:
            self._judge()

    def route_interrupt(self, world: str, to: str) -> None:
        """Routing is the secure world's."""
        self._own(world)
        self.interrupt_to = to

    def set_translation(self, world: str, on: bool) -> None:
        """A register of the accelerator: whoever reaches it."""
        self._reach(world)
        self.translating = on

    def busy(self, world: str) -> bool:
        """A register of the accelerator."""
        self._reach(world)
        return self.running is not None

    def start(self, world: str, job: int) -> None:
        """Write the command registers; what still ran is lost."""
        self._reach(world)
        if self.running is not None and SECURE in (world, self.running[0]):
            self.violations.append(f"{world} job {job} was started while {self.running} ran")
        self.running = (world, job)
        self._judge()

    def stop(self, world: str) -> None:
        """Reset the accelerator: what ran is lost."""
        self._reach(world)
        self.running = None

    def step(self) -> None:
        """The running job ends and raises the interrupt, to whom it is routed."""
        if self.running is not None:
            self._judge()
            self.done.append(self.running)
            self.pending.append((self.interrupt_to, self.running[1]))
            self.running = None

    def take_interrupt(self, world: str) -> int | None:
        """The job of the oldest interrupt for `world`, or None."""
        for index, (to, job) in enumerate(self.pending):
            if to == world:
                del self.pending[index]
                return job
        return None

    def _judge(self) -> None:
        """A job runs: inside the window it must be the secure world's, outside it must not be."""
        assert self.running is not None
        world, job = self.running
        closed = self.registers == SECURE and self.master == SECURE
        window = closed and self.interrupt_to == SECURE and not self.translating
        if world == SECURE and not window:
            self.violations.append(f"secure job {job} ran outside of a protected window")
        if world == NORMAL and self.master == SECURE:
            self.violations.append(f"job {job} of the other world ran as a secure master")


class Range:
    """The secure range that weights are restored into: `pages` from `first`, growing at the top up to
    `most`.
    """

    def __init__(self, first: int, most: int) -> None:
        self.first, self.most = first, most
        self.pages = 0

    def grow(self, offered: int, count: int) -> None:
        """Take `count` pages from page `offered`. Raises AccessError unless they follow exactly and are not
        secure.
        """
        if count < 1 or self.pages + count > self.most:
            raise AccessError(f"{count} pages do not fit the range")
        if offered != self.first + self.pages:
            what = "overlap" if self.first <= offered < self.first + self.pages else "are not adjacent to"
            raise AccessError(f"the pages offered {what} the secure range")
        self.pages += count

    def shrink(self, count: int) -> None:
        """Give back the last `count` pages."""
        self.pages -= min(count, self.pages)


class Tee:
    """The secure world: `jobs` to run, one after the other; `outcomes` job -> done or why it was refused."""

    def __init__(self, device: Device, jobs: int, patience: int = PATIENCE) -> None:
        self.device, self.jobs, self.patience = device, jobs, patience
        self.outcomes: dict[int, str] = {}
        self.switch_us: list[float] = []
        self.inbox: list[int] = []
        """Shadow jobs that the REE says are at the head."""
        self.asked: list[int] = []
        """Shadow jobs asked of the REE and not yet told to be done."""
        self.finished: list[int] = []

    def run(self) -> Iterator[None]:
        """Take every job through the protocol, one atomic step each time it is resumed."""
        for job in range(self.jobs):
            self.inbox = []  # what was announced before it was asked for announces nothing
            self.asked.append(job)
            yield
            waited = 0
            while job not in self.inbox and waited < self.patience:
                waited += 1
                yield
            said, self.inbox = job in self.inbox, []
            if not said:
                self.outcomes[job] = "refused: the other world never announced it"
            else:
                yield from self._window(job)
            self.finished.append(job)
            yield

    def idle(self) -> bool:
        """Whether nothing runs, looked at when the registers are closed to the other world."""
        return not self.device.busy(SECURE)

    def _window(self, job: int) -> Iterator[None]:
        """Switch the accelerator over, run `job`, switch back. An announcement serves one job, once: it is
        taken from the inbox before anything moves."""
        device = self.device
        device.route_interrupt(SECURE, SECURE)
        yield
        device.give_registers(SECURE, SECURE)
        yield
        if self.idle():
            yield
            device.make_master(SECURE, SECURE)
            yield
            saved = device.translating
            device.set_translation(SECURE, False)
            yield
            yield from self._execute(job)
            device.set_translation(SECURE, saved)
            yield
            device.make_master(SECURE, NORMAL)
            yield
            steps = ("registers", "master", "translation", "interrupt")
            self.switch_us.append(2 * COSTS["call"] + COSTS["start"] + 2 * sum(COSTS[one] for one in steps))
        else:
            self.outcomes[job] = "refused: the accelerator was not idle"
        device.give_registers(SECURE, NORMAL)
        yield
        device.route_interrupt(SECURE, NORMAL)

    def _execute(self, job: int) -> Iterator[None]:
        device = self.device
        device.pending = [one for one in device.pending if one[0] != SECURE]  # none may be left from before
        device.start(SECURE, job)
        waited, ended = 0, None
        while ended is None and waited < self.patience:
            yield
            waited += 1
            ended = device.take_interrupt(SECURE)
        if ended is None:
            device.stop(SECURE)
        self.outcomes[job] = "done" if ended == job else "refused: the accelerator did not end it"


class Ree:
    """The untrusted world as it should be: a queue of its own jobs and shadow jobs, one at a time."""

    def __init__(self, device: Device, tee: Tee, jobs: int, rng: random.Random) -> None:
        self.device, self.tee, self.rng = device, tee, rng
        self.waiting = [f"own {job}" for job in range(jobs)]
        self.seen = 0
        self.head: str | None = None
        self.ran = 0

    def act(self) -> None:
        """One step of its driver."""
        while self.seen < len(self.tee.asked):
            self.waiting.append(f"shadow {self.tee.asked[self.seen]}")
            self.seen += 1
        if self.head is None:
            if self.waiting:
                self._begin(self.waiting.pop(0))
            return
        kind, _, number = self.head.partition(" ")
        if kind == "shadow":
            if int(number) in self.tee.finished:
                self.head = None
        elif self.device.take_interrupt(NORMAL) is not None:
            self.ran += 1
            self.head = None

    def _begin(self, job: str) -> None:
        self.head = job
        kind, _, number = job.partition(" ")
        if kind == "shadow":
            self.tee.inbox.append(int(number))
        else:
            self.device.start(NORMAL, 1000 + int(number))


class Liar(Ree):
    """A REE that lies: each step is the honest one or one of `LIES`."""

    def act(self) -> None:
        """See Ree."""
        if self.rng.random() < 0.5:
            try:
                super().act()
            except AccessError:
                self.head = None
            return
        lie = self.rng.choice(LIES)
        try:
            lie(self)
        except AccessError:
            return

    def replay(self) -> None:
        """Announce a job of before, or one that is still to come."""
        self.tee.inbox.append(self.rng.randrange(self.tee.jobs))

    def skip(self) -> None:
        """Forget the oldest job."""
        if self.waiting:
            self.waiting.pop(0)

    def reorder(self) -> None:
        """Serve the queue from its end."""
        self.waiting.reverse()

    def overlap(self) -> None:
        """Start a job of its own whatever the accelerator does."""
        self.device.start(NORMAL, 2000 + self.rng.randrange(100))

    def announce_early(self) -> None:
        """Say that the newest shadow job is at the head while its own job runs."""
        if self.tee.asked:
            self.tee.inbox.append(self.tee.asked[-1])

    def forge_interrupt(self) -> None:
        """Raise a line of its own: it arrives where the hardware routes it, without a job of the
        accelerator.
        """
        if self.device.interrupt_to == NORMAL:
            self.device.pending.append((NORMAL, self.rng.randrange(5)))

    def reach(self) -> None:
        """Touch registers, routing and the firewall."""
        self.rng.choice(
            (
                lambda: self.device.give_registers(NORMAL, NORMAL),
                lambda: self.device.make_master(NORMAL, SECURE),
                lambda: self.device.route_interrupt(NORMAL, NORMAL),
                lambda: self.device.set_translation(NORMAL, self.rng.random() < 0.5),
                lambda: self.device.stop(NORMAL),
            )
        )()


LIES: tuple[Callable[[Liar], None], ...] = (
    Liar.replay,
    Liar.skip,
    Liar.reorder,
    Liar.overlap,
    Liar.announce_early,
    Liar.forge_interrupt,
    Liar.reach,
)


@dataclass(frozen=True)
class Interleaving:
    """How one interleaving ended. `stuck`: the TEE did not come to an end. `executed`: secure jobs, as the
    accelerator ran them to their ends; `own_jobs`: how many of the other world's; `refused`: accesses.
    """

    violations: tuple[str, ...]
    outcomes: dict[int, str]
    stuck: bool
    switch_us: tuple[float, ...]
    refused: int
    own_jobs: int
    executed: tuple[int, ...]


def interleave(
    seed: int,
    *,
    honest: bool = False,
    jobs: int = 4,
    own: int = 4,
    most: int = 4000,
    secure_world: type[Tee] = Tee,
) -> Interleaving:
    """Run the two worlds and the accelerator in an order drawn from `seed`: each turn one of them makes one
    step.

    `jobs` secure jobs meet `own` of the other world; after `most` turns the TEE counts as stuck.
    """
    rng = random.Random(seed)
    device = Device()
    tee = secure_world(device, jobs)
    ree = (Ree if honest else Liar)(device, tee, own, rng)
    steps = tee.run()
    stuck = True
    for _ in range(most):
        turn = rng.random()
        if turn < 0.4:
            ree.act()
        elif turn < 0.7:
            device.step()
        else:
            try:
                next(steps)
            except StopIteration:
                stuck = False
                break
    return Interleaving(
        tuple(device.violations),
        dict(tee.outcomes),
        stuck,
        tuple(tee.switch_us),
        device.refused,
        ree.ran,
        tuple(job for world, job in device.done if world == SECURE),
    )
