"""`spotinference operator`: the process that watches tiers and keeps their replicas right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spotinference import logs

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The operator: reconciles InferenceTiers on the cluster it is pointed at.",
)


@app.callback()
def group() -> None:
    """Keeps `run` a subcommand."""


@app.command()
def run(
    kubeconfig: Annotated[
        Path | None,
        typer.Option(help="Kubeconfig file; without it the pod's own ServiceAccount."),
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option(help="Namespace of the leader Lease and of the gateways. [spotinference]"),
    ] = None,
    identity: Annotated[
        str | None, typer.Option(help="Name in the leader Lease. [the host's name]")
    ] = None,
    hub_endpoint: Annotated[
        str | None, typer.Option(help="Hub that hf:// models come from. [https://huggingface.co]")
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Our own image, run by the jobs that fill caches.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address for probes and metrics. [0.0.0.0]")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of /metrics; 0: any free one. [9090]")
    ] = None,
    probe_port: Annotated[
        int | None, typer.Option(help="Port of /healthz and /readyz; 0: any free one. [8081]")
    ] = None,
    announce: Annotated[
        Path | None, typer.Option(help="Write the addresses listened on to this file, as JSON.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error. [info]")
    ] = None,
) -> None:
    """Run the operator until SIGTERM.

    Every flag may also be given as a variable SPOTINFERENCE_OPERATOR_*, e.g.
    SPOTINFERENCE_OPERATOR_METRICS_PORT=0; a flag wins over its variable.

    Run two replicas: one leads (Lease spotinference-operator), the other takes over within
    seconds. A dead operator blocks neither serving nor the deletion of tiers.

    Exit codes: 0 after SIGTERM or SIGINT (writes finished, Lease released, in under 10 s);
    1 with one sentence when a CRD, a right or the API server is missing, or when a part
    stopped that must not.

    Try it on the embedded cluster: `spotinference dev up`, or point it at any cluster:
    `spotinference operator run --kubeconfig ~/.kube/config --metrics-port 0 --probe-port 0`.
    """
    from spotinference.controller import config

    settings = config.load(
        kubeconfig=kubeconfig,
        namespace=namespace,
        identity=identity,
        hub_endpoint=hub_endpoint,
        image=image,
        host=host,
        metrics_port=metrics_port,
        probe_port=probe_port,
        announce=announce,
        log_level=log_level,
    )
    logs.setup(level=settings.log_level)
    from spotinference.controller.app import main

    main(settings)
