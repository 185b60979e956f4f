"""The process that stands in for `vllm serve`: start, signals, exit code."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from spotinference import errors
from spotinference.devcluster.simengine import model, protocol
from spotinference.devcluster.simengine import options as options_module
from spotinference.devcluster.simengine.faults import Fault
from spotinference.devcluster.simengine.faults import parse as parse_fault
from spotinference.devcluster.simengine.options import ENV_PREFIX, SimOptions
from spotinference.devcluster.simengine.server import VERSION, SimServer


def main(argv: Sequence[str]) -> int:
    """The process: exit 1 with a sentence when vLLM would not start either."""
    try:
        options = options_module.parse(argv, os.environ)
        plan = os.environ.get(ENV_PREFIX + "FAULTS")
        fault = parse_fault(protocol.parse_json(plan.encode())) if plan else None
        config = model.check(Path(options.model))
        options = _with_model_len(options, config)
        return asyncio.run(_serve(options, config, fault))
    except (errors.SpotinferenceError, protocol.Refused) as error:
        _log(f"ERROR {error}")
        return 1
    except KeyboardInterrupt:
        return 130


def _with_model_len(options: SimOptions, config: dict[str, object]) -> SimOptions:
    limit = config.get("max_position_embeddings")
    if options.max_model_len <= 0:
        fallback = options_module.DEFAULT_MAX_MODEL_LEN
        return replace(options, max_model_len=limit if isinstance(limit, int) else fallback)
    if isinstance(limit, int) and options.max_model_len > limit:
        raise errors.ConfigInvalid(
            f"User-specified max_model_len ({options.max_model_len}) is greater than the derived "
            f"max_model_len (max_position_embeddings={limit})"
        )
    return options


async def _serve(options: SimOptions, config: dict[str, object], fault: Fault | None) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    _log(f"vLLM API server version {VERSION} (simulated), model {options.model}")
    if _must_fail(options):
        return 1
    hit, compile_s = model.compile_kernels(options, config)
    if not options.enforce_eager and options.cache_root is not None:
        _log(f"compile cache {'hit' if hit else 'miss'}: {options.cache_root}")
    if await _waited(stop, options.start_delay_s + compile_s):
        return 0
    if not hit:
        model.finish_compile(options, config)
        _log(f"torch.compile took {compile_s:.1f} s in total")
    server = SimServer(options, plan=fault)
    await server.start()
    _log(f"Application startup complete. {server.url}")
    await stop.wait()
    _log(f"[shutdown] timeout={options.shutdown_timeout_s:g}s")
    await server.drain()
    await server.stop()
    return 0


def _must_fail(options: SimOptions) -> bool:
    if not options.start_failure:
        return False
    if options.start_failures_left is not None and not options.start_failures_left.exists():
        return False
    if options.start_failure == "oom":
        _log("ERROR torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.95 GiB.")
    else:
        _log("ERROR RuntimeError: Engine core initialization failed.")
    return True


async def _waited(stop: asyncio.Event, seconds: float) -> bool:
    """True when asked to stop before the time was over."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
    return stop.is_set()


def _log(line: str) -> None:
    stamp = time.strftime("%m-%d %H:%M:%S")
    print(f"(APIServer pid={os.getpid()}) {stamp} {line}", file=sys.stderr, flush=True)
