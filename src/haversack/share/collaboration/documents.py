"""V6, questions over a long document that stays on the device: Minion and MinionS.

Papers: Large Language Models over Networks (arXiv 2605.08626, 2026; named there, details [inferred]); Minions
(Narayan et al., 2025), of which the two protocols are used as described there [recalled].
What is here: `minion`: the cloud, which never sees the document, asks the device questions about it, for at
most `rounds` turns. `minions`: the cloud writes instructions, the device carries each out on every piece of
the document at the same time and keeps what it finds as short JSON; the cloud reads the findings and answers,
or writes the next instructions, at most `rounds` times.
Cost: bytes to the cloud are those of questions and findings, not of the document; work on the device is the
document once an instruction.
Limits: a fact that spans two pieces is found only within `overlap`; the device must be able to read a piece.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from haversack.share.collaboration._algorithm import AGENT, Agent, Algorithm, bounded, consult
from haversack.share.collaboration._network import Network, NoAnswer, Said
from haversack.share.collaboration._session import Session
from haversack.share.collaboration.roles import lines_of, pieces_of

SYSTEM = 40

CHAT = (
    "Question:\n{question}\n\nA local model holds a document of {size} characters that you cannot "
    "see. Conversation so "
    "far:\n{turns}\n\nReply 'ASK: ' and one question to the local model, or 'ANSWER: ' and the answer."
)
READ = "Document:\n{document}\n\nAnswer from the document in one or two sentences:\n{question}"
INSTRUCT = (
    "Question:\n{question}\n\nA local model holds a document of {size} characters in {parts} parts "
    "that you cannot see. "
    "Write at most {most} instructions, one a line, each beginning with '- ', that it should carry "
    "out on every part to "
    "find what the answer needs."
)
EXTRACT = (
    "Instruction:\n{instruction}\n\nPart of a document:\n{part}\n\nReply with short JSON and nothing else: "
    '{{"found": true or false, "text": "what was found"}}'
)
DECIDE = (
    "Question:\n{question}\n\nA local model found in its document:\n{findings}\n\nReply 'ANSWER: ' "
    "and the answer, or, if "
    "more is needed, instructions, one a line, each beginning with '- '."
)


def answer_in(reply: str) -> str | None:
    """What follows ANSWER: in a reply; None when it has none."""
    found = re.search(r"\banswer\s*:\s*(.+)", reply, re.IGNORECASE | re.DOTALL)
    return None if found is None else found[1].strip()


@dataclass(frozen=True)
class Minion(Algorithm):
    """V6, the chat."""

    code = "V6"
    name = "minion"
    summary = "The cloud asks the device, which holds the document, until it can answer."

    cloud: Agent = field(default="cloud", metadata=AGENT)
    device: Agent = field(default="device", metadata=AGENT)
    rounds: int = 3

    def check(self, network: Network) -> None:
        """Raises UserError without a limit of rounds."""
        super().check(network)
        bounded("rounds", self.rounds, 1, 16)

    async def solve(self, session: Session) -> str:
        task = session.task
        turns: list[str] = []
        for _ in range(self.rounds):
            listed = "\n".join(turns) or "(nothing yet)"
            asked = CHAT.format(question=task.prompt, size=len(task.context), turns=listed)
            reply = (await consult(session, self.cloud, asked)).text
            answer = answer_in(reply)
            if answer is not None:
                return session.keep(answer, 1.0)
            question = re.sub(r"^\W*ask\s*:\s*", "", reply.strip(), flags=re.IGNORECASE)
            said = await consult(session, self.device, READ.format(document=task.context, question=question))
            session.keep(said.text)
            turns += [f"you: {question}", f"local: {said.text}"]
        asked = CHAT.format(question=task.prompt, size=len(task.context), turns="\n".join(turns))
        reply = (
            await consult(session, self.cloud, f"{asked}\nThis is the last turn: reply 'ANSWER: '.")
        ).text
        return session.keep(answer_in(reply) or reply.strip(), 1.0)


@dataclass(frozen=True)
class Minions(Algorithm):
    """V6, the map over pieces. `size`: characters of a piece; `most`: instructions of a round."""

    code = "V6s"
    name = "minions"
    summary = "The cloud writes instructions, the device carries them out on every piece of its document."

    cloud: Agent = field(default="cloud", metadata=AGENT)
    device: Agent = field(default="device", metadata=AGENT)
    size: int = 2000
    overlap: int = 100
    most: int = 3
    rounds: int = 3
    findings: int = 12

    def check(self, network: Network) -> None:
        """Raises UserError without limits of rounds, instructions and pieces."""
        super().check(network)
        for name, least, most in (
            ("rounds", 1, 16),
            ("most", 1, 16),
            ("findings", 1, 256),
            ("size", 16, 1 << 20),
        ):
            bounded(name, getattr(self, name), least, most)
        bounded("overlap", self.overlap, 0, self.size // 2)

    async def solve(self, session: Session) -> str:
        task = session.task
        pieces = pieces_of(task.context, self.size, self.overlap)
        asked = INSTRUCT.format(
            question=task.prompt, size=len(task.context), parts=len(pieces), most=self.most
        )
        reply = (await consult(session, self.cloud, asked)).text
        known: list[str] = []
        for place in range(self.rounds):
            instructions = lines_of(reply, self.most)
            known += [
                text for text in await self._carried_out(session, instructions, pieces) if text not in known
            ]
            if known:
                session.keep(known[0])
            listed = "\n".join(f"- {text}" for text in known[: self.findings]) or "- nothing"
            decide = DECIDE.format(question=task.prompt, findings=listed)
            if place == self.rounds - 1:
                decide += "\nThis is the last turn: reply 'ANSWER: '."
            reply = (await consult(session, self.cloud, decide)).text
            answer = answer_in(reply)
            if answer is not None:
                return session.keep(answer, 1.0)
        return session.keep(reply.strip(), 1.0)

    async def _carried_out(self, session: Session, instructions: list[str], pieces: list[str]) -> list[str]:
        """What was found, the surest first."""
        asks = [
            {
                "to": self.device,
                "prompt": EXTRACT.format(instruction=instruction, part=piece),
                "kind": "tool",
                "most": 64,
            }
            for instruction in instructions
            for piece in pieces
        ]
        if not isinstance(self.device, str):
            raise NoAnswer("the device that reads pieces is a node")
        found = [said for said in await session.ask_all(asks) if said is not None]
        read = [(said, text) for said in found if (text := extracted(said))]
        read.sort(key=lambda one: -(one[0].confidence or 0.0))
        return [text for _, text in read]


def extracted(said: Said) -> str:
    """What a reply says was found; empty when nothing was, or when it is no such JSON."""
    match = re.search(r"\{.*\}", said.text, re.DOTALL)
    try:
        record = json.loads(match[0]) if match else {}
    except ValueError:
        return ""
    if not isinstance(record, dict) or record.get("found") is not True:
        return ""
    return str(record.get("text") or "").strip()[:500]
