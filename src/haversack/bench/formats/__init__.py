"""The bench `formats`: what comes in from and goes out to other programs computes the same there and here.

gguf.py: GGUF files and tokenizers beside llama.cpp. onnx_export.py: graphs in ONNX Runtime.
safetensors_export.py: dense checkpoints in transformers. tokenizers.py: tokenizers made of older files beside
the libraries that wrote them.
"""

from __future__ import annotations

from haversack.bench.formats import gguf, onnx_export, safetensors_export, tokenizers
from haversack.bench.formats._bench import bench

__all__ = ["bench", "gguf", "onnx_export", "safetensors_export", "tokenizers"]
