"""The bench object that the files of this folder add their rows to."""

from __future__ import annotations

from haversack.bench._harness import Bench
from haversack.bench._native import NATIVE_FILES

OTHERS_FILES = (
    *("!run/_automaton.py", "!run/_constraint.py", "!run/_json*.py", "!run/_regex.py", "!run/_schema*.py"),
    *("!run/_terms.py", "!run/_batch.py", "!run/_jobs.py", "!run/_pool*.py", "!run/_prefix_store.py"),
    *("!run/_answers.py", "!run/_conversation.py", "!run/_enc*.py", "!run/_embed.py", "!run/export/*.py"),
    *("!run/_speech*.py", "!run/_hear.py", "!run/_beams.py", "!run/_transcribe.py", "!run/_times.py"),
    *("!run/residency/_*.py", "!run/residency/d2moe.py", "!run/residency/edgemoe.py"),
    *("!run/residency/sealed.py", "!run/residency/smallthinker.py", "!run/_shelf.py", "!run/_levels.py"),
    *("!run/_expert_buffer.py", "!run/_eviction.py", "!run/_prediction.py", "!run/_paths.py"),
    *("!run/_head_predictor.py", "!run/decode/sparse_head.py", "!run/decode/tree.py"),
    *("!run/_token_tree.py", "!run/_tree_draft.py", "!run/_draft_costs.py"),
    *("!run/attention/dhsa.py", "!run/attention/_p*.py", "!run/attention/_sel*.py"),
    *(
        "!models/_gguf*.py",
        "!models/_hub*.py",
        "!models/_fake_quant.py",
        "!models/_observers.py",
        "!models/*_torch.py",
        "!models/_chat.py",
        "!models/_template*.py",
        "!models/_tool*.py",
    ),
)
"""Files beside those below that no row of this bench runs: constraints, servers, encoders, speech, stores of
experts, sealed weights, trees of drafts, sparse prompts, other formats."""
ENGINE_FILES = (
    "bench/engine/*.py",
    "kernels/*.py",
    *NATIVE_FILES,
    "models/*.py",
    "models/language/*.py",
    "run/**/*.py",
    *OTHERS_FILES,
)
SHRINK_FILES = (*ENGINE_FILES, "shrink/**/*.py", "models/texts/*", "reference_models/code/*")

bench = Bench("engine", watches=ENGINE_FILES)
