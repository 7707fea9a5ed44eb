"""Trains a toy Whisper of digits in its own process; prints a hash of the weights and exports them.

python _resume_digits_run.py REFERENCE_FOLDER WORK_FOLDER STOP_AFTER
"""

import hashlib
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, sys.argv[1])
import train_digits
from digits_export import export_folder
from digits_recipe import VOCABULARY, Recipe, Shape
from haversack.models._train_loop_torch import Schedule
from haversack.models.audio._spoken_digits import Recording

torch.set_num_threads(1)
work = Path(sys.argv[2])
time = np.arange(3200) / 16_000
recordings = [
    Recording(digit, "ada", index, (0.3 * np.sin(6.28 * (300 + 200 * digit) * time)).astype(np.float32))
    for digit in range(10)
    for index in (4, 5)
]
schedule = Schedule(steps=6, warm_up_steps=2)
train_digits.RECIPES = {"toy": Recipe(Shape(32, 1, 64), schedule, rows=2, seed=3)}
recipe = Recipe(Shape(64, 2, 96), schedule, rows=2, seed=3, grown_from="toy")
weights = train_digits.train(recordings, recipe, work, 0.0, int(sys.argv[3]))
export_folder(work / "model", recipe.shape.hub_config(), weights, VOCABULARY)
joined = b"".join(weights[name].detach().numpy().tobytes() for name in sorted(weights))
print(hashlib.sha256(joined).hexdigest())
