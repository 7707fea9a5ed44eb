"""Remote verification: the device drafts, a server verifies all drafts of a round in one pass.

Paper: FlexSpec: Frozen Drafts Meet Evolving Targets in Edge-Cloud Collaborative LLM Speculative Decoding
(arXiv 2601.00644, 2026; readable: its abstract; all that is concrete here is [inferred] from it and from
Leviathan et al., 2023).
What is here: this machine's model is the draft. A round sends the numbers of K drafted tokens; the server
(`haversack serve PACK --verify`) keeps the text's keys and values, reads the K tokens at once, and answers
how many hold and the token that follows them. K is chosen round by round (share/_controller.py): with
`adaptive=channel` the length of most tokens a second by the acceptance, the round trip, the link's speed, the
server's own time and, with `energy_mj`, an energy budget, which are the formulas of the specification. Drafts
travel as token numbers, 2 or 4 bytes each, never as distributions.
Output: greedy, the server's plain tokens. Sampling: `tokens` gives the very tokens that the server's plain
run with that seed gives: it draws with the plain run's number, and a draft is right when it is the same.
`rejection` keeps the distribution, and accepts more: the server's copy of the draft (`serve --verify
--draft`) computes what the tokens were drawn from, with random numbers that are functions of seed, purpose
and place on both sides.
When the link is lost: `offline=wait` waits for it, at most `patience_s`; `stop` ends the answer with what is
verified; `alone` goes on with the draft's own tokens, says so and counts them (`unverified`). When the link
is back, the text so far, those tokens included, is sent again and verified writing goes on behind it: what
was shown stays.
What we changed: by default (`adaptive=confidence`) a round ends where one more draft is worth less than its
time, which is its chance of being accepted, by the draft's own probabilities so far (as such turned out
before), against the tokens that the run otherwise writes in that time. The formulas' acceptance is that of a
draft whose predecessors hold; a round that waits too long is asked again (the server gives the same answer),
and given up when the server gives no sign of life.
Cost: a round trip for one to K + 1 tokens. Energy is modelled: watts times measured seconds.
Limits: gains over a server that streams its own tokens only where the downlink is the bottleneck, or where
the device must have each token before the next; the server remembers nothing of a lost connection but
prefixes. A JSON schema cannot be kept, since the server draws. `rejection` is exact where both sides compute
the same bits; its numbers depend on where rounds end, so a seed gives the same tokens again only with
`adaptive=none`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter

if TYPE_CHECKING:
    from haversack.run._cache import Cache
    from haversack.run._engine import Engine
    from haversack.run._sampler import Session

F32 = npt.NDArray[np.float32]
Drawn = tuple[int, float]

PROGRAM_MIB = 11.5


@dataclass(frozen=True)
class Remote(Method):
    name = "remote"
    stage = "run"
    slot = "decode"
    paper = "FlexSpec: Frozen Drafts Meet Evolving Targets in Edge-Cloud Speculative Decoding (2601.00644)"
    summary = "This machine drafts, a server verifies; rounds as long as the channel makes worth it."
    system = 42
    excludes = frozenset({"encoder-decoder"})

    server: str = parameter("", help="address of haversack serve --verify, such as ws://HOST:8000")
    token: str = parameter("", help="what the server was started with; never shown, never sent")
    adaptive: str = parameter(
        "confidence",
        allowed=("confidence", "channel", "none"),
        help="what ends a round: drafts that are not worth their time, or a length by the channel",
    )
    length: int = parameter(5, allowed=range(0, 17), help="drafts of a round with adaptive=none")
    most: int = parameter(16, allowed=range(1, 17), help="most drafts of a round")
    offline: str = parameter(
        "wait", allowed=("wait", "alone", "stop"), help="what to do while the link is lost"
    )
    timeout_s: float = parameter(3.0, help="seconds without an answer before it is asked for again")
    patience_s: float = parameter(60.0, help="offline=wait: seconds without the link before giving up")
    sampling: str = parameter(
        "tokens",
        allowed=("tokens", "rejection"),
        help="what sampling keeps: the tokens, or the distribution",
    )
    log_probabilities: bool = parameter(False, help="ask for the tokens' log-probabilities, 8 bytes each")
    energy_mj: float = parameter(0.0, help="most modelled millijoules of this device a token; 0: any")
    draft_w: float = parameter(3.0, help="watts of this device while it drafts")
    transmit_w: float = parameter(1.2, help="watts while it sends")
    idle_w: float = parameter(0.3, help="watts while it waits")
    cloud_w: float = parameter(150.0, help="watts of the server while it verifies, reported apart")
    bandwidth_hz: float = parameter(0.0, help="the channel's, where it is known; 0: the rate is measured")
    snr_db: float = parameter(0.0, help="its signal to noise ratio")

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, float) or field.name == "snr_db":
                continue
            least = 0.05 if field.name == "timeout_s" else 0.0
            if not least <= value < float("inf"):
                raise UserError(
                    f"{field.name}={value:g} is not supported (allowed {least:g} and more); use "
                    f"{field.name}={field.default:g}.",
                    field=field.name,
                    given=value,
                    nearest=field.default,
                )

    def __str__(self) -> str:
        """Without the token."""
        return super().__str__() if not self.token else str(dataclasses.replace(self, token=""))

    @property
    def program_mib(self) -> float:
        """What speaking to a server adds to the program: the WebSocket library, TLS, a thread."""
        return PROGRAM_MIB

    def prepare(self, engine: Engine) -> None:
        """Raises UserError when there is no server, and for an address that is none."""
        from haversack.share._uplink import server_url

        if not self.server:
            raise UserError(
                "--decode remote needs a server: --server URL, as haversack serve PACK --verify prints it.",
                field="server",
            )
        server_url(self.server)

    def tokens(self, engine: Engine, cache: Cache, logits: F32, session: Session) -> Iterator[Drawn]:
        """(token, log-probability) of the answer, one after the other, until a context is full.

        The log-probability is not a number unless `log_probabilities` asks for it. Raises UserError for a
        draft that does not fit the server's model, and when the link stays lost.
        """
        from haversack.share._writer import Writer

        writer = Writer(self, engine, cache, session)
        try:
            yield from writer.tokens()
        finally:
            writer.close()
