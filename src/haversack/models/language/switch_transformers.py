"""Switch Transformers (Fedus, Zoph and Shazeer, 2022): T5 with a mixture of experts in every second block or
so, of which a token takes the one that the router rates highest.

What the expert makes is multiplied by the router's probability of it, a softmax over all experts in float32.
An expert takes the first `expert_capacity` tokens of a text that is read; those behind them pass the block as
they are. A text that is being written comes token by token and reaches no capacity. Jitter is for training.
Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient Sparsity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from haversack.models._architecture import Architecture, FeedForward, Linear, Mixture
from haversack.models._config import Config
from haversack.models.language._mixture import MOST_EXPERTS
from haversack.models.language._shape import GATES
from haversack.models.language._text_to_text import SIDES, Sizes, dense, read_sizes, text_to_text

CLASSES = ("SwitchTransformersForConditionalGeneration", "SwitchTransformersModel")
EXPERTS, CAPACITY, SPARSE = 8, 64, 3  # of a config that does not mention them


def read(values: Mapping[str, Any]) -> Architecture:
    """The architecture of a Switch Transformers config. Raises UserError for a field that cannot be."""
    config = Config(values)
    sizes = read_sizes(config, CLASSES)
    config.only("is_gated_act", False)
    config.only("router_dtype", "float32")
    config.only("num_selected_experts", 1)
    config.only("batch_prioritized_routing", False)
    activation = config.choice("dense_act_fn", "relu", GATES)
    experts = config.whole("num_experts", EXPERTS, most=65536)
    if experts * sum(sizes.layers) > MOST_EXPERTS:
        nearest = max(MOST_EXPERTS // sum(sizes.layers), 1)
        raise config.wrong("num_experts", f"asks for more than {MOST_EXPERTS} in all blocks", nearest)
    bias = config.flag("router_bias", False)
    capacity = config.whole("expert_capacity", CAPACITY)
    steps = {side: _step(config, sizes, side) for side in SIDES}

    def feed(side: str, index: int, module: str) -> FeedForward | Mixture:
        step, module = steps[side], f"{module}.mlp"
        if step == 0 or (step != 1 and index % step != 1):
            return dense(sizes, module, activation)
        return Mixture(
            router=Linear.named(f"{module}.router.classifier", sizes.width, experts, bias),
            experts=tuple(
                dense(sizes, f"{module}.experts.expert_{number}", activation) for number in range(experts)
            ),
            top=1,
            capacity=capacity if side == "encoder" else None,
        )

    tied = config.flag("tie_word_embeddings", True)
    return text_to_text("switch_transformers", config, sizes, feed, tied=tied, scaled=tied, own=not tied)


def _step(config: Config, sizes: Sizes, side: str) -> int:
    """Every how many blocks of a side there is a mixture, from the second on (1: in every block; 0: in none):
    as `encoder_sparse_step` says, or blocks divided by `num_sparse_encoder_layers`.
    """
    named = f"{side}_sparse_step"
    if config.has(named):
        return config.whole(named, least=0, most=4096)
    layers = sizes.layers[SIDES.index(side)]
    sparse = config.whole(f"num_sparse_{side}_layers", SPARSE, least=0, most=4096)
    return layers // sparse if sparse else layers
