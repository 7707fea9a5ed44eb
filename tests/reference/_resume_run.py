"""Trains a toy `code` in its own process, which the test can kill; prints a hash of the weights.

python _resume_run.py REFERENCE_FOLDER WORK_FOLDER
"""

import hashlib
import sys
from pathlib import Path

import torch

sys.path.insert(0, sys.argv[1])
import train_code
from code_recipe import Recipe, Stage, make_tokenizer
from haversack.models._train_loop_torch import Schedule
from haversack.models.language.llama_torch import LlamaShape

torch.set_num_threads(1)
work = Path(sys.argv[2])
source = Path(__file__).read_text(encoding="utf-8")
texts = [(str(i), source.replace("work", f"place_{i}")) for i in range(8)]
shape = LlamaShape(
    vocabulary=320, width=32, layers=2, heads=2, key_value_heads=1, feed_forward=64, context=64
)
recipe = Recipe(shape, Schedule(steps=40, warm_up_steps=5), (Stage(0, 4, 32), Stage(30, 2, 64)), seed=3)
weights = train_code.train(
    texts, make_tokenizer(texts, shape.vocabulary, work), recipe, work, compiled=False, checkpoint_seconds=0.0
)
joined = b"".join(weights[name].numpy().tobytes() for name in sorted(weights))
print(hashlib.sha256(joined).hexdigest())
