"""`spotinference dev`: a real Kubernetes with simulated spot GPU nodes on this machine."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from spotinference import errors
from spotinference.api import durations
from spotinference.cli import dev_trace
from spotinference.cli.dev_context import Name, cluster_paths, running
from spotinference.devcluster import assets, launch, paths, screen, supervisor
from spotinference.devcluster import topology as topologies
from spotinference.devcluster.processes import log_tail
from spotinference.devcluster.progress import Progress

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="A Kubernetes with simulated spot GPU nodes on this machine.",
)

FOLLOW_POLL_S = 0.2
PROCESS_LOGS = ("operator", "gateway", "apiserver", "etcd", "controller-manager", "scheduler")


@app.callback()
def dev(ctx: typer.Context, name: Name = None) -> None:
    """A Kubernetes with simulated spot GPU nodes on this machine."""
    ctx.obj = name


@app.command()
def up(
    ctx: typer.Context,
    name: Name = None,
    engine: Annotated[
        str, typer.Option(help="vllm: real vLLM on the CPU; sim: a small, fast imitation.")
    ] = "vllm",
    topology: Annotated[
        Path | None, typer.Option(help="Pools, zones, capacity, prices (YAML).")
    ] = None,
    assets: Annotated[
        Path | None, typer.Option(help="Folder with etcd, kube-apiserver, … to use.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when it is ready.")] = False,
    no_operator: Annotated[bool, typer.Option("--no-operator", help="Run it yourself.")] = False,
    no_gateway: Annotated[bool, typer.Option("--no-gateway", help="Run it yourself.")] = False,
    port: Annotated[int, typer.Option(help="The gateway's port; 0: any free one.")] = 0,
) -> None:
    """Start a cluster. In the foreground Ctrl-C takes it down; --detach leaves it running."""
    if engine not in {"vllm", "sim"}:
        raise errors.ConfigInvalid(f"--engine {engine}: use vllm or sim")
    shape = topologies.load(topology) if topology else topologies.default()
    request = launch.Request(
        paths=cluster_paths(ctx, name),
        engine="vllm" if engine == "vllm" else "sim",
        topology=shape,
        assets=assets,
        operator=not no_operator,
        gateway=not no_gateway,
        gateway_port=port,
    )
    launch.up(request, detach=detach)


@app.command()
def down(
    ctx: typer.Context,
    name: Name = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep logs and volumes.")] = False,
) -> None:
    """Stop a cluster and everything in it, and delete its files."""
    where = cluster_paths(ctx, name)
    if launch.down(where, keep=keep):
        typer.echo(f"cluster {where.name} is down")
    else:
        typer.echo(f"no cluster {where.name}; nothing to do")


@app.command()
def status(
    ctx: typer.Context,
    name: Name = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """What runs, where, and how it is."""
    where = cluster_paths(ctx, name)
    found = running(where)
    answer = asyncio.run(supervisor.control(found.control_url, found.control_token, "status"))
    if as_json:
        secret = {"control_token", "control_url"}
        typer.echo(json.dumps(found.model_dump(exclude=secret) | answer, indent=2))
        return
    typer.echo(launch.summary(where, found))
    Console(highlight=False, soft_wrap=True).print(screen.table(answer))


@app.command()
def kubeconfig(ctx: typer.Context, name: Name = None) -> None:
    """Print the path of the admin kubeconfig: export KUBECONFIG=$(spotinference dev kubeconfig)."""
    where = cluster_paths(ctx, name)
    running(where)
    typer.echo(str(where.kubeconfig))


@app.command()
def reclaim(
    ctx: typer.Context,
    node: Annotated[str, typer.Argument(help="As in `kubectl get nodes`.")],
    name: Name = None,
    notice: Annotated[
        str | None, typer.Option(help="Warn this long before, e.g. 30s; default: no warning.")
    ] = None,
) -> None:
    """Take a node away, as its provider would: at once, or after a notice."""
    try:
        seconds = None if notice is None else durations.seconds(notice)
    except ValueError as error:
        raise errors.ConfigInvalid(f"--notice: {error}") from error
    _control(cluster_paths(ctx, name), "reclaim", node=node, notice=seconds)
    typer.echo(f"{node}: " + ("gone" if notice is None else f"goes in {notice}"))


@app.command()
def market(
    ctx: typer.Context,
    pool_and_zone: Annotated[str, typer.Argument(metavar="POOL/ZONE")],
    capacity: Annotated[int, typer.Option(help="Nodes it can give, those running included.")],
    name: Name = None,
) -> None:
    """Change how many nodes a market can give."""
    pool, slash, zone = pool_and_zone.partition("/")
    if not slash:
        raise errors.ConfigInvalid(f"{pool_and_zone!r}: write POOL/ZONE, e.g. spot-l4/zone-a")
    _control(cluster_paths(ctx, name), "market", pool=pool, zone=zone, capacity=capacity)
    typer.echo(f"{pool_and_zone}: capacity {capacity}")


@app.command()
def logs(
    ctx: typer.Context,
    what: Annotated[str, typer.Argument(help="POD, operator, gateway, apiserver, supervisor, …")],
    name: Name = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows.")] = False,
    tail: Annotated[int, typer.Option(help="How many of the last lines; 0: all.")] = 0,
) -> None:
    """Print the log of a pod or of a process of the cluster."""
    where = cluster_paths(ctx, name)
    file = launch.find_log(where, what)
    if tail:
        typer.echo("\n".join(log_tail(file, tail)))
        offset = file.stat().st_size
    else:
        offset = 0
    with file.open("rb") as source:
        source.seek(offset)
        while True:
            sys.stdout.buffer.write(source.read())
            sys.stdout.flush()
            if not follow:
                return
            time.sleep(FOLLOW_POLL_S)


@app.command(
    context_settings={
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "allow_interspersed_args": False,
        "help_option_names": [],
    }
)
def kubectl(ctx: typer.Context) -> None:
    """Run kubectl on the cluster (which one: `dev --name N kubectl …`)."""
    where = cluster_paths(ctx, None)
    running(where)
    program = launch.kubectl_program()
    environment = {**os.environ, "KUBECONFIG": str(where.kubeconfig)}
    os.execve(program, ["kubectl", *ctx.args], environment)  # noqa: S606  # argv list, no shell


@app.command(hidden=True)
def process(
    ctx: typer.Context,
    process: Annotated[str, typer.Argument(help="operator, gateway, apiserver, …")],
    do: Annotated[str, typer.Argument(help="start, stop, restart, kill (stays down) or crash")],
    name: Name = None,
) -> None:
    """Start, stop, restart or kill one process of the cluster (for tests of faults)."""
    _control(cluster_paths(ctx, name), "process", name=process, do=do)


@app.command("assets", hidden=True)
def control_plane() -> None:
    """Find, fetch or build the control plane, and print its paths."""
    with Progress() as progress:
        for name, program in assets.control_plane(None, progress).items():
            typer.echo(f"{name}\t{program}")


@app.command(hidden=True)
def tools(
    names: Annotated[list[str] | None, typer.Argument(help="helm, kubeconform, argocd")] = None,
) -> None:
    """Build the programs that tests of the chart need, and print their paths."""
    with Progress() as progress:
        for name, program in assets.tools(names or assets.TOOLS, progress).items():
            typer.echo(f"{name}\t{program}")


def _control(where: paths.ClusterPaths, action: str, **body: object) -> None:
    found = running(where)
    asyncio.run(supervisor.control(found.control_url, found.control_token, action, **body))


app.add_typer(dev_trace.app, name="trace")
if importlib.util.find_spec("spotinference.cli.dev_engine") is not None:
    app.add_typer(importlib.import_module("spotinference.cli.dev_engine").app, name="engine")
