"""Trains a toy of `code` or `code-moe` in its own process, which the test can kill; prints a hash of the
weights.

python _resume_run.py REFERENCE_FOLDER WORK_FOLDER code|code-moe
"""

import hashlib
import sys
from pathlib import Path

import torch

sys.path.insert(0, sys.argv[1])
import train_code
import train_code_moe
from code_recipe import Recipe, Stage, make_tokenizer
from haversack.models._train_loop_torch import Schedule
from haversack.models.language.llama_torch import LlamaShape
from haversack.models.language.smallthinker_torch import SmallThinkerShape

torch.set_num_threads(1)
work = Path(sys.argv[2])
source = Path(__file__).read_text(encoding="utf-8")
texts = [(str(i), source.replace("work", f"place_{i}")) for i in range(8)]
shapes = {
    "code": LlamaShape(
        vocabulary=320, width=32, layers=2, heads=2, key_value_heads=1, feed_forward=64, context=64
    ),
    "code-moe": SmallThinkerShape(
        vocabulary=320,
        width=32,
        layers=2,
        heads=2,
        key_value_heads=1,
        head_width=16,
        experts=4,
        top=2,
        feed_forward=32,
        window=48,
        context=64,
    ),
}
losses = {"code": train_code.loss_function, "code-moe": train_code_moe.balanced_loss}
name = sys.argv[3]
shape = shapes[name]
recipe = Recipe(shape, Schedule(steps=40, warm_up_steps=5), (Stage(0, 4, 32), Stage(30, 2, 64)), seed=3)
tokenizer = make_tokenizer(texts, shape.vocabulary, work)
weights = train_code.train(
    *(texts, tokenizer, recipe, work),
    compiled=False,
    checkpoint_seconds=0.0,
    name=name,
    loss_of=losses[name],
)
joined = b"".join(weights[key].numpy().tobytes() for key in sorted(weights))
print(hashlib.sha256(joined).hexdigest())
