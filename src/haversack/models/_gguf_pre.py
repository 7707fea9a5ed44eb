"""How each `tokenizer.ggml.pre` of GGUF cuts a text into words before merges: the names of llama.cpp, the
patterns of the models' own tokenizers.

Patterns are applied one after the other; each cuts the pieces of the one before at its matches, and what lies
between matches stays a piece.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pre:
    """`patterns` in order; `whole`: a word that is a token is taken as it is, without merges; `starts`: a
    text begins with the start token unless the file says otherwise."""

    patterns: tuple[str, ...]
    whole: bool = False
    starts: bool = False


_ENDINGS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LETTER = r"[^\r\n\p{L}\p{N}]?"


def _words(digits: str, endings: str = _ENDINGS + "|") -> str:
    """Endings, words with one sign before them, digits, signs with the line ends behind them, spaces."""
    return rf"{endings}{_LETTER}\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"


def _cased(digits: str, endings: str = "") -> str:
    """Words cut where lower case turns into upper case."""
    return (
        rf"{_LETTER}{_UPPER}*{_LOWER}+{endings}|{_LETTER}{_UPPER}+{_LOWER}*{endings}|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    )


_LLAMA3 = Pre((_words(r"\p{N}{1,3}"),), whole=True, starts=True)
_QWEN2 = Pre((_words(r"\p{N}"),))
_PLAIN = Pre((_GPT2,))
_DIGITS = Pre((r"\p{N}", _GPT2))
_GPT4O = Pre((_cased(r"\p{N}{1,3}", _ENDINGS + "?"),))
_CODER = "[一-龥ࠀ-一가-퟿]+"

PRES: dict[str, Pre] = {
    "default": Pre((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), _LLAMA3
    ),
    "dbrx": Pre(_LLAMA3.patterns),
    "smaug-bpe": Pre(_LLAMA3.patterns),
    "chatglm-bpe": Pre(_LLAMA3.patterns),
    "glm4": Pre(_LLAMA3.patterns, whole=True),
    "minicpm5": Pre((r"\p{N}{1,3}", _words(r"\p{N}+")), whole=True),
    **dict.fromkeys(
        ("qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"),
        _QWEN2,
    ),
    "qwen35": Pre(
        (rf"{_ENDINGS}|{_LETTER}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",)
    ),
    **dict.fromkeys(
        (
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "exaone4",
            "granite-docling",
            "mellum",
            "gigachat",
        ),
        _PLAIN,
    ),
    **dict.fromkeys(
        ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"),
        _DIGITS,
    ),
    "falcon": Pre((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "tekken": Pre((_cased(r"\p{N}"),), whole=True, starts=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), _GPT4O),
    "deepseek-coder": Pre(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CODER, r"\p{N}")),
    "deepseek-v3": Pre(
        (
            r"\p{N}{1,3}",
            "[一-龥぀-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
        )
    ),
}
"""Name -> how it cuts. Those of llama.cpp that need its own code are left out; a file with one is refused."""
