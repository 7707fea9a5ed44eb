"""Trains `code-draft`, at most one million parameters, to say what `code` would say.

    OMP_WAIT_POLICY=passive python reference/train_draft.py --work DIR [--teacher DIR] [--stdlib DIR]

The draft reads the training text and descends the cross-entropy between its distribution and that of `code`
(Hinton et al., "Distilling the Knowledge in a Neural Network", 2015) with the teacher's temperature below
one, which favours what is asked of a draft: the same most likely token. About ten minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from code_evaluate import load_model
from code_export import export_folder
from code_recipe import Recipe, Stage, Windows, fingerprint
from code_text import read_text
from code_tokenizer import token_stream
from haversack.models._train_loop_torch import (
    Loss,
    Schedule,
    Trainer,
    compute_type,
    computing,
    keep_freed_memory,
    log_to,
)
from haversack.models.language.llama_torch import Llama, LlamaShape

MODELS = Path(__file__).resolve().parents[1] / "src" / "haversack" / "reference_models"
RECIPE = Recipe(
    LlamaShape(vocabulary=5120, width=128, layers=3, heads=4, key_value_heads=1, feed_forward=128),
    Schedule(steps=800, matrix_rate=0.02, other_rate=0.006),
    (Stage(0, 16, 256), Stage(200, 4, 1024), Stage(400, 2, 2048)),
)
TEACHER_TEMPERATURE = 0.7


class Distillation(torch.autograd.Function):
    """Mean cross-entropy from the teacher's to the student's distribution, in pieces of rows.

    hidden [n, width], weight [vocabulary, width], and the same of the teacher; gradients reach the student
    alone.
    """

    @staticmethod
    def forward(
        context: Any, hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor
    ) -> Tensor:
        compute, rows = hidden.dtype, 512  # their logits stay in the cache of the processor
        narrow, teacher_narrow = weight.to(compute), teacher_weight.to(compute)
        total = hidden.new_zeros((), dtype=torch.float32)
        hidden_gradient, weight_gradient = torch.empty_like(hidden), torch.zeros_like(weight)
        for start in range(0, hidden.shape[0], rows):
            piece = hidden[start : start + rows]
            wanted = (
                (teacher_hidden[start : start + rows] @ teacher_narrow.T).float().div_(TEACHER_TEMPERATURE)
            )
            wanted = wanted.softmax(-1)
            logits = (piece @ narrow.T).float()
            normalizer = logits.logsumexp(-1, keepdim=True)
            total += normalizer.sum() - torch.dot(wanted.flatten(), logits.flatten())
            difference = logits.sub_(normalizer).exp_().sub_(wanted).div_(hidden.shape[0]).to(compute)
            hidden_gradient[start : start + rows] = difference @ narrow
            weight_gradient += difference.T @ piece
        context.save_for_backward(hidden_gradient, weight_gradient)
        return total / hidden.shape[0]

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_gradient, weight_gradient = context.saved_tensors
        return gradient * hidden_gradient, gradient * weight_gradient, None, None


def loss_function(
    student: Llama, teacher: Llama, windows: Windows, device: torch.device, compiled: bool
) -> Loss:
    """The distillation loss of a step's rows, with float32 sums."""
    student_hidden, teacher_hidden = student.hidden, teacher.hidden
    if compiled:
        student_hidden = torch.compile(student.hidden, dynamic=False)
        teacher_hidden = torch.compile(teacher.hidden, dynamic=False)

    def loss(step: int) -> Tensor:
        tokens = windows.rows(step)[0].to(device)
        with computing(device):
            with torch.no_grad():
                wanted = teacher_hidden(tokens).to(compute_type(device)).flatten(0, 1)
            states = student_hidden(tokens).to(compute_type(device)).flatten(0, 1)
        return Distillation.apply(
            states, student.model.embed_tokens.weight, wanted, teacher.model.embed_tokens.weight
        )

    return loss


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("reference-work"), help="folder of the intermediates"
    )
    parser.add_argument("--teacher", type=Path, default=MODELS / "code")
    parser.add_argument("--stdlib", type=Path, default=None, help="default: that of the running interpreter")
    parser.add_argument("--out", type=Path, default=MODELS / "code-draft")
    parser.add_argument(
        "--threads", type=int, default=2, help="of the CPU; part of what makes a run repeatable"
    )
    parser.add_argument(
        "--eager", action="store_true", help="do not compile the models (slower, needs no g++)"
    )
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    texts = read_text(arguments.stdlib)["train"]
    teacher, tokenizer = load_model(arguments.teacher)
    teacher.requires_grad_(False).to(device)
    teacher_hash = hashlib.sha256((arguments.teacher / "model.safetensors").read_bytes()).hexdigest()
    made_from = (texts, asdict(RECIPE), TEACHER_TEMPERATURE, teacher_hash, arguments.threads, arguments.eager)
    folder = arguments.work / f"code-draft-{fingerprint(*made_from)}"
    folder.mkdir(parents=True, exist_ok=True)
    student = Llama(RECIPE.shape)
    student.initialize(RECIPE.seed)
    student.to(device)
    print(
        f"{sum(value.numel() for value in student.parameters()):,} parameters, {device}, {folder}", flush=True
    )
    trainer = Trainer(student, RECIPE.schedule, folder, RECIPE.average_half_life_steps)
    windows = Windows(token_stream(tokenizer, texts), RECIPE.stages, RECIPE.seed)
    trainer.run(
        loss_function(student, teacher, windows, device, not arguments.eager),
        report=log_to(folder / "log.jsonl"),
    )
    export_folder(arguments.out, RECIPE.shape, trainer.average, tokenizer)


if __name__ == "__main__":
    main()
