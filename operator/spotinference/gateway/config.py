"""Every limit and deadline of the gateway, by name, with its reason.

Fields become `SPOTINFERENCE_GATEWAY_<NAME>` in the environment; the command line overrides.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from spotinference import errors

ENV_PREFIX = "SPOTINFERENCE_GATEWAY_"


class GatewaySettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="ignore")

    # --- addresses ------------------------------------------------------------------------------
    host: str = "0.0.0.0"
    port: int = Field(default=8080, ge=0, le=65535)
    metrics_port: int = Field(default=9090, ge=0, le=65535)
    keys_file: Path | None = None
    kubeconfig: Path | None = None
    announce: Path | None = None
    id: str | None = None

    # --- what a client may send -----------------------------------------------------------------
    max_body_bytes: int = 32 * 1024 * 1024
    """Room for a few images; beyond it 413."""
    body_timeout_s: float = 30.0
    """A body that is not here by then is slow on purpose: 408."""
    head_timeout_s: float = 15.0
    """From the first byte of a request (or the connection) to the end of its head."""
    idle_timeout_s: float = 75.0
    """Keep-alive between requests: longer than a load balancer's 60 s."""
    max_line_bytes: int = 8190
    """The request line; what aiohttp, nginx and Apache allow."""
    max_header_bytes: int = 8190
    """One header: a long token of a single sign-on fits."""
    max_headers: int = 100
    """Of a request, its trailers included; a browser behind two proxies sends 30."""
    max_connections: int = 10_000
    """3 KiB each while idle (benchmarks/parked_memory.py); those beyond it are closed at once and cost an accept each."""
    max_answers: int = Field(default=1000, ge=1)
    """Running at a time in one process, parked ones not counted; beyond it 503 at once. A
    chunk takes about 20 µs of a core (docs/gateway.md): a thousand streams of 40 tokens a second
    keep their pace, more would slow down all."""
    client_write_timeout_s: float = 60.0
    """A client that takes nothing this long while bytes wait for it is gone."""

    # --- parking --------------------------------------------------------------------------------
    max_parked: int = 20_000
    """Over all tiers; each tier has its own bound in spec.wake.maxParked."""
    max_parked_bytes: int = 512 * 1024 * 1024
    """Bodies of parked requests."""
    max_parked_bytes_per_tier: int = 256 * 1024 * 1024
    max_parked_per_key: int = 2_000
    """One client must not fill the places of all others; twice what a tier holds by default."""
    max_parked_bytes_per_key: int = 128 * 1024 * 1024
    parked_retry_after_s: int = 5
    fail_fast_s: float = 10.0
    """A parked stream gets its status this late at the latest; until then a true 504 or 503 can
    still be answered, afterwards it is 200 and heartbeats. Proxies cut at 30 s of silence."""
    busy_wait_s: float = 8.0
    """A request that meets full queues everywhere waits so long for a slot before it is told to
    come back: below `fail_fast_s`, so that this is always a true 503."""
    busy_retry_s: float = 0.25
    """A replica with a full queue is asked again after this, or when it ends an answer."""
    reject_hold_s: float = 60.0
    """A key that does not wait keeps the tier awake for the Retry-After it got and this much
    longer: time for its retry to arrive."""
    heartbeat_s: float = 10.0
    """SSE comments to parked streams (up to a fifth later, so that they do not write together),
    spaces before answers that are not streamed; proxies cut at 60 s of silence, some at 30."""
    empty_chunk_s: float = 60.0
    """Clients that count parsed chunks only (LangChain: 120 s) get one without choices."""

    # --- engines --------------------------------------------------------------------------------
    connect_timeout_s: float = 2.0
    first_byte_timeout_s: float = 600.0
    """Queue and prefill of a long prompt, while the tier's speed is not known, and at most."""
    first_byte_floor_s: float = 120.0
    """However fast the tier is: a burst may fill its queue before the first answer says so."""
    next_byte_timeout_s: float = 60.0
    """Between two chunks, while the tier's speed is not known, and at most."""
    next_byte_floor_s: float = 20.0
    """A batch that prefills or preempts pauses for seconds; a replica silent longer is lost."""
    deadline_check_s: float = 0.5
    """Deadlines of answers are kept to this; cheaper than a timer for each."""
    answer_timeout_s: float = 3600.0
    """A whole answer without a max_tokens, or of a tier whose speed is not known; at most."""
    answer_floor_s: float = 600.0
    """However short the answer: the OpenAI SDK gives up after as long."""
    gather_tokens: int = Field(default=256, ge=1)
    """An answer that is not streamed and may be this long is gathered from a stream, so that a lost
    replica does not cost all of it (docs/decisions/0017): shorter ones are sooner asked for again."""
    max_answer_bytes: int = 64 * 1024 * 1024
    """A non-streamed answer is held until it is whole."""
    max_losses: int = 5
    """Replicas that may die on one request before it counts as the cause."""
    max_attempts: int = 30
    """Attempts of one request in all, refused connections and busy replicas included."""
    evacuation_tick_s: float = 0.25
    """How often a replica with a notice is looked at: 500 answers leave it in portions of a few."""
    evacuation_margin_s: float = 3.0
    """An answer that would end later than this before the notice's deadline moves: the node's own
    shutdown takes a second or two, and clocks differ."""
    doom_grace_s: float = 60.0
    """A replica that outlives its deadline is emptied this much longer."""
    eject_s: float = 0.5
    """First pause of a replica that failed; doubles, with jitter, up to the maximum."""
    eject_max_s: float = 10.0
    retry_share: float = Field(default=0.2, ge=0, le=1)
    """Second tries after a sick answer (5xx, rubbish, silence) per request of a tier: a tier that
    fails every request gets a fifth more of them, not six times as many. A replica that is gone
    costs nothing of this, nor does an answer that is carried on."""
    retries_per_s: float = Field(default=10.0, ge=0)
    """Earned besides, so that a tier with few requests may retry at all."""
    retry_reserve_s: float = Field(default=10.0, ge=0)
    """So many seconds' worth may be saved up."""
    engine_connections: int = 10_000

    # --- demand ---------------------------------------------------------------------------------
    demand_retry_max_s: float = 2.0
    demand_attempts: int = 5

    # --- answers that outlive a connection ------------------------------------------------------
    resume_s: float = 60.0
    """A recorded answer waits so long for its client to come back, and is kept so long."""
    idempotency_s: float = 600.0
    """A finished answer to a request with an Idempotency-Key is kept: an SDK's whole timeout."""
    max_recording_bytes: int = 1024 * 1024
    """Of one answer, some 5,000 tokens. A longer one loses its beginning, once its clients have
    that; the engine is not read while a client lags so much."""
    max_recorded_bytes: int = 256 * 1024 * 1024
    """A running answer counts with the most that it may take."""
    max_recordings: int = 2000

    forward_silence_s: float = 1500.0
    """A request that another replica answers may be silent as long as a wake and an answer."""

    # --- limits ---------------------------------------------------------------------------------
    namespace: str | None = None
    """Our own; where months' tokens are kept. Unset: in this process alone."""
    peers_selector: str | None = None
    """Labels of the gateways' pods, which share the limits of keys. Unset: this one is alone."""
    budgets_s: float = 5.0
    """Between two exchanges of months' tokens: what a crash may forget."""

    # --- usage records --------------------------------------------------------------------------
    usage_spool: Path | None = None
    """Folder for usage records; on a PVC they survive the node. Unset: none are kept."""
    usage_max_bytes: int = 256 * 1024 * 1024
    """About 400,000 records. Beyond it new ones are dropped and counted: a receiver that is down
    for days must not stop serving."""
    usage_url: str | None = None
    """Where records are sent, as newline-separated JSON. Unset: they stay in the spool."""
    usage_ship_s: float = 5.0
    """A record waits so long at most before it is sent for the first time."""
    usage_timeout_s: float = 30.0
    usage_retry_s: float = 1.0
    usage_retry_max_s: float = 60.0

    # --- process --------------------------------------------------------------------------------
    workers: int = Field(default=1, ge=1, le=64)
    """Gateway processes in this pod, one core each; above one a supervisor keeps them."""
    worker: int | None = Field(default=None, ge=0)
    """Which of them this is; set by the supervisor only."""
    doors: Path | None = None
    """Folder of the sockets on which the workers of a pod reach each other; likewise."""
    restarted: bool = False
    """This worker takes the place of one that died: what that one admitted still counts."""
    metrics_host: str | None = None
    """Where the operational port listens; unset: as `host`."""
    worker_restart_s: float = Field(default=0.5, gt=0)
    """Before a worker that ended by itself is started again; doubles up to the maximum."""
    worker_restart_max_s: float = 10.0
    keys_poll_s: float = 1.0
    drain_s: float = 25.0
    """After SIGTERM running answers may end this long; below the pod's grace of 30 s."""
    sync_timeout_s: float = 30.0


def load(**flags: object) -> GatewaySettings:
    """Flags that were given win over variables; `ConfigInvalid` names the wrong one."""
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return GatewaySettings(**given)  # type: ignore[arg-type]  # validated by pydantic
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "?"
        raise errors.ConfigInvalid(
            f"--{name.replace('_', '-')} ({ENV_PREFIX}{name.upper()}) is {first['input']!r}: "
            f"{first['msg']}"
        ) from error
