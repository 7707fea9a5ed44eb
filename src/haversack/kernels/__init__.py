"""The arithmetic of every model: native kernels, and for each a numpy twin that is its definition.

`HAVERSACK_KERNELS=native` (the default) runs the native module and fails, naming the build command, when it
is missing; `HAVERSACK_KERNELS=twin` runs numpy. `HAVERSACK_ISA` names an instruction set (portable, avx2,
avx512, neon, dotprod).

Every kernel is row-invariant: the bits of one output row depend neither on how many rows a call has, nor on
the number of threads, nor on how the work is cut.
"""

from __future__ import annotations

from haversack.core._names import lazily

# Public name -> the file that holds it.
_PUBLIC = {
    "Matrix": "_matrix",
    "pack_int3": "_matrix",
    "pack_int4": "_matrix",
    "pack_int8": "_matrix",
    "interleave_rows": "_matrix",
    "interleaved_nbytes": "_matrix",
    "packed_nbytes": "_matrix",
    "unpack": "_matrix",
    "huge_copy": "memory",
    "interleave": "blocks",
    "to_blocks": "blocks",
    "matmul": "products",
    "matmul_many": "products",
    "zero_bias": "products",
    "isa": "processor",
    "set_threads": "processor",
    "threads": "processor",
    "layer_norm": "norms",
    "rms_norm": "norms",
    "rope": "rotary",
    "rope_table": "rotary",
    "log_softmax": "probabilities",
    "softmax": "probabilities",
    "route": "routing",
    "gate": "gates",
    "softcap": "gates",
    "CacheLayer": "attend",
    "Distances": "attend",
    "Visible": "attend",
    "attention": "attend",
    "cache_gather": "attend",
    "cache_write": "attend",
    "rope_write": "attend",
    "best_keys": "chunks",
    "left_to_choose": "chunks",
    "no_sums": "chunks",
    "score_chunks": "chunks",
    "Chosen": "chosen",
    "chosen_attention": "chosen",
    "feature_width": "gaps",
    "gap_features": "gaps",
    "PoolLayer": "pooled",
    "pool_attention": "pooled",
    "pool_write": "pooled",
    "Channels": "sparse",
    "SparseMatrix": "sparse",
    "channel_nbytes": "sparse",
    "pack_channels": "sparse",
    "pack_channels_int4": "sparse",
    "unpack_channels": "sparse",
    "Outliers": "outliers",
    "Shadow": "shadow",
    "gather": "outliers",
    "filter_logits": "sampling",
    "only_allowed": "sampling",
    "greedy": "sampling",
    "sample": "sampling",
    "uniform": "sampling",
}

__all__ = list(_PUBLIC)

__getattr__, __dir__ = lazily(__name__, globals(), _PUBLIC)
