"""V4, V5 and V7: device and cloud write one answer together.

Papers: Large Language Models over Networks (arXiv 2605.08626, 2026; named there, details [inferred]);
speculative decoding (Leviathan et al., 2023), of which only the idea is used here.
What is here: `plan` (V4): the cloud plans on a redacted question, the device does the steps with the private
data; or, `reverse`, the device plans and only the steps it is unsure of go to the cloud. `refine` (V5): the
device drafts, rates its own sentences, and the cloud edits those below `tau`, seeing each with a window of
its neighbours, never the whole. `draft` (V7): the device drafts, the cloud says how much of the draft stands
and goes on from there; where tokenizers match, `haversack run --decode remote` verifies tokens instead and is
exact.
Cost: `refine` sends the unsure sentences and their windows; `draft` receives a number and what follows it.
Limits: a model's rating of its own sentences is as good as its calibration; measure it (calibration.py).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from haversack.share.collaboration._algorithm import AGENT, Agent, Algorithm, bounded, consult
from haversack.share.collaboration._network import Network, NoAnswer
from haversack.share.collaboration._session import Session
from haversack.share.collaboration.contexts import hide, restore
from haversack.share.collaboration.roles import lines_of

SYSTEM = 40

STEPS = (
    "{question}\n\nWrite the steps to answer this, one a line, each beginning with '- ', at most "
    "{most}. Do not answer."
)
STEP = "{context}Task: {question}\n\nDone so far:\n{done}\n\nDo this step and write only its result:\n{step}"
FINISH = "{context}Task: {question}\n\nResults of the steps:\n{done}\n\nWrite the answer and nothing else."
EDIT = (
    "Question:\n{question}\n\nSentences of a draft, some marked to be checked:\n{spans}\n\nCorrect "
    "the marked ones. Reply "
    'with JSON and nothing else: {{"number": "corrected sentence", ...}}'
)
RATE = "Question:\n{question}\n\nIs this sentence of an answer right?\n{sentence}\n\nReply yes or no."
VERIFY = (
    "Question:\n{question}\n\nA draft of the answer, its words numbered by tens:\n{draft}\n\nIf all "
    "of it stands, reply "
    "OK. Else reply KEEP and the number of words that stand, then a new line and how the answer goes on."
)


@dataclass(frozen=True)
class Plan(Algorithm):
    """V4. `reverse`: the device plans; steps whose result it gives with less than `tau` go to the cloud."""

    code = "V4"
    name = "plan"
    summary = "The cloud plans on a redacted question; the device does the steps with what is private."

    planner: Agent = field(default="cloud", metadata=AGENT)
    worker: Agent = field(default="device", metadata=AGENT)
    most: int = 5
    reverse: bool = False
    tau: float = 0.5

    def check(self, network: Network) -> None:
        """Raises UserError without a limit of steps."""
        super().check(network)
        bounded("most", self.most, 1, 32)
        bounded("tau", self.tau, 0.0, 1.0)

    async def solve(self, session: Session) -> str:
        task = session.task
        safe, vault = hide(task.prompt)
        planner = self.worker if self.reverse else self.planner
        asked = STEPS.format(question=task.prompt if self.reverse else safe, most=self.most)
        try:
            steps = lines_of((await consult(session, planner, asked)).text, self.most)
        except NoAnswer as error:
            session.degraded, steps = str(error), []
        context = f"{task.context}\n\n" if task.context else ""
        done: list[str] = []
        for step in steps:
            step = restore(vault, step)
            prompt = STEP.format(
                context=context, question=task.prompt, done="\n".join(done) or "-", step=step
            )
            said = await consult(session, self.worker, prompt)
            text = said.text
            if self.reverse and (said.confidence or 0.0) < self.tau:
                text = await self._hard(session, safe, step, text, vault)
            done.append(f"- {step}: {text}")
            session.keep(text)
        prompt = FINISH.format(context=context, question=task.prompt, done="\n".join(done) or "-")
        return session.keep((await consult(session, self.worker, prompt)).text, 1.0)

    async def _hard(self, session: Session, safe: str, step: str, own: str, vault: object) -> str:
        """A step that the device is unsure of, asked without what is private."""
        hidden, more = hide(step)
        try:
            prompt = STEP.format(context="", question=safe, done="-", step=hidden)
            said = await consult(session, self.planner, prompt)
        except NoAnswer as error:
            session.degraded = str(error)
            return own
        return restore(more, said.text)


def sentences_of(text: str) -> list[str]:
    """The sentences of a text, with what stands between them."""
    return [part for part in re.split(r"(?<=[.!?])(?=\s)|(?<=\n)", text) if part]


@dataclass(frozen=True)
class Refine(Algorithm):
    """V5. `window`: sentences shown on each side of one that is unsure."""

    code = "V5"
    name = "refine"
    summary = "The device drafts; the cloud edits the sentences that the device itself is unsure of."

    device: Agent = field(default="device", metadata=AGENT)
    cloud: Agent = field(default="cloud", metadata=AGENT)
    tau: float = 0.6
    window: int = 1

    def check(self, network: Network) -> None:
        """Raises UserError for a window that has no bound."""
        super().check(network)
        bounded("tau", self.tau, 0.0, 1.0)
        bounded("window", self.window, 0, 16)

    async def solve(self, session: Session) -> str:
        question = session.task.question()
        draft = session.keep((await consult(session, self.device, question)).text)
        parts = sentences_of(draft)
        rates = [await self._sure(session, question, part) for part in parts]
        unsure = [at for at, rate in enumerate(rates) if rate < self.tau]
        if not unsure:
            return draft
        near = {
            other
            for at in unsure
            for other in range(max(0, at - self.window), min(len(parts), at + self.window + 1))
        }
        spans = "\n".join(
            f"{at}{' [check]' if at in unsure else ''}: {parts[at].strip()}" for at in sorted(near)
        )
        edits = (
            await consult(session, self.cloud, EDIT.format(question=session.task.prompt, spans=spans))
        ).text
        return session.keep("".join(edited(parts, edits, set(unsure))), 1.0)

    async def _sure(self, session: Session, question: str, sentence: str) -> float:
        """How sure the device is of one of its sentences."""
        said = await consult(
            session, self.device, RATE.format(question=question, sentence=sentence.strip()), most=8
        )
        yes = said.text.strip().lower().startswith("yes")
        sure = 1.0 if said.confidence is None else said.confidence
        return sure if yes else 1.0 - sure


def edited(parts: list[str], reply: str, allowed: set[int]) -> list[str]:
    """The sentences with a reply's edits of those that were to be checked; a reply that is none changes
    nothing."""
    found = re.search(r"\{.*\}", reply, re.DOTALL)
    try:
        edits = json.loads(found[0]) if found else {}
    except ValueError:
        edits = {}
    made = list(parts)
    for key, text in edits.items() if isinstance(edits, dict) else ():
        if str(key).isdigit() and int(key) in allowed and isinstance(text, str):
            old = parts[int(key)]
            lead = old[: len(old) - len(old.lstrip())]
            made[int(key)] = lead + text.strip() + old[len(old.rstrip()) :]
    return made


@dataclass(frozen=True)
class Draft(Algorithm):
    """V7."""

    code = "V7"
    name = "draft"
    summary = "The device drafts a text; the cloud says how many words stand, and goes on from there."

    device: Agent = field(default="device", metadata=AGENT)
    cloud: Agent = field(default="cloud", metadata=AGENT)

    async def solve(self, session: Session) -> str:
        question = session.task.question()
        draft = session.keep((await consult(session, self.device, question)).text)
        numbered = _numbered(draft)
        said = await consult(session, self.cloud, VERIFY.format(question=question, draft=numbered))
        return session.keep(accepted(draft, said.text), 1.0)


def _numbered(draft: str) -> str:
    words = draft.split()
    lines = [" ".join(words[at : at + 10]) for at in range(0, len(words), 10)]
    return "\n".join(f"[{at * 10}] {line}" for at, line in enumerate(lines))


def accepted(draft: str, verdict: str) -> str:
    """The draft as far as a verdict lets it stand, and what follows; one that is none of ours is the
    answer."""
    if re.match(r"\W*ok\b", verdict.strip(), re.IGNORECASE):
        return draft
    found = re.match(r"\W*keep\W+(\d+)[^\n]*(?:\n(.*))?\Z", verdict.strip(), re.IGNORECASE | re.DOTALL)
    if found is None:
        return verdict.strip()
    kept = re.match(rf"\s*(?:\S+\s*){{0,{min(int(found[1]), 10_000)}}}", draft)
    return f"{kept[0].rstrip() if kept else ''} {(found[2] or '').strip()}".strip()
