"""`spotinference demo`: the whole system in one sitting, narrated."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from enum import StrEnum
from typing import Annotated

import typer

from spotinference.devcluster import demo, handle, paths, state
from spotinference.devcluster.narrator import Narrator

app = typer.Typer(rich_markup_mode=None)


class Engine(StrEnum):
    VLLM = "vllm"
    SIM = "sim"


SCRIPTS = {
    Engine.VLLM: demo.Script(max_tokens=1300, max_model_len=2048),
    Engine.SIM: demo.Script(max_tokens=400, max_model_len=2048),
}


@app.callback(invoke_without_command=True)
def run(
    engine: Annotated[Engine, typer.Option(help="vllm: real vLLM on the CPU.")] = Engine.VLLM,
    name: Annotated[str, typer.Option(help="Name of the cluster it makes.")] = "demo",
    keep: Annotated[bool, typer.Option("--keep", help="Leave the cluster running.")] = False,
) -> None:
    """A tier sleeps, wakes on a request, loses its node mid-answer, and finishes that answer.

    A Kubernetes control plane with simulated spot nodes is brought up, a tier applied, a request
    streamed through the gateway; the node under it is reclaimed without notice; the same stream
    goes on on another node from the exact token. Exit code 0 only if all of that was seen.
    """
    began_at = time.monotonic()
    narrator = Narrator()
    good = asyncio.run(_run(narrator, engine, name, keep))
    if keep:
        _play_on(narrator, name)
    minutes, seconds = divmod(round(time.monotonic() - began_at), 60)
    narrator.note(f"took {minutes} min {seconds} s")
    verdict = "the interrupted and the undisturbed answer are"
    if not good:
        narrator.failed(f"{verdict} not shown to be the same; see above")
        sys.exit(1)
    narrator.console.print(f"   [bold green]✓[/bold green] {verdict} [bold]identical[/bold]")


async def _run(narrator: Narrator, engine: Engine, name: str, keep: bool) -> bool:
    narrator.title("spotinference: a streamed answer that survives its GPU")
    narrator.chapter("A Kubernetes with spot GPU nodes, on this machine")
    with narrator.waiting(f"control plane, node agent, operator, gateway (engine: {engine})"):
        context = handle.cluster(name, engine=engine, topology=demo.TOPOLOGY, keep=keep)
        cluster = await context.__aenter__()
    try:
        narrator.done(f"API server {cluster.state.apiserver_url}, gateway {cluster.gateway_url}")
        return await demo.Story(cluster, narrator, SCRIPTS[engine]).run()
    finally:
        await context.__aexit__(None, None, None)


def _play_on(narrator: Narrator, name: str) -> None:
    """The three commands to go on with, and the one to end with."""
    found = state.load(paths.cluster(name))
    if found is None:
        return
    body = {
        "model": demo.TIER,
        "stream": True,
        "messages": [{"role": "user", "content": demo.PROMPT}],
    }
    narrator.note("The cluster keeps running. Play on:")
    narrator.block(
        f"spotinference dev --name {name} kubectl get itier,pods,nodes\n"
        f"curl -N {found.gateway_url}/v1/chat/completions "
        f"-H 'Authorization: Bearer {found.api_key}' "
        f"-H 'Content-Type: application/json' -d '{json.dumps(body)}'\n"
        f"spotinference dev reclaim NODE --name {name}\n"
        f"spotinference dev down --name {name}      # when you have seen enough"
    )
