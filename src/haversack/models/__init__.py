"""Architectures by modality, tokenizers and the texts that compression looks at; torch-free unless a file
ends in
`_torch`."""

from __future__ import annotations

from haversack.core._names import lazily

_PUBLIC = {
    "Architecture": "_architecture",
    "Attention": "_architecture",
    "Block": "_architecture",
    "Branch": "_architecture",
    "ChatTemplate": "_chat",
    "CrossAttention": "_architecture",
    "EncoderArchitecture": "language._encoder",
    "FeedForward": "_architecture",
    "Linear": "_architecture",
    "Mixture": "_architecture",
    "Norm": "_architecture",
    "Positions": "_architecture",
    "Rope": "_rope",
    "SpeechArchitecture": "audio._record",
    "Tokenizer": "_tokenizer",
    "read_architecture": "language",
    "read_encoder": "language",
    "read_speech": "audio",
}

__all__ = list(_PUBLIC)

__getattr__, __dir__ = lazily(__name__, globals(), _PUBLIC)
