"""Serve a pack to OpenAI's clients over HTTP, with a page to chat, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from haversack.cli._output import Json

if TYPE_CHECKING:
    from haversack.share.serve import Server


def command(
    model: Annotated[
        str, typer.Argument(metavar="PACK", help="a pack, a checkpoint folder or a bundled model (code)")
    ],
    host: Annotated[
        str, typer.Option(help="address to listen on; others than this machine need --token")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one", min=0, max=65535)] = 8000,
    token: Annotated[
        str | None,
        typer.Option(envvar="HAVERSACK_TOKEN", help="clients must send it: Authorization: Bearer TOKEN"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="what clients call the model (default: the pack's)")
    ] = None,
    chat_template: Annotated[
        Path | None, typer.Option(help="a file with a chat template, instead of the model's own")
    ] = None,
    ram_mib: Annotated[
        float | None, typer.Option(help="budget: peak memory in MiB; says how many answers run at once")
    ] = None,
    contexts: Annotated[
        int | None, typer.Option(help="answers at once (default: what fits, at most 8)", min=1, max=128)
    ] = None,
    queue: Annotated[int, typer.Option(help="answers that may wait; more get 429", min=1)] = 64,
    prefix_mib: Annotated[
        float | None,
        typer.Option(help="memory for prompts' beginnings (default: what is left, at most 64)", min=0),
    ] = None,
    context_length: Annotated[
        int | None, typer.Option(help="most tokens of prompt and answer together")
    ] = None,
    max_prompt: Annotated[int | None, typer.Option(help="most tokens of a prompt", min=1)] = None,
    max_tokens: Annotated[int | None, typer.Option(help="most tokens of an answer", min=1)] = None,
    deadline: Annotated[float, typer.Option(help="most seconds of an answer, queue included")] = 600.0,
    grace: Annotated[float, typer.Option(help="seconds that running answers get at the end", min=0)] = 30.0,
    max_body_kib: Annotated[int, typer.Option(help="most KiB of a request", min=1)] = 1024,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="verify devices' drafts: run DRAFT --decode remote --server URL"),
    ] = False,
    draft: Annotated[
        str | None,
        typer.Option(help="with --verify: the devices' draft model, for sampling by rejection"),
    ] = None,
    idle: Annotated[
        float, typer.Option(help="with --verify: seconds of silence after which a device is let go")
    ] = 60.0,
    max_connections: Annotated[int, typer.Option(help="most open connections", min=1)] = 256,
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
    attention: Annotated[str, typer.Option(help="dense, or sliding:window=N,sink=N")] = "dense",
    activations: Annotated[
        str | None, typer.Option(help="f32 or int8-dynamic (default: the pack's plan)")
    ] = None,
    cache_type: Annotated[str | None, typer.Option(help="keys and values as f32, f16 or int8")] = None,
    threads: Annotated[
        int | None, typer.Option(help="threads of the kernels (default: all processors)")
    ] = None,
    json: Json = False,
) -> None:
    """Serve PACK until it is interrupted: /v1/completions, /v1/chat/completions, /v1/embeddings, /v1/models,
    /healthz, /metrics, and a page at /. SIGTERM lets running answers finish and ends with 0; a second signal
    ends at once. With --json one document is printed when the server answers."""
    from haversack.core.budget import Budget
    from haversack.share.serve import Options, Server

    options = Options(
        host=host,
        port=port,
        token=token,
        name=name,
        chat_template=chat_template,
        contexts=contexts,
        queue=queue,
        prefix_mib=prefix_mib,
        context_length=context_length,
        max_prompt=max_prompt,
        max_tokens=max_tokens,
        deadline_s=deadline,
        grace_s=grace,
        body_bytes=max_body_kib * 1024,
        connections=max_connections,
        verify=verify,
        draft=draft,
        idle_s=idle,
        budget=Budget(ram_mib=ram_mib),
    )
    server = Server(
        model,
        options,
        residency=residency,
        key=key,
        attention=attention,
        activations=activations,
        cache_type=cache_type,
        threads=threads,
    )
    try:
        server.run(_print_record if json else _print_ready)
    finally:
        if not json:
            _print_memory(server)


def _print_record(server: Server) -> None:
    import sys

    from haversack.cli._output import print_json

    print_json(server.record())
    sys.stdout.flush()


def _print_ready(server: Server) -> None:
    room = server.room
    print(room.plan.text())
    print(
        f"{room.contexts} answers at once, {server.options.queue} may wait; "
        f"{room.prefix_bytes / 2**20:.0f} MiB keep prompts' beginnings"
    )
    if server.options.verify:
        print(f"drafts are verified: haversack run DRAFT --decode remote --server {server.verify_url}")
    print(f"{server.name} is served at {server.url} (page) and {server.url}/v1; end with Ctrl-C", flush=True)


def _print_memory(server: Server) -> None:
    from haversack.cli._output import show_memory

    show_memory(server.room.plan, files=server.files)
