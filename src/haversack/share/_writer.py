"""Writes one answer with a server: drafts, asks, takes what holds, and what to do while the link is lost.

The device's text is the truth: whenever the connection or the server's copy of the text is gone, the text so
far is sent again and writing goes on behind it.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from haversack.core.errors import HaversackError, UserError
from haversack.kernels import softmax
from haversack.run._drafting import draft_chain
from haversack.share import _protocol as wire
from haversack.share._controller import Controller, best_length, joules_a_token, shannon_bps
from haversack.share._family import draft_hash, family_of, tokenizer_hash
from haversack.share._remote_counts import RemoteCounts, RoundLog
from haversack.share._uplink import Late, Lost, Uplink

if TYPE_CHECKING:
    from haversack.run._cache import Cache
    from haversack.run._engine import Engine
    from haversack.run._sampler import Session
    from haversack.share.remote import Drawn, Remote

F32 = npt.NDArray[np.float32]

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
"""Between two tries to reach the server, doubled each time up to the second."""
FRUITLESS = 4
"""So many times in a row the text is opened again without a token before the server is given up."""


class Bond:
    """What one answer leaves for the next: the connection and what is known of the channel."""

    def __init__(self, method: Remote, engine: Engine) -> None:
        family = family_of(engine.model)
        rejection = method.sampling == wire.REJECTION
        hello = wire.Hello(
            version=max(wire.VERSIONS),
            nonce=bytes(wire.NONCE),
            tokenizer=tokenizer_hash(engine.model),
            vocabulary=engine.architecture.vocabulary,
            draft=draft_hash(engine) if rejection else b"",
            anchor=family.anchor,
            family=family.name,
            sampling=method.sampling,
        )
        self.uplink = Uplink(method.server, method.token, hello, method.timeout_s)
        known = shannon_bps(method.bandwidth_hz, 10 ** (method.snr_db / 10)) if method.bandwidth_hz else None
        self.controller = Controller(
            most=method.most,
            by="channel" if method.adaptive == "none" else method.adaptive,
            header_bits=8.0 * (wire.SIGNED + 16),
            draft_w=method.draft_w,
            transmit_w=method.transmit_w,
            idle_w=method.idle_w,
            joule_budget=method.energy_mj / 1e3 or None,
            up_bps=known,
        )

    def close(self) -> None:
        """Let the server go."""
        self.uplink.close()


class Writer:
    """One answer: `tokens` gives it, `close` lets its text go. `engine` is the draft, `cache` holds the
    prompt."""

    def __init__(self, method: Remote, engine: Engine, cache: Cache, session: Session) -> None:
        if session.constraint is not None:
            raise UserError(
                "--decode remote keeps no JSON schema, since the server draws the tokens; run the server's "
                "model with the schema, or use another --decode.",
                field="schema",
            )
        if not isinstance(engine.learned, Bond):
            engine.learned = Bond(method, engine)
        self.method, self.engine, self.cache, self.session = method, engine, cache, session
        self.bond: Bond = engine.learned
        self.uplink, self.controller = self.bond.uplink, self.bond.controller
        self.counts = RemoteCounts(mode=wire.GREEDY if session.sampler.greedy else method.sampling)
        session.drafting = self.counts
        self._coupled = session.sampler.greedy or method.sampling == wire.TOKENS
        self._before = (self.uplink.traffic.up, self.uplink.traffic.down)
        self._text: int | None = None
        self._round = 0
        self._opened_at: float | None = None
        self._opened_bytes = 0
        self._fruitless = 0
        self._lost_at: float | None = None
        self._pause_s, self._try_at = FIRST_PAUSE_S, 0.0
        self._trying: threading.Thread | None = None
        self._failed: BaseException | None = None

    # ---- the loop

    def tokens(self) -> Iterator[Drawn]:
        """The answer's tokens."""
        session = self.session
        while session.left > 0 and session.length <= self._capacity():
            try:
                if self._lost_at is not None or not self.uplink.connected:
                    self._reach()
                drawn = self._one_round()
            except Lost as lost:
                self._lose(lost)
                if not lost.reached and self.method.offline == "stop":
                    session.broken = "offline"
                    return
                if not lost.reached and self.method.offline == "alone":
                    yield from self._alone()
                continue
            self._fruitless = 0
            yield from drawn

    def close(self) -> None:
        """The answer is over, or nobody wants more of it."""
        if self._trying is not None and self._trying.is_alive():
            self.engine.learned = None  # the thread has the connection; the next answer makes its own
            return self._count()
        if self._text is not None and self.uplink.connected:
            try:
                self.uplink.say(wire.Close(self._text))
            except HaversackError:
                self.uplink.close()
        self._text = None
        self._count()

    def _count(self) -> None:
        self.cache.truncate(min(self.cache.length, self.session.length - 1))
        traffic = self.uplink.traffic
        self.counts.up_bytes, self.counts.down_bytes = (
            now - before for now, before in zip((traffic.up, traffic.down), self._before, strict=True)
        )
        self.counts.acceptance_expected = self.controller.acceptance
        self.counts.rtt_s = self.controller.rtt_s

    def _capacity(self) -> int:
        """Tokens that prompt and answer may have while another may follow: as in plain decoding, a text may
        grow one token beyond the context."""
        welcome = self.uplink.welcome
        return self.cache.capacity if welcome is None else min(self.cache.capacity, welcome.context)

    # ---- a round

    def _one_round(self) -> list[Drawn]:
        """Draft, ask, and take the answer. Raises Lost."""
        session, counts, controller = self.session, self.counts, self.controller
        if self._text is None:
            self._open()
        count, fits = self._length()
        began = time.perf_counter()
        chain, sure = self._draft(count)
        drafted_s = time.perf_counter() - began
        controller.drafted(drafted_s, len(chain))
        expected = joules_a_token(controller.state, count)
        start = session.length
        self._round += 1
        assert self._text is not None and self.uplink.welcome is not None
        ids = wire.pack_ids(chain, self.uplink.welcome.vocabulary)
        message = wire.Round(self._text, self._round, start, ids)
        asked = time.perf_counter()
        count_up = self.uplink.say(message)
        reply, count_down, repeated = self._answer(message, len(chain))
        elapsed, served = time.perf_counter() - asked, 1e-6 * reply.served_us
        drawn = self._drawn(chain, reply)
        for token, _ in drawn:
            session.add(token)
        self.cache.truncate(min(self.cache.length, start + reply.accepted))
        controller.accepted(reply.accepted, len(chain))
        controller.served(1e-6 * reply.first_us, 1e-6 * reply.more_us)
        if not repeated and self._round > 1:  # the first waits for the text to be read as well
            controller.travelled(max(0.0, elapsed - served), 8.0 * count_up, 8.0 * count_down)
            controller.wrote(sure, reply.accepted, drafted_s + elapsed)
        log = RoundLog(len(chain), reply.accepted, drafted_s, elapsed, served, 8 * count_up, expected, fits)
        counts.rounds.append(log)
        self._spend(log)
        return drawn

    def _length(self) -> tuple[int, bool]:
        """Drafts of the next round, and whether they keep the energy budget as well as any length can."""
        method, session, controller = self.method, self.session, self.controller
        chosen = controller.choose() if method.adaptive != "none" else method.length
        state = controller.state
        fits = state.joule_budget is None or joules_a_token(state, max(chosen, 1)) <= state.joule_budget
        if not fits and method.adaptive != "none":  # then it has to be the one of least joules
            fits = chosen == best_length(state, method.most)
        welcome = self.uplink.welcome
        assert welcome is not None
        room = min(
            self.cache.capacity + 1 - session.length,
            welcome.context - session.length,
            session.left - 1,
            welcome.longest,
        )
        return max(0, min(chosen, room)), fits

    def _draft(self, count: int) -> tuple[list[int], list[float]]:
        """Up to `count` drafts and, by confidence, their probabilities; none behind a token that ends a text,
        nor one that the server does not know."""
        if count <= 0:
            return [], []
        cache, whole = self.cache, self.cache.sparse_from
        cache.truncate(min(cache.length, self.session.length - 1))
        cache.sparse_from = min(whole, self.session.prompt_length)
        ends, welcome = self.engine.model.end_of_text, self.uplink.welcome
        assert welcome is not None
        known, sure = welcome.vocabulary, list[float]()
        by_confidence = self.method.adaptive != "none" and self.controller.by_confidence

        def enough(token: int, row: F32) -> bool:
            if by_confidence:
                sure.append(float(softmax(row[None])[0, token]))
            if token in ends or token >= known:
                return True
            return by_confidence and self.controller.enough(sure)

        coupled = self._coupled
        chain, _ = draft_chain(self.engine, cache, self.session, count, coupled=coupled, enough=enough)
        kept = len(chain) - (chain[-1] >= known)
        return chain[:kept], sure[:kept]

    def _answer(self, message: wire.Round, drafted: int) -> tuple[wire.Reply, int, int]:
        """The reply to a round, its bytes, and how often it was asked for again. Raises Lost."""
        patience, repeated = self.method.timeout_s, 0
        asked = time.monotonic()
        while True:
            try:
                heard, count = self.uplink.hear(patience)
            except Late:
                if time.monotonic() - asked >= patience:
                    if repeated and not self.uplink.answers:
                        self.uplink.close()
                        raise Lost("the server gives no sign of life") from None
                    self.uplink.knock()
                    self.uplink.say(message)
                    repeated += 1
                    self.counts.repeated += 1
                    asked = time.monotonic()
                continue
            if isinstance(heard, wire.Refused):
                if heard.session not in (0, message.session):
                    continue
                self._text = None
                raise self.uplink.refused(heard)
            if isinstance(heard, wire.Opened) and heard.session == message.session:
                self._has_opened(heard, count)
            elif isinstance(heard, wire.Reply):
                if (heard.session, heard.round) == (message.session, message.round):
                    self._check(heard, drafted)
                    return heard, count, repeated
                self.counts.stale += 1

    def _check(self, reply: wire.Reply, drafted: int) -> None:
        """Raises UserError for a reply that cannot be one."""
        assert self.uplink.welcome is not None
        logs = 8 * (reply.accepted + 1) if self.method.log_probabilities else 0
        if (
            reply.accepted > drafted
            or reply.token >= self.uplink.welcome.vocabulary
            or len(reply.logs) != logs
        ):
            self.uplink.close()
            raise UserError(
                f"the server at {self.uplink.url} does not keep to the protocol: it accepts "
                f"{reply.accepted} of {drafted} drafts, with token {reply.token} and {len(reply.logs)} bytes "
                "of log-probabilities.",
                field="server",
                given=self.uplink.url,
            )

    def _drawn(self, chain: list[int], reply: wire.Reply) -> list[Drawn]:
        tokens = [*chain[: reply.accepted], reply.token]
        if not self.method.log_probabilities:
            return [(token, math.nan) for token in tokens]
        return list(zip(tokens, np.frombuffer(reply.logs, "<f8").tolist(), strict=True))

    def _spend(self, log: RoundLog) -> None:
        """Modelled joules of a round."""
        method, state = self.method, self.controller.state
        sending = log.up_bits / state.up_bps
        self.counts.device_j += (
            method.draft_w * log.draft_s + method.transmit_w * sending + method.idle_w * log.elapsed_s
        )
        self.counts.cloud_j += method.cloud_w * log.served_s

    # ---- the text at the server

    def _open(self) -> None:
        """Send the text so far. Raises Lost."""
        session, sampler, uplink = self.session, self.session.sampler, self.uplink
        welcome = uplink.welcome
        assert welcome is not None
        if session.length > welcome.context:
            raise UserError(
                f"the text has {session.length} tokens and the server's context holds {welcome.context}; "
                "shorten the prompt or serve with a larger --context-length.",
                field="prompt",
                given=session.length,
                nearest=welcome.context,
            )
        if int(session.tokens.max()) >= welcome.vocabulary:
            raise UserError("the server's model does not know all tokens of the prompt.", field="prompt")
        if self.counts.rounds or self.counts.alone:
            self.counts.reopened += 1
        number = 1 + secrets.randbelow(2**32 - 1)
        message = wire.Open(
            number,
            wire.pack_ids(session.tokens, welcome.vocabulary),
            session.prompt_length,
            session.most,
            sampler.temperature,
            sampler.top_k,
            sampler.top_p,
            sampler.min_p,
            sampler.repetition_penalty,
            (sampler.seed + 2**63) % 2**64 - 2**63,
            self.method.log_probabilities,
        )
        self._opened_at = time.perf_counter()
        self._opened_bytes = uplink.say(message)
        self._text, self._round = number, 0
        self.counts.model, self.counts.target = welcome.model, welcome.target
        self.controller.target = welcome.target
        self.controller.token_bits = 8.0 * wire.width_of(welcome.vocabulary)

    def _has_opened(self, opened: wire.Opened, count: int) -> None:
        """The server has read the text: what that says of the link."""
        assert self._opened_at is not None
        elapsed, served = time.perf_counter() - self._opened_at, 1e-6 * opened.served_us
        self.counts.opening_s += elapsed
        if opened.first_us:
            self.controller.served(1e-6 * opened.first_us, 1e-6 * opened.more_us)
        self.controller.travelled(max(0.0, elapsed - served), 8.0 * self._opened_bytes, 8.0 * count)

    # ---- without a link

    def _lose(self, lost: Lost) -> None:
        """Note a loss. Raises UserError when the patience is over."""
        self._text = None
        if lost.reached:
            self._fruitless += 1
            if self._fruitless > FRUITLESS:
                raise UserError(
                    f"the server at {self.uplink.url} lets the text go again and again ({lost}).",
                    field="server",
                    given=self.uplink.url,
                )
            time.sleep(FIRST_PAUSE_S * self._fruitless)
            return
        now = time.monotonic()
        if self._lost_at is None:
            self._lost_at, self._pause_s, self._try_at = now, FIRST_PAUSE_S, now
            what = {
                "wait": f"waiting for it, at most {self.method.patience_s:g} s",
                "alone": "going on alone, UNVERIFIED",
                "stop": "stopping here",
            }
            self.counts.notices.append(f"the link is lost ({lost}): {what[self.method.offline]}")
        elif self.method.offline == "wait" and now - self._lost_at > self.method.patience_s:
            raise UserError(
                f"no link to {self.uplink.url} for {self.method.patience_s:g} s ({lost}); "
                f"{self.session.drawn} tokens were written. Try again, or allow --when-offline alone.",
                field="server",
                given=self.uplink.url,
            )

    def _reach(self) -> None:
        """Connect. Raises Lost, and without waiting where the device goes on alone meanwhile."""
        if self.method.offline == "alone" and self._lost_at is not None:
            self._reach_beside()
        else:
            if self._lost_at is not None:
                time.sleep(max(0.0, self._try_at - time.monotonic()))
            self._later()
            self.uplink.connect()
        if self._lost_at is not None:
            away = time.monotonic() - self._lost_at
            self.counts.offline_s += away
            self.counts.notices.append(f"the link is back after {away:.1f} s: what follows is verified")
        self._lost_at = None
        self._require_pair()

    def _require_pair(self) -> None:
        """Raises UserError for a pair that the hello does not rule out and that does not work."""
        assert self.uplink.welcome is not None
        if not self._coupled and self.uplink.welcome.vocabulary != self.engine.architecture.vocabulary:
            raise UserError(
                "sampling by rejection needs a draft of the server's vocabulary; use sampling=tokens.",
                field="sampling",
                given="rejection",
                nearest="tokens",
            )

    def _later(self) -> None:
        """The next try is a pause away."""
        self._try_at = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _reach_beside(self) -> None:
        """Try to connect in a thread, while the device goes on. Raises Lost until it has."""
        if self._trying is not None:
            if self._trying.is_alive():
                raise Lost("the link is still lost")
            self._trying = None
            failed, self._failed = self._failed, None
            if failed is None:
                return
            raise failed
        if time.monotonic() >= self._try_at:
            self._later()
            self._trying = threading.Thread(target=self._attempt, name="haversack-uplink", daemon=True)
            self._trying.start()
        raise Lost("the link is still lost")

    def _attempt(self) -> None:
        try:
            self.uplink.connect()
        except BaseException as error:
            self._failed = error

    def _alone(self) -> Iterator[Drawn]:
        """A token of the draft's own, by the plain run's number."""
        session, cache = self.session, self.cache
        if session.left <= 0 or session.length > cache.capacity:
            return
        whole = cache.sparse_from
        cache.truncate(min(cache.length, session.length - 1))
        cache.sparse_from = min(whole, session.prompt_length)
        rows, _ = self.engine.step(session.tokens[cache.length :], None, None, cache)
        assert rows is not None
        self.counts.wrote_alone(session.drawn)
        yield session.draw(rows[-1])
