"""What a scheme of sparse updates reaches: a short training of it, judged on rows that it has not seen.

`analysed` of _sparse_search.py calls this once for each choice; the sums that come out go into
`sparse:contributions=FILE`. The paper measures on a server and finds that one analysis serves other data.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from haversack.core.errors import UserError
from haversack.train._network import Batch, Slice, head_of
from haversack.train._slots import Learned, Settings
from haversack.train.gradient.backprop import Backprop
from haversack.train.networks._graph import GraphNetwork
from haversack.train.parameters._sparse_memory import Scheme
from haversack.train.parameters.sparse import learned_channels
from haversack.train.precision.int8_qas import Int8Qas


def accuracy_of(
    open_again: Callable[[], GraphNetwork],
    learn: Batch,
    judge: Batch,
    *,
    classes: int,
    epochs: int = 3,
    rows: int = 16,
    rate: float = 0.01,
    head: float = 3.0,
    seed: int = 0,
) -> Callable[[Scheme], float]:
    """A function scheme -> share of `judge` named rightly after `epochs` passes over `learn`.

    `open_again` gives the network as it was before any training; it gets a fresh classifier, which learns
    `head` times as fast. Raises UserError where a training's loss is not finite.
    """

    def measured(scheme: Scheme) -> float:
        network = open_again()
        network.new_head(tuple(str(each) for each in range(classes)), seed)
        chosen = learned_channels(network.graph, scheme)
        wanted: dict[str, Slice | None] = {}
        for name, array in network.tensors().items():
            if name in chosen or name in head_of(network):
                channels = chosen.get(name)
                wanted[name] = None if channels is None else Slice(array.ndim - 1, channels)
        learned = Learned(wanted)
        numbers = Int8Qas(latent="float").begin(network, learned)
        steps = epochs * -(-len(learn) // rows)
        stepper = Backprop(head=head).begin(network, learned, Settings(steps, rows, seed, numbers))
        for epoch in range(epochs):
            order = np.random.default_rng([seed, epoch]).permutation(len(learn))
            for start in range(0, len(learn), rows):
                part = order[start : start + rows]
                loss = stepper.step(Batch(learn.inputs[part], learn.labels[part]), rate)
                if not np.isfinite(loss):
                    raise UserError(
                        f"the loss of {scheme} is not finite; lower the rate.", field="rate", given=rate
                    )
        numbers.finish()
        return float((network.logits(judge.inputs).argmax(axis=1) == judge.labels).mean())

    return measured
