"""What `haversack share episodes` and `haversack share learn --router hera` do between options and record."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from haversack.cli._output import Json, print_json
from haversack.core.errors import UserError, not_allowed

if TYPE_CHECKING:
    from haversack.share._hera_agents import Agent
    from haversack.share._hera_episodes import Episode
    from haversack.share._hera_states import Env
    from haversack.share._routing import Router

WORLDS = ("household", "textworld")
RECORDS = ("chosen", "both")
GAMES = 80
"""Games of which the small device agent learns; others than those that are played."""
DEVICE_FROM = 1_000_000


def register(app: typer.Typer) -> None:
    """Add the commands to `haversack share`."""
    app.command("episodes")(episodes)
    app.command("learn-steps")(learn_steps)


def episodes(
    world: Annotated[str, typer.Argument(help="household, or textworld (extra textworld)")] = "household",
    count: Annotated[int, typer.Option(help="tasks to play", min=1)] = 20,
    first: Annotated[int, typer.Option(help="number of the first task", min=0)] = 0,
    games: Annotated[
        Path | None, typer.Option(help="textworld: a folder of games (.json, .z8, .ulx)", metavar="FOLDER")
    ] = None,
    device: Annotated[
        str, typer.Option(help="small (trained here on walkthroughs), a pack, or a server", metavar="AGENT")
    ] = "small",
    cloud: Annotated[
        str | None,
        typer.Option(
            help="planner (knows the world), a pack, or an OpenAI-compatible server; none: offline",
            metavar="AGENT",
        ),
    ] = "planner",
    router: Annotated[
        str, typer.Option(help="device, cloud, random:P, or a file that share learn wrote")
    ] = "random:0.5",
    tau: Annotated[
        float | None,
        typer.Option(help="chance from which the cloud acts (default: the file's)", min=0, max=1),
    ] = None,
    rollouts: Annotated[int, typer.Option(help="episodes of each task", min=1)] = 1,
    sample: Annotated[bool, typer.Option(help="draw who acts by the router's chance, to explore")] = False,
    record: Annotated[
        str, typer.Option(help="chosen (ask who acts), or both (ask the device at every step too)")
    ] = "chosen",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="add the steps to this file", metavar="FILE.jsonl")
    ] = None,
    cloud_calls: Annotated[int | None, typer.Option(help="most cloud calls of an episode", min=0)] = None,
    cost_usd: Annotated[float | None, typer.Option(help="most USD, over the whole ledger", min=0)] = None,
    uplink_kib: Annotated[
        float | None, typer.Option(help="most KiB sent, over the whole ledger", min=0)
    ] = None,
    privacy: Annotated[str | None, typer.Option(help="what may leave: device (nothing), any")] = None,
    exhausted: Annotated[
        str, typer.Option(help="when a budget is used up: device (it goes on alone) or stop")
    ] = "device",
    ledger: Annotated[Path | None, typer.Option(help="where spending is kept", metavar="FILE")] = None,
    cloud_model: Annotated[str, typer.Option(help="a server's model (default: the first it names)")] = "",
    cloud_key_env: Annotated[
        str, typer.Option(help="the environment variable that holds its key", metavar="NAME")
    ] = "",
    seed: Annotated[int, typer.Option(help="of the agents' chance")] = 0,
    json: Json = False,
) -> None:
    """Play an agent's tasks step by step on the device and the cloud; report success and cost, keep the
    steps.

    The steps of --record both are what a router learns from: haversack share learn --router hera.
    """
    from haversack.core.budget import Budget
    from haversack.core.ledger import Ledger
    from haversack.core.memory import peak_mib
    from haversack.core.progress import progress
    from haversack.share._hera_agents import Unreachable
    from haversack.share._hera_curve import Point
    from haversack.share._hera_episodes import EpisodeBudget, run_episode, write_traces

    if record not in RECORDS:
        raise not_allowed("record", record, RECORDS)
    limits = Budget(cost_usd=cost_usd, uplink_kib=uplink_kib, privacy=privacy)
    budget = EpisodeBudget(cloud_calls, limits, exhausted)
    worlds = worlds_of(world, count, first, games)
    book = Ledger(ledger)
    chosen = router_of_option(router, seed)
    if tau is None:
        tau = float(getattr(chosen, "threshold", 0.5))
    on_device = agent_of(device, world, seed, local=True)
    in_cloud = (
        None
        if cloud is None or cloud == "none"
        else agent_of(cloud, world, seed, model=cloud_model, key_env=cloud_key_env)
    )
    played: list[Episode] = []
    with progress("episodes", total=len(worlds) * rollouts) as bar:
        for env in worlds:
            for at in range(rollouts):
                try:
                    one = run_episode(
                        *(env, on_device, in_cloud, chosen, tau, budget),
                        ledger=book,
                        seed=seed,
                        episode=at,
                        sample=sample,
                        both=record == "both",
                    )
                except Unreachable as error:  # the cloud's is a step of the device's, so this is the device's
                    raise UserError(
                        f"the device's agent does not answer: {error}", field="device", given=device
                    ) from error
                played.append(one)
                if output is not None:
                    write_traces(output, [one])
                bar.advance()
    steps = [step for one in played for step in one.steps]
    point = Point.of(tau, played)
    found: dict[str, Any] = {
        "world": world,
        "episodes": len(played),
        "success": point.success,
        "cloud_share": point.share,
        "cloud_calls": point.calls,
        "steps": point.steps,
        "threshold": tau,
        "prefill_tokens": point.prefill,
        "offline_steps": sum(step.offline for step in steps),
        "capped_steps": sum(step.capped for step in steps),
        "stopped": sum(one.stopped for one in played),
        "spent": book.demand(),
        "file": None if output is None else {"path": str(output), "nbytes": output.stat().st_size},
        "ram_mib": {"measured": round(peak_mib(), 2)},
    }
    if json:
        print_json(found)
        return
    print(
        f"{len(played)} episodes: success {point.success:.3f}, cloud {point.share:.1%} of {point.steps:.1f} "
        f"steps ({point.calls:.1f} calls an episode)"
    )
    spent = found["spent"]
    print(
        f"spent {spent['cost_usd']:.4f} USD, {spent['uplink_kib']:.1f} KiB sent; about {point.prefill:.0f} "
        "tokens an episode were read anew"
    )
    for name, words in (("offline_steps", "cloud not reached"), ("capped_steps", "budget used up")):
        if found[name]:
            print(f"{found[name]} steps on the device: {words}")
    if found["stopped"]:
        print(f"{found['stopped']} episodes stopped by the budget")
    if output is not None:
        print(f"written: {output}")


def learn_steps(
    traces: Annotated[Path, typer.Argument(help="what share episodes wrote", metavar="TRACES.jsonl")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="write the router")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="a language model as router: this checkpoint, changed a little (extra workshop)"),
    ] = None,
    method: Annotated[
        str, typer.Option(help="hera and its parameters, such as hera:reward=penalised,call_cost=0.02")
    ] = "hera",
    online: Annotated[
        str | None, typer.Option(help="then play: household or textworld, round by round", metavar="WORLD")
    ] = None,
    count: Annotated[int, typer.Option(help="with --online: tasks", min=1)] = 40,
    first: Annotated[int, typer.Option(help="with --online: number of the first task", min=0)] = 0,
    games: Annotated[
        Path | None, typer.Option(help="with --online textworld: a folder of games", metavar="FOLDER")
    ] = None,
    seed: Annotated[int, typer.Option(help="of what is drawn")] = 0,
    json: Json = False,
) -> None:
    """Learn a router of an agent's steps with every choice: a language model as router, rounds of play,
    what is preferred. Plainly: haversack share learn --router hera --traces FILE.jsonl."""
    learn(
        traces,
        output,
        seed=seed,
        json=json,
        model=model,
        method=method,
        online=online,
        tasks=(first, count, games),
    )


def learn(
    traces: Path,
    output: Path | None,
    *,
    seed: int = 0,
    json: bool = False,
    model: str | None = None,
    method: str = "hera",
    online: str | None = None,
    tasks: tuple[int, int, Path | None] = (0, 40, None),
) -> None:
    """Learn a step router from recorded episodes and write it: imitation where steps have both actions, then
    outcomes where states were left both ways, then rounds of play where asked for."""
    from haversack.core.index import create
    from haversack.share._hera_episodes import read_traces, states_of
    from haversack.share._hera_router import StepRouter, cloud_share, episodes_of

    chosen: Any = create("share", "cut", method)
    if chosen.name != "hera":
        raise not_allowed("method", method, ("hera",))
    steps = read_traces(traces)
    if not steps:
        raise UserError(f"{traces} holds no step.", field="traces", given=str(traces))
    found: dict[str, Any] = {
        "traces": str(traces),
        "episodes": len(episodes_of(steps)),
        "steps": len(steps),
        "imitation": None,
        "outcomes": None,
        "rounds": [],
        "threshold": 0.5,
        "cloud_share": None,
        "notes": [],
        "file": None,
    }
    if model is not None:
        _learn_language(found, steps, output, model, chosen, seed, online)
    else:
        router = StepRouter(chosen, seed)
        if chosen.stages != "outcomes":
            one = router.fit_imitation(steps)
            found["imitation"] = {"steps": one.steps, "differ": one.positive}
            found["notes"] += one.notes
        if chosen.stages != "imitation":
            one = router.fit_outcomes(steps)
            found["outcomes"] = {"states": one.steps, "for_cloud": one.positive}
            found["notes"] += one.notes
        if online is not None:
            _play(found, router, online, tasks, seed)
        found["threshold"] = router.calibrate([state for _, state in states_of(steps)])
        found["cloud_share"] = cloud_share(router, steps, router.threshold)
        if output is not None:
            found["file"] = {"path": str(output), "nbytes": router.save(output)}
    print_json(found) if json else _tell(found)


def _play(
    found: dict[str, Any], router: Any, online: str, tasks: tuple[int, int, Path | None], seed: int
) -> None:
    from haversack.core.progress import progress

    first, count, games = tasks
    worlds = worlds_of(online, count, first, games)
    device, cloud = agent_of("small", online, seed), agent_of("planner", online, seed)
    with progress("rounds", total=len(worlds) * router.method.rollouts * router.method.rounds) as bar:
        learned = router.fit_rl(lambda: worlds, device, cloud, say=bar.advance)
    found["outcomes"] = {"states": learned.steps, "for_cloud": learned.positive}
    found["rounds"], found["notes"] = learned.rounds, found["notes"] + learned.notes


def _learn_language(
    found: dict[str, Any],
    steps: list[Any],
    output: Path | None,
    model: str,
    method: Any,
    seed: int,
    online: str | None,
) -> None:
    from haversack.core.errors import MissingExtraError
    from haversack.run._source import open_model
    from haversack.share._hera_lm import learn_language

    if output is None:
        raise UserError("a language model as router is a folder: -o FOLDER.", field="output")
    if online is not None:
        raise UserError("--online is for the small router; record episodes for --model.", field="online")
    try:
        learned = learn_language(open_model(model), steps, output, method, seed)
    except ImportError as error:
        raise MissingExtraError("learning a language model as router", "torch", "workshop") from error
    found |= learned
    nbytes = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    found["file"] = {"path": str(output), "nbytes": nbytes}


def _tell(found: dict[str, Any]) -> None:
    print(f"{found['episodes']} episodes, {found['steps']} steps")
    if found["imitation"] is not None:
        one = found["imitation"]
        print(f"imitation: actions differ on {one['differ']} of {one['steps']} steps")
    if found["outcomes"] is not None:
        one = found["outcomes"]
        states, cloud = one["states"], one["for_cloud"]
        print(f"outcomes: {states} states were left both ways; the cloud is preferred in {cloud}")
    for at, one in enumerate(found["rounds"], start=1):
        print(f"round {at}: success {one['success']:.3f}, {one['cloud_calls']:.2f} cloud calls an episode")
    for note in found["notes"]:
        print(note)
    if found["cloud_share"] is not None:
        share = found["cloud_share"]
        print(f"threshold {found['threshold']:.4f}: the cloud would take {share:.1%} of these steps")
    if found["file"] is not None:
        print(f"written: {found['file']['path']}, {found['file']['nbytes']:,} bytes")


def worlds_of(world: str, count: int, first: int, games: Path | None) -> list[Env]:
    """The tasks that are played. Raises UserError for an unknown world and a folder without games."""
    if world not in WORLDS:
        raise not_allowed("world", world, WORLDS)
    if world == "household":
        from haversack.share._hera_household import Household

        if games is not None:
            raise UserError(
                "--games is for textworld; household needs none.", field="games", given=str(games)
            )
        return [Household(first + at) for at in range(count)]
    from haversack.share._hera_textworld import CompiledGame, TextWorldGame, make_game

    if games is None:
        return [TextWorldGame(make_game(first + at), f"cooking-{first + at}") for at in range(count)]
    files = sorted(path for path in games.glob("*") if path.suffix in (".json", ".z8", ".ulx"))
    compiled = {path.stem for path in files if path.suffix != ".json"}
    files = [path for path in files if path.suffix != ".json" or path.stem not in compiled]
    chosen = files[first : first + count]
    if not chosen:
        raise UserError(f"{games} holds no game from number {first} on.", field="games", given=str(games))
    return [TextWorldGame.load(one) if one.suffix == ".json" else CompiledGame(one) for one in chosen]


def agent_of(
    name: str, world: str, seed: int, *, model: str = "", key_env: str = "", local: bool = False
) -> Agent:
    """An agent by its option. Raises UserError for what cannot be opened."""
    from haversack.core.progress import progress
    from haversack.share import _hera_agents as agents

    if name == "planner":
        return agents.Planner()
    if name == "small":
        count = GAMES if world == "household" else max(1, GAMES // 10)
        taught: list[Env] = []
        with progress("teaching the device", total=count) as bar:
            for at in range(count):
                taught += worlds_of(world, 1, DEVICE_FROM + at, None)
                bar.advance()
            return agents.Scorer.learn(taught, seed=seed)
    if name.startswith(("http://", "https://")):
        from haversack.share._hera_endpoint import endpoint_agent

        return endpoint_agent(name, model=model, key_env=key_env, local=local)
    from haversack.run._engine import Engine

    return agents.Prompted(agents.of_engine(Engine.open(name)))


def router_of_option(name: str, seed: int) -> Router:
    """A router by its option: device, cloud, random:P, or a file's. Raises UserError."""
    from haversack.share._hera_baselines import Constant, Sampled
    from haversack.share._hera_router import StepRouter

    if name in ("device", "cloud"):
        return Constant(float(name == "cloud"))
    if name.startswith("random:"):
        try:
            chance = float(name.removeprefix("random:"))
        except ValueError:
            chance = float("nan")
        if not 0 <= chance <= 1:
            raise UserError(
                f"router={name} is no chance from 0 to 1; use random:0.5.",
                field="router",
                given=name,
                nearest="random:0.5",
            )
        return Sampled(chance, seed)
    path = Path(name)
    if path.is_dir():
        from haversack.share._hera_lm import LanguageRouter

        return LanguageRouter.open(path)
    return StepRouter.load(path)
