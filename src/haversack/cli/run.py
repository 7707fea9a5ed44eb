"""Run a pack or a checkpoint: complete a text on this machine, inside a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from haversack.cli._answer import print_answer, print_record
from haversack.cli._given_text import text_of
from haversack.cli._output import Json
from haversack.core.errors import UserError


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="PACK",
            help="a pack, a checkpoint folder, a GGUF file, a bundled model (code) or a hub name "
            "(owner/name[@revision]); a forecaster's pack of one file",
        ),
    ],
    input: Annotated[
        str | None,
        typer.Argument(
            metavar="[INPUT]",
            help="a text file to complete (- or none: standard input); an encoder takes a text here as well, "
            "a forecaster a table (CSV)",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="the text to complete, instead of INPUT; without either, on a terminal: a chat"),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="end after so many tokens")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token")] = 0.0,
    top_k: Annotated[int, typer.Option(help="draw from the k likeliest tokens; 0: from all")] = 0,
    top_p: Annotated[
        float, typer.Option(help="draw from the fewest tokens that reach this probability")
    ] = 1.0,
    min_p: Annotated[
        float, typer.Option(help="draw from tokens at least this times as likely as the first")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="above 1: tokens seen before become less likely")
    ] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option(help="end before this text; may be given several times")
    ] = None,
    ignore_end: Annotated[bool, typer.Option("--ignore-end", help="go on after the end of the text")] = False,
    seed: Annotated[int, typer.Option(help="the same seed draws the same tokens")] = 0,
    log_probabilities: Annotated[
        bool, typer.Option("--log-probabilities", help="print each token's natural log-probability")
    ] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="the text is what a user says; the model answers it")
    ] = False,
    system: Annotated[str | None, typer.Option(help="chat: what the model is told first")] = None,
    tools: Annotated[
        Path | None, typer.Option(help="chat: a JSON file of the functions the model may call")
    ] = None,
    chat_template: Annotated[
        Path | None, typer.Option(help="chat: a Jinja file instead of the model's own template")
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(help="a JSON schema that the answer satisfies, by construction")
    ] = None,
    residency: Annotated[
        str | None,
        typer.Option(
            help="where weights live: mapped, copied, streamed, experts alone: streamed:edgemoe, "
            "streamed:smallthinker, streamed:d2moe, or sealed (default: the pack's plan)"
        ),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="the file of a sealed pack's key", metavar="KEYFILE")
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(
            help="dense, sliding:window=N,sink=N or dhsa:budget=N (default: the pack's plan, or dense)"
        ),
    ] = None,
    context: Annotated[str, typer.Option(help="what of the prompt is read: tokens")] = "tokens",
    prefill: Annotated[
        str,
        typer.Option(
            help="whole, chunked:tokens=N, or on two processors: chunked:shadow:tokens=64,trace=FILE"
        ),
    ] = "whole",
    decode: Annotated[
        str | None,
        typer.Option(
            help="one-by-one, sparse-head; with --draft: linear-draft:length=N (the default) or tree; with "
            "--server: remote"
        ),
    ] = None,
    draft: Annotated[str | None, typer.Option(help="the small model that drafts, such as code-draft")] = None,
    server: Annotated[
        str | None,
        typer.Option(help="PACK drafts and this server verifies: ws://HOST:PORT of serve --verify"),
    ] = None,
    token: Annotated[str | None, typer.Option(envvar="HAVERSACK_TOKEN", help="the token of --server")] = None,
    when_offline: Annotated[
        str | None,
        typer.Option(help="while --server is not reached: wait (default), alone (unverified) or stop"),
    ] = None,
    activations: Annotated[
        str | None, typer.Option(help="f32 or int8-dynamic (default: the pack's plan)")
    ] = None,
    cache_type: Annotated[str | None, typer.Option(help="keys and values as f32, f16 or int8")] = None,
    context_length: Annotated[
        int | None, typer.Option(help="most tokens of prompt and answer together")
    ] = None,
    whole_cache: Annotated[
        bool,
        typer.Option(
            "--whole-cache",
            help="layers with a window keep the whole text, too: more memory, and a chat may go back any "
            "distance without reading again",
        ),
    ] = False,
    threads: Annotated[
        int | None, typer.Option(help="threads of the kernels (default: all processors)")
    ] = None,
    ram_mib: Annotated[
        float | None, typer.Option(help="budget: peak memory in MiB; refused before loading")
    ] = None,
    embed: Annotated[
        bool, typer.Option("--embed", help="encoders: a vector, whatever the model's head does")
    ] = False,
    pair: Annotated[str | None, typer.Option(help="encoders: a second text beside each")] = None,
    lines: Annotated[bool, typer.Option("--lines", help="encoders: every line is a text")] = False,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="encoders: read the beginning of a text that is too long")
    ] = False,
    delta: Annotated[
        Path | None,
        typer.Option(help="networks that classify: what haversack train fit wrote, laid over PACK"),
    ] = None,
    audio: Annotated[
        Path | None,
        typer.Option(help="speech models: the sound to transcribe (WAV; FLAC with the extra audio)"),
    ] = None,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", help="speech models: when each segment begins and ends")
    ] = False,
    language: Annotated[
        str | None, typer.Option(help="speech models: what is spoken, such as en (default: found out)")
    ] = None,
    task: Annotated[str | None, typer.Option(help="speech models: transcribe or translate")] = None,
    beam: Annotated[
        int | None,
        typer.Option(help="speech models: texts written side by side (default: the model's, or 1)"),
    ] = None,
    impute: Annotated[
        str, typer.Option(help="forecasters: how gaps of the table are filled: none, linear, previous")
    ] = "none",
    json: Json = False,
) -> None:
    """Complete a text: PROMPT, the file INPUT, or what standard input holds. On a terminal and without a
    text it is a chat. An encoder does what follows from its head: it prints an embedding, fills masked words
    in, classifies, or labels every token. A speech model writes what is said in AUDIO. A network that learned
    by `haversack train fit` tells the class of a picture or a text. A pack of one file forecasts the table
    INPUT, or says what it predicts of each row. A model with an encoder and a decoder (T5, Switch) reads
    the text and writes another.
    """
    from threading import Thread

    from haversack.core.budget import Budget
    from haversack.formats.small_pack import is_small_pack
    from haversack.run._source import encodes, hears, open_model

    if is_small_pack(model):
        from haversack.cli._signal import run_signal

        run_signal(Path(model), input, impute=impute, ram_mib=ram_mib, json=json)
        return
    if impute != "none":
        raise UserError("--impute is for packs of one file that forecast.", field="impute", given=impute)
    source = None if delta is not None else _source(model)
    if source is None:
        from haversack.cli._classify import run_network

        run_network(model, delta, input, prompt, top=top_k, ram_mib=ram_mib, json=json)
        return
    if hears(source):
        from haversack.cli._transcribe import given_most, refuse_text_options, run_speech

        refuse_text_options()
        run_speech(
            source,
            audio,
            timestamps=timestamps,
            language=language,
            task=task,
            beams=beam,
            most=given_most(max_tokens),
            json=json,
            ram_mib=ram_mib,
            residency=residency,
            activations=activations,
            cache_type=cache_type,
            threads=threads,
        )
        return
    if audio is not None or timestamps or language is not None or task is not None or beam is not None:
        raise UserError(
            "--audio, --timestamps, --language, --task and --beam are for speech models.",
            field="model",
            given=model,
        )
    if encodes(source):
        from haversack.cli._encode import refuse_decoder_options, run_encoder, text_or_file

        refuse_decoder_options()
        given = None if prompt is not None else text_or_file(input)
        run_encoder(
            source,
            text_of(prompt, input) if given is None else given,
            pair=pair,
            lines=lines,
            embed=embed,
            truncate=truncate,
            top=top_k,
            json=json,
            ram_mib=ram_mib,
            residency=residency,
            activations=activations,
            threads=threads,
        )
        return
    if embed or pair is not None or lines or truncate:
        raise UserError(
            "--embed, --pair, --lines and --truncate are for encoders.", field="model", given=model
        )
    opened = open_model(source, reader=True)
    reads = opened.architecture.reader is not None
    tokenizer: list[Any] = []
    reading = Thread(target=_attempt, args=(opened.tokenizer, tokenizer))
    reading.start()  # beside the imports below and the weights' copy
    terminal = prompt is None and input is None and not json and _is_terminal()
    if reads and terminal:
        raise UserError(
            "this model reads a text and writes another, it does not chat; give the text with --prompt or as "
            "the file INPUT.",
            field="prompt",
        )
    talk = None
    if terminal or chat or system is not None or any((tools, chat_template, schema)):
        from haversack.cli._talk import talk_of

        talk = talk_of(
            opened,
            model,
            chat=chat,
            interactive=terminal,
            system=system,
            tools=tools,
            chat_template=chat_template,
            schema=schema,
        )
    from haversack.run._engine import Engine
    from haversack.run._generate import Limits, generate, prompt_tokens
    from haversack.run._sampler import Sampler

    limits = Limits(max_tokens, tuple(stop or ()), () if ignore_end else None)
    sampler = Sampler(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    budget = Budget(ram_mib=ram_mib)
    text = "" if terminal else text_of(prompt, input)
    reading.join()
    if isinstance(tokenizer[0], BaseException):
        raise tokenizer[0]
    tokens, constraint, size = None, None, None
    if talk is not None:
        limits = talk.limits(limits, opened, tokenizer[0])
        constraint = talk.constraint(tokenizer[0], opened.end_of_text if limits.end is None else limits.end)
    if not terminal:
        chatting = talk is not None and talk.template is not None
        asked = talk.prompt(text) if talk is not None else text
        tokens = prompt_tokens(opened, tokenizer[0], asked, special=not chatting)
        size = (len(tokens), max_tokens)
        if constraint is not None:
            taken = 1 if reads else len(tokens)
            room = (context_length or opened.architecture.context) - taken + 1
            constraint.require_room(min(max_tokens, room))
    else:
        from haversack.cli._talk import CHAT_CONTEXT

        context_length = context_length or min(CHAT_CONTEXT, opened.architecture.context)
    engine = Engine.open(
        opened,
        residency=residency,
        attention=attention,
        context=context,
        prefill=prefill,
        decode=_decode(decode, draft, server, token, when_offline, log_probabilities),
        draft=draft,
        key=key,
        activations=activations,
        cache_type=cache_type,
        threads=threads,
        context_length=context_length,
        budget=budget,
        tokens=size,
        whole_cache=whole_cache,
    )
    with engine:
        if tokens is None or size is None:
            from haversack.cli._repl import talk_on_a_terminal

            assert talk is not None
            talk_on_a_terminal(engine, talk, limits, sampler, tokenizer[0])
            return
        answer = generate(engine, tokens, limits, sampler, tokenizer[0], constraint)
        if json:
            for _ in answer:
                pass
            print_record(answer, size, seed, log_probabilities, talk, constraint)
        else:
            print_answer(answer, size, text, log_probabilities)


def _decode(
    decode: str | None,
    draft: str | None,
    server: str | None,
    token: str | None,
    when_offline: str | None,
    log_probabilities: bool,
) -> Any:
    """The decode method; of remote decoding with what other options say of the server."""
    remote = (decode or "").partition(":")[0] == "remote" or (decode is None and server is not None)
    if not remote:
        if server is not None or when_offline is not None:
            option = "server" if server is not None else "when_offline"
            raise UserError(
                f"--{option.replace('_', '-')} is for --decode remote, not {decode or 'plain decoding'}.",
                field=option,
                given=server or when_offline,
            )
        return decode or ("linear-draft" if draft else "one-by-one")
    from dataclasses import replace

    from haversack.core import index

    given: dict[str, Any] = {"server": server, "token": token, "offline": when_offline}
    given |= {"log_probabilities": True} if log_probabilities else {}
    method: Any = index.create("run", "decode", decode or "remote")
    return replace(method, **{name: value for name, value in given.items() if value is not None})


def _source(model: str) -> Any:
    """What the engines run; None for a network that only tells classes apart."""
    from haversack.run._source import open_source

    try:
        source: Any = open_source(model)
    except UserError:
        from haversack.train._predict import is_network

        if not is_network(model):
            raise
        return None
    if "model_type" in getattr(source, "config", ()):
        return source
    from haversack.cli._classify import tells_classes

    return None if tells_classes(source, model) else source


def _is_terminal() -> bool:
    import sys

    return sys.stdin.isatty()


def _attempt(make: Any, results: list[Any]) -> None:
    try:
        results.append(make())
    except BaseException as error:
        results.append(error)
