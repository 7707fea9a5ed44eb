"""What may be asked: OpenAI's request bodies as records, and how a body that is none is refused.

Fields that OpenAI does not know are refused by name, as OpenAI does. Fields that it knows and that change no
answer here (`user`, `metadata`, ...) are ignored; fields that would change the answer and are not done here
are refused when they ask for something. `top_k`, `min_p`, `repetition_penalty` and `ignore_eos` are ours.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from haversack.core.errors import nearest_name
from haversack.share._errors import ApiError

MOST_CHOICES = 16
MOST_PROMPTS = 64
MOST_TEXTS = 256
MOST_TOOLS = 128

Natural = Annotated[int, Meta(ge=1, le=1 << 31)]
Choices = Annotated[int, Meta(ge=1, le=MOST_CHOICES)]
Token = Annotated[int, Meta(ge=0, le=1 << 31)]
Seed = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
Stop = Annotated[str, Meta(max_length=1024)]
Texts = str | Annotated[list[str | Token | list[Token]], Meta(min_length=1, max_length=1 << 20)]
"""A text, its tokens, or several of either."""


class Record(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A JSON object without unknown fields."""


class StreamOptions(Record, kw_only=True):
    """`include_usage`: a last chunk counts the tokens."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Sampling(Record, kw_only=True):
    """What completions and chat share."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Natural | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    n: Choices | None = None
    seed: Seed | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=16)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    # Ours.
    top_k: Annotated[int, Meta(ge=0, le=1 << 30)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    ignore_eos: bool | None = None
    # Known to OpenAI, without effect here.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class CompletionRequest(Sampling, kw_only=True):
    """POST /v1/completions"""

    prompt: Texts = ""
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: Natural | None = None
    suffix: str | None = None


class TextPart(Record, kw_only=True, tag_field="type", tag="text"):
    """A piece of a message's content."""

    text: str


class CalledFunction(Record, kw_only=True):
    """`arguments` is JSON text."""

    name: str
    arguments: str


class ToolCall(Record, kw_only=True):
    """A call that an earlier answer made."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class Message(Record, kw_only=True):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=MOST_TOOLS)] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None


class Function(Record, kw_only=True):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Record, kw_only=True):
    type: Literal["function"]
    function: Function


class FunctionName(Record, kw_only=True):
    name: str


class NamedChoice(Record, kw_only=True):
    """The model must call this function."""

    type: Literal["function"]
    function: FunctionName


class TextFormat(Record, kw_only=True, tag_field="type", tag="text"):
    """Any text."""


class JsonFormat(Record, kw_only=True, tag_field="type", tag="json_object"):
    """A JSON object."""


class Schema(Record, kw_only=True):
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class SchemaFormat(Record, kw_only=True, tag_field="type", tag="json_schema"):
    """JSON that the schema allows."""

    json_schema: Schema


class ChatRequest(Sampling, kw_only=True):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=4096)]
    max_completion_tokens: Natural | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | JsonFormat | SchemaFormat | None = None
    # Known to OpenAI and not done here: see REFUSED.
    audio: Any = None
    functions: Any = None
    function_call: Any = None
    modalities: list[str] | None = None
    prediction: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None


class EmbeddingRequest(Record, kw_only=True):
    """POST /v1/embeddings"""

    model: str
    input: Texts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Natural | None = None
    user: str | None = None


REFUSED = {
    "audio": "only text is answered here",
    "functions": "use tools",
    "function_call": "use tool_choice",
    "prediction": "predicted outputs are not done here",
    "reasoning_effort": "this server does not steer reasoning",
    "verbosity": "this server does not steer verbosity",
    "web_search_options": "nothing is searched here",
    "suffix": "these models do not fill in the middle",
}
"""Known fields that would change an answer, and why they are refused."""

R = TypeVar("R", bound=Record)
_AT = re.compile(r" - at `(?:key in )?\$\.?(.*?)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `(.*)`")
_DECODERS: dict[type, Any] = {}


def parse(body: bytes, kind: type[R]) -> R:
    """The request in `body`. Raises ApiError (400) for what is no JSON, has another shape, or asks for what
    is not done here."""
    decoder = _DECODERS.setdefault(kind, msgspec.json.Decoder(kind))
    try:
        request: R = decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _misshapen(str(error), kind) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}.", code="invalid_json") from error
    for name, why in REFUSED.items():
        given = getattr(request, name, None)
        if given not in (None, [], {}):
            raise ApiError(400, f"{name} is not supported: {why}.", param=name, code="unsupported_parameter")
    modalities = getattr(request, "modalities", None)
    if modalities not in (None, ["text"]):
        raise ApiError(
            400, "modalities may be ['text'] only.", param="modalities", code="unsupported_parameter"
        )
    return request


def several(texts: Texts, param: str, most: int) -> list[str | list[int]]:
    """The texts, or their tokens, one by one. Raises ApiError (400) for a mixture and for more than
    `most`."""
    if isinstance(texts, str):
        return [texts]
    if all(isinstance(one, int) for one in texts):
        return [texts]  # type: ignore[list-item]
    if not (all(isinstance(one, str) for one in texts) or all(isinstance(one, list) for one in texts)):
        raise ApiError(400, f"{param} mixes texts and tokens.", param=param, code="invalid_type")
    if len(texts) > most:
        raise ApiError(400, f"{param} has {len(texts)} texts (at most {most}).", param=param, code="too_many")
    return texts  # type: ignore[return-value]


def _misshapen(said: str, kind: type[Record]) -> ApiError:
    at = _AT.search(said)
    where = at[1] if at else ""
    what = said[: at.start()] if at else said
    unknown = _UNKNOWN.match(what)
    if unknown:
        field = f"{where}.{unknown[1]}" if where else unknown[1]
        nearest = nearest_name(unknown[1], kind.__struct_fields__) if not where else None
        hint = f" Did you mean {nearest}?" if nearest else ""
        return ApiError(400, f"unknown field: {field}.{hint}", param=field[:200], code="unknown_parameter")
    missing = re.match(r"^Object missing required field `(.*)`", what)
    if missing:
        field = f"{where}.{missing[1]}" if where else missing[1]
        return ApiError(400, f"{field} is missing.", param=field, code="missing_required_parameter")
    sentence = f"{where}: {what[:1].lower()}{what[1:]}." if where else f"{what}."
    return ApiError(400, sentence.replace("`", ""), param=where or None, code="invalid_type")
