"""Share the work between a device and a cloud: route queries, learn from outcomes, collaborate, read the
ledger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from haversack.cli import _share_codec, _share_hera, _share_split
from haversack.cli._output import Json, print_json, table

if TYPE_CHECKING:
    from haversack.share.route import RouteServer

app = typer.Typer(help=__doc__, no_args_is_help=True)


@app.callback()
def _verbs() -> None:
    """Share the work between a device and a cloud, within budgets of money, time, bytes and privacy."""


Money = Annotated[float | None, typer.Option(help="most USD, over the whole ledger", min=0)]
Bytes = Annotated[float | None, typer.Option(help="most KiB sent, over the whole ledger", min=0)]
Latency = Annotated[float | None, typer.Option(help="most milliseconds until the cloud begins to answer")]
LedgerFile = Annotated[Path | None, typer.Option(help="where spending is kept", metavar="FILE")]


@app.command("route")
def route(
    device: Annotated[
        str, typer.Option(help="a pack, a bundled name, or a server's address", metavar="PACK")
    ],
    cloud: Annotated[
        str | None, typer.Option(help="any OpenAI-compatible server's address", metavar="URL")
    ] = None,
    cloud_model: Annotated[str, typer.Option(help="its model (default: the first that it names)")] = "",
    cloud_key_env: Annotated[
        str, typer.Option(help="the environment variable that holds its key", metavar="NAME")
    ] = "",
    device_key_env: Annotated[str, typer.Option(help="the same for a device's address", metavar="NAME")] = "",
    price: Annotated[
        str, typer.Option(help="USD for a million tokens read and written", metavar="IN,OUT")
    ] = "0,0",
    policy: Annotated[
        str | None,
        typer.Option(
            help="router, cascade, device or cloud (default: router where one is given, else cascade)"
        ),
    ] = None,
    router: Annotated[
        Path | None, typer.Option(help="a file that share learn wrote", metavar="FILE.router")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="chance from which the cloud is asked (default: the file's)")
    ] = None,
    tau: Annotated[float, typer.Option(help="confidence below which a cascade asks the cloud")] = 0.8,
    cost_usd: Money = None,
    uplink_kib: Bytes = None,
    latency_ms: Latency = None,
    privacy: Annotated[
        str, typer.Option(help="what may leave: device (nothing), derived (redacted text), any")
    ] = "derived",
    private: Annotated[
        Path | None, typer.Option(help="terms that never leave, one a line", metavar="FILE")
    ] = None,
    exhausted: Annotated[
        str, typer.Option(help="when a budget is used up: device (it answers) or stop (402)")
    ] = "device",
    ledger: LedgerFile = None,
    max_tokens: Annotated[int, typer.Option(help="of a request that names none", min=1)] = 1024,
    deadline: Annotated[float, typer.Option(help="most seconds of an answer")] = 120.0,
    host: Annotated[
        str, typer.Option(help="address to listen on; others than this machine need --token")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one", min=0, max=65535)] = 8010,
    token: Annotated[
        str | None, typer.Option(envvar="HAVERSACK_TOKEN", help="clients send it to be let in")
    ] = None,
    grace: Annotated[float, typer.Option(help="seconds that running answers get at the end", min=0)] = 30.0,
    ram_mib: Annotated[float | None, typer.Option(help="most MiB of the device's model")] = None,
    json: Json = False,
) -> None:
    """Serve one OpenAI-compatible address that answers from the device, and from the cloud what needs it.

    Clients name auto, device or cloud as the model. SIGTERM lets running answers finish.
    """
    from haversack.cli._share_route import read_terms
    from haversack.core.budget import Budget
    from haversack.share._prices import read_price
    from haversack.share.route import RouteOptions, RouteServer

    options = RouteOptions(
        device,
        cloud,
        device_key_env=device_key_env,
        cloud_model=cloud_model,
        cloud_key_env=cloud_key_env,
        cloud_price=read_price(price),
        policy=policy or ("cascade" if router is None else "router"),
        router=router,
        threshold=threshold,
        tau=tau,
        budget=Budget(ram_mib, None, latency_ms, None, uplink_kib, cost_usd, None, privacy),
        exhausted=exhausted,
        ledger=ledger,
        private=read_terms(private),
        max_tokens=max_tokens,
        host=host,
        port=port,
        token=token,
        deadline_s=deadline,
        grace_s=grace,
    )
    RouteServer(options).run(_print_record if json else _print_ready)


def _print_record(server: RouteServer) -> None:
    import sys

    print_json(server.record())
    sys.stdout.flush()


def _print_ready(server: RouteServer) -> None:
    options = server.options
    print(f"device {options.device}; cloud {options.cloud or 'none'}; policy {options.policy}")
    print(f"budget: {options.budget}; when used up: {options.exhausted}")
    print(f"answers at {server.url}/v1; end with Ctrl-C", flush=True)


@app.command("learn")
def learn(
    outcomes: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[OUTCOMES...]", help="CSV or JSON lines: a query and how right two models were"
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="write the router")] = None,
    router: Annotated[
        str, typer.Option(help="query (whole queries), or hera (steps of an agent, from --traces)")
    ] = "query",
    traces: Annotated[
        Path | None, typer.Option(help="with --router hera: recorded episodes", metavar="FILE.jsonl")
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            help="classifier, matrix-factorisation, similarity-ranking, length, or best (of the first three)"
        ),
    ] = "best",
    share: Annotated[float, typer.Option(help="share of queries that the cloud is to answer")] = 0.4,
    weak: Annotated[str | None, typer.Option(help="column of the device's model")] = None,
    strong: Annotated[str | None, typer.Option(help="column of the cloud's model")] = None,
    by: Annotated[
        str, typer.Option(help="how a part is held out for the report: random, or subject")
    ] = "random",
    recalibrate: Annotated[
        Path | None,
        typer.Option(help="only fit this router's threshold to these outcomes", metavar="FILE.router"),
    ] = None,
    seed: Annotated[int, typer.Option(help="of what is held out")] = 0,
    json: Json = False,
) -> None:
    """Learn which queries need the cloud, from paired outcomes; report it on a half that it has not seen."""
    from haversack.cli._share_learn import learn_query, learn_steps

    if router != "query":
        learn_steps(router, traces, output, seed=seed, json=json)
        return
    record = learn_query(
        outcomes or [],
        output,
        form=form,
        share=share,
        pair=(weak, strong),
        by=by,
        seed=seed,
        recalibrate=recalibrate,
    )
    if json:
        print_json(record)
        return
    rows = [
        (
            one["form"],
            *(
                f"{one[name]:.3f}"
                for name in ("outcome", "recovered", "area_of_oracle", "share_by_threshold")
            ),
        )
        for one in record["held_out"]
    ]
    print(f"{record['queries']} queries; device {record['weak']}, cloud {record['strong']}")
    right = ("outcome", "gap recovered", "area / oracle", "share by threshold")
    if rows:
        table(("router", *right), rows, right=right, title=f"held out by {by}, {share:.0%} to the cloud")
    print(f"{record['form']}: threshold {record['threshold']:.4f}")
    if record["file"] is not None:
        print(f"written: {record['file']['path']}, {record['file']['nbytes']:,} bytes")


@app.command("collaborate")
def collaborate(
    network: Annotated[
        Path | None, typer.Argument(metavar="[NETWORK.toml]", help="nodes, their addresses and prices, links")
    ] = None,
    question: Annotated[str | None, typer.Argument(help="one question (or --tasks)")] = None,
    algorithm: Annotated[
        str,
        typer.Option(
            help="NAME(key=value,...), nested as wanted: cascade(tiers=phone+cloud,tau=0.7); see --list"
        ),
    ] = "cascade",
    tasks: Annotated[
        Path | None,
        typer.Option(help="a JSON object a line: prompt, answer, context, topic, ...", metavar="FILE.jsonl"),
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(help="run once for each value of a parameter", metavar="NAME=V1,V2")
    ] = None,
    cost_usd: Annotated[float | None, typer.Option(help="most USD of one task", min=0)] = None,
    uplink_kib: Annotated[float | None, typer.Option(help="most KiB that one task sends", min=0)] = None,
    latency_ms: Annotated[float | None, typer.Option(help="most milliseconds of one task")] = None,
    privacy: Annotated[str, typer.Option(help="of tasks that say none: local-only, redacted or any")] = "any",
    max_tokens: Annotated[int, typer.Option(help="most tokens of one answer", min=1)] = 256,
    at_once: Annotated[int, typer.Option(help="tasks that run at the same time", min=1, max=64)] = 1,
    ledger: LedgerFile = None,
    audit: Annotated[
        Path | None,
        typer.Option(help="log every message's fate, each line bound to the one before", metavar="FILE"),
    ] = None,
    serve: Annotated[
        int | None,
        typer.Option(help="serve the network as one OpenAI-compatible address", metavar="PORT", min=0),
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="list the algorithms")] = False,
    json: Json = False,
) -> None:
    """Let several models on several machines answer together, by one of the named algorithms.

    Every call is held against the budget before it is made; a task ends with the best answer so far.
    """
    from haversack.cli import _share_collaborate as run
    from haversack.core.errors import UserError

    if list_all:
        found = run.listed()
        if json:
            print_json({"algorithms": found, "runs": [], "answer": None, "url": None})
            return
        table(
            ("", "algorithm", "what it does"), [(one["code"], one["name"], one["summary"]) for one in found]
        )
        return
    if network is None or sum(one is not None for one in (question, tasks, serve)) != 1:
        said = "give NETWORK.toml, and one of: a question, --tasks FILE.jsonl, --serve PORT."
        raise UserError(said, field="network")
    from haversack.core.budget import Budget
    from haversack.share.collaboration._session import Task

    budget = Budget(None, None, latency_ms, None, uplink_kib, cost_usd)
    if serve is not None:
        run.serve(network, algorithm, budget, privacy, max_tokens, ledger, serve, json=json)
        return
    if tasks is not None:
        wanted = run.read_tasks(tasks, budget, privacy, max_tokens)
    else:
        wanted = [Task(question or "", budget=budget, privacy=privacy, most=max_tokens)]
    runs, answer = [], None
    for value, text in run.swept(algorithm, sweep):
        results, _ = run.run_tasks(network, text, wanted, ledger, audit, at_once)
        runs.append(run.record_of(value, text, results))
        answer = run.answer_record(results[0]) if tasks is None else None
    if json:
        print_json({"algorithms": [], "runs": runs, "answer": answer, "url": None})
        return
    if answer is not None:
        print(answer["answer"])
        if answer["degraded"]:
            print(f"note: {answer['degraded']}")
    right = ("tasks", "right", "calls", "KiB", "USD", "median s")
    rows = [
        (
            one["swept"] or one["algorithm"],
            one["tasks"],
            "-" if one["right"] is None else f"{one['right']:.3f}",
            sum(one["calls"].values()),
            f"{one['nbytes'] / 1024:.1f}",
            f"{one['cost_usd']:.6f}",
            f"{one['median_s']:.2f}",
        )
        for one in runs
    ]
    table((sweep.partition("=")[0] if sweep else "algorithm", *right), rows, right=right)


@app.command("ledger")
def ledger_of(
    file: Annotated[Path, typer.Argument(metavar="LEDGER", help="what --ledger named")],
    last: Annotated[int, typer.Option(help="show so many last requests", min=0)] = 10,
    json: Json = False,
) -> None:
    """Read a ledger: totals, where requests were answered and why, and whether every entry is whole."""
    from haversack.cli._share_route import read_ledger

    record = read_ledger(file, last)
    if json:
        print_json(record)
        return
    totals = record["totals"]
    print(f"{record['entries']} entries, all whole; {totals['cost_usd']:.6f} USD,")
    print(f"{totals['uplink_bytes']:,.0f} bytes sent, {totals['downlink_bytes']:,.0f} received")
    right = ("requests", "USD", "bytes sent")
    rows = [
        (one["where"], one["requests"], f"{one['cost_usd']:.6f}", f"{one['uplink_bytes']:,.0f}")
        for one in record["answered"]
    ]
    table(("answered by", *right), rows, right=right)
    for one in record["last"]:
        print(f"{one['time']}  {one['what']}  {one['cost_usd']:.6f} USD")


_share_codec.register(app)
_share_hera.register(app)
_share_split.register(app)
