"""Runs inside the peer's own environment: llama.cpp behind JSON lines. Never imported by the package.

    python -P _llama_cpp_worker.py write GGUF OUTPUT_TYPE    writes the random model, with the `gguf` package
    python -P _llama_cpp_worker.py serve                     answers one JSON request a line until standard
    input ends

Requests: open {model, threads, load, flash, context, vocab_only}, prefill {tokens}, decode {tokens}, threads
{n}, logits {}, tokenize {texts}. Only the wrapper's ctypes bindings are loaded, not its chat templates:
starting up costs the peer no more than it must.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import sys
import time
import types
from pathlib import Path


def _load(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _bindings():
    spec = importlib.util.find_spec("llama_cpp")
    package = types.ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


class Session:
    """One loaded model with one context."""

    def __init__(self, request: dict) -> None:
        self.api = api = _bindings()
        self._quiet = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(self._quiet, ctypes.c_void_p(0))
        api.llama_backend_init()
        model = api.llama_model_default_params()
        loads = {"mapped": api.LLAMA_LOAD_MODE_MMAP, "read": api.LLAMA_LOAD_MODE_NONE}
        model.load_mode = (loads | {"direct": api.LLAMA_LOAD_MODE_DIRECT_IO})[request["load"]]
        model.vocab_only = request.get("vocab_only", False)
        self.model = api.llama_model_load_from_file(request["model"].encode(), model)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {request['model']}")
        self.vocab = api.llama_model_get_vocab(self.model)
        if model.vocab_only:
            return
        context = api.llama_context_default_params()
        context.n_ctx = request["context"]
        context.n_batch = context.n_ubatch = 512
        context.n_threads = context.n_threads_batch = request["threads"]
        context.flash_attn_type = 1 if request["flash"] else 0
        self.context = api.llama_init_from_model(self.model, context)
        if not self.context:
            raise RuntimeError("llama.cpp cannot make a context")
        self.memory = api.llama_get_memory(self.context)
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.used = 0

    def _step(self, tokens: list[int]) -> None:
        array = (self.api.llama_token * len(tokens))(*tokens)
        code = self.api.llama_decode(self.context, self.api.llama_batch_get_one(array, len(tokens)))
        if code:
            raise RuntimeError(f"llama_decode ended with {code}")
        self.used += len(tokens)

    def prefill(self, tokens: list[int]) -> dict:
        """From an empty cache: all tokens in one batch, then the most likely next token."""
        self.api.llama_memory_clear(self.memory, False)
        self.used = 0
        start = time.perf_counter()
        self._step(tokens)
        self.api.llama_synchronize(self.context)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "next": self._best()}

    def decode(self, tokens: list[int]) -> dict:
        """After what the cache holds: one token at a time; the cache is cut back afterwards."""
        before = self.used
        start = time.perf_counter()
        for token in tokens:
            self._step([token])
            self.api.llama_get_logits_ith(self.context, -1)
        self.api.llama_synchronize(self.context)
        seconds = time.perf_counter() - start
        self.api.llama_memory_seq_rm(self.memory, 0, before, -1)
        self.used = before
        return {"seconds": seconds}

    def tokenize(self, texts: list[str]) -> dict:
        """The tokens of each text, special ones included, as the model wants a text to begin and end."""
        found = []
        for text in texts:
            data = text.encode()
            room = len(data) + 8
            tokens = (self.api.llama_token * room)()
            count = self.api.llama_tokenize(self.vocab, data, len(data), tokens, room, True, True)
            if count < 0:
                raise RuntimeError(f"llama_tokenize needs {-count} tokens for {len(data)} bytes")
            found.append(list(tokens[:count]))
        return {"tokens": found}

    def threads(self, n: int) -> dict:
        self.api.llama_set_n_threads(self.context, n, n)
        return {}

    def logits(self) -> dict:
        found = self.api.llama_get_logits_ith(self.context, -1)
        return {"logits": found[: self.vocabulary]}

    def system(self) -> dict:
        return {"text": self.api.llama_print_system_info().decode()}

    def _best(self) -> int:
        import numpy as np

        found = self.api.llama_get_logits_ith(self.context, -1)
        return int(np.ctypeslib.as_array(found, shape=(self.vocabulary,)).argmax())


def serve() -> None:
    session: Session | None = None
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("do")
        try:
            if what == "open":
                start = time.perf_counter()
                session = Session(request)
                reply = {"seconds": time.perf_counter() - start}
            else:
                reply = getattr(session, what)(**request)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


def write(path: str, output_type: str) -> None:
    """The random model as GGUF: Q4_0 everywhere, the output matrix as `output_type` (Q6_K or Q8_0).

    llama.cpp rotates neighbouring pairs of a head where hub checkpoints rotate halves, so the rows of the
    query and key matrices are reordered within each head, as every converter does.
    """
    import gguf
    import numpy as np

    weights = _load("equal_weights", Path(__file__).with_name("_equal_weights.py"))
    shape = weights.Shape()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.inner)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("no_vocab")
    q4_0 = gguf.GGMLQuantizationType.Q4_0
    for name, rows, columns in shape.matrices():
        values, scales = weights.int4_matrix(name, rows, columns)
        if ".q_proj." in name or ".k_proj." in name:
            order = np.arange(rows).reshape(-1, 2, shape.head_width // 2).swapaxes(1, 2).reshape(-1)
            values, scales = values[order], scales[order]
        groups = (values.reshape(rows, -1, 32) + 8).astype(np.uint8)
        blocks = np.empty((rows, columns // 32, 18), np.uint8)
        blocks[..., :2] = scales[..., None].view(np.uint8)
        blocks[..., 2:] = groups[..., :16] | (groups[..., 16:] << 4)
        writer.add_tensor(_gguf_name(name), blocks.reshape(rows, -1), raw_dtype=q4_0)
    for name in shape.norms():
        writer.add_tensor(_gguf_name(name), weights.norm_weight(name, shape))
    kind = gguf.GGMLQuantizationType[output_type]
    output = weights.output_matrix(shape)
    stored = _q6_k(output) if output_type == "Q6_K" else gguf.quants.quantize(output, kind)
    writer.add_tensor("output.weight", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _q6_k(matrix):
    """Q6_K rows: blocks of 256 = 128 bytes of low nibbles, 64 of high pairs, 16 int8 scales, one f16."""
    import numpy as np

    rows, columns = matrix.shape
    x = matrix.reshape(rows, columns // 256, 16, 16)
    largest = np.abs(x).max(axis=3)
    d = (largest.max(axis=2) / 31 / 127).astype(np.float16)
    scales = np.clip(np.rint(largest / 31 / d[..., None].astype(np.float32)), 1, 127).astype(np.int8)
    step = scales.astype(np.float32) * d[..., None].astype(np.float32)
    q = (np.clip(np.rint(x / step[..., None]), -32, 31) + 32).astype(np.uint8).reshape(rows, -1, 2, 4, 32)
    low = (q[..., [0, 1], :] & 15) | ((q[..., [2, 3], :] & 15) << 4)
    high = (
        (q[..., 0, :] >> 4)
        | ((q[..., 1, :] >> 4) << 2)
        | ((q[..., 2, :] >> 4) << 4)
        | ((q[..., 3, :] >> 4) << 6)
    )
    blocks = np.empty((rows, columns // 256, 210), np.uint8)
    blocks[..., :128] = low.reshape(rows, -1, 128)
    blocks[..., 128:192] = high.reshape(rows, -1, 64)
    blocks[..., 192:208] = scales.view(np.uint8)
    blocks[..., 208:] = d[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def _gguf_name(name: str) -> str:
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in fixed:
        return fixed[name]
    _, _, layer, rest = name.split(".", 3)
    parts = {
        "self_attn.q_proj.weight": "attn_q",
        "self_attn.k_proj.weight": "attn_k",
        "self_attn.v_proj.weight": "attn_v",
        "self_attn.o_proj.weight": "attn_output",
        "mlp.gate_proj.weight": "ffn_gate",
        "mlp.up_proj.weight": "ffn_up",
        "mlp.down_proj.weight": "ffn_down",
        "input_layernorm.weight": "attn_norm",
        "post_attention_layernorm.weight": "ffn_norm",
    }
    return f"blk.{layer}.{parts[rest]}.weight"


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(*sys.argv[2:4])
    else:
        serve()
