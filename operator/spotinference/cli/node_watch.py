"""`spotinference node-watch`: on each spot node, from the cloud's metadata to a node condition."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spotinference import logs

app = typer.Typer(rich_markup_mode=None)


@app.command()
def node_watch(
    node: Annotated[str | None, typer.Option(help="Name of the node that this runs on.")] = None,
    provider: Annotated[
        str | None,
        typer.Option(help="aws, gcp or azure; auto: by the node's providerID, or who answers."),
    ] = None,
    metadata_url: Annotated[
        str | None, typer.Option(help="The metadata service. [http://169.254.169.254]")
    ] = None,
    notice_seconds: Annotated[
        int | None, typer.Option(help="How long a machine lasts when the cloud says no time. [30]")
    ] = None,
    kubeconfig: Annotated[
        Path | None,
        typer.Option(help="Kubeconfig file; without it the pod's own ServiceAccount."),
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error. [info]")
    ] = None,
) -> None:
    """Watch the metadata service of the machine this runs on, until SIGTERM.

    A reclaim, a rebalance recommendation or maintenance becomes the node condition
    spotinference.dev/Interruption, which the operator reads whatever the pool's provider. Meant to
    run as a DaemonSet (chart value nodeWatch.enabled); every flag may also be given as a variable
    SPOTINFERENCE_NODE_WATCH_*.

    Exit codes: 0 after SIGTERM or SIGINT; 1 with one sentence when the node or the metadata
    service is not there.
    """
    from spotinference.nodewatch import config

    settings = config.load(
        node=node,
        provider=provider,
        metadata_url=metadata_url,
        notice_seconds=notice_seconds,
        kubeconfig=kubeconfig,
        log_level=log_level,
    )
    logs.setup(level=settings.log_level)
    from spotinference.nodewatch.app import main

    main(settings)
