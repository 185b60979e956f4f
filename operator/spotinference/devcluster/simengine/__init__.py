"""A small engine that speaks vLLM's HTTP API, for tests and for a laptop in a hurry.

    python -m spotinference.devcluster.simengine serve MODEL [vllm serve's flags]

It holds no weights. Its next token is a function of *all* tokens before it, so a token that a
proxy lost, repeated or reordered changes every token after it: a slip cannot hide. Where it and
the real vLLM disagree, it is wrong: `tests/engine` runs one contract against both.

    options.py    vllm serve's flags and the SPOTINFERENCE_SIM_* environment, parsed once
    tokenizer.py  words <-> ids, and text that appears only when its bytes are complete
    language.py   the next token
    engine.py     admission, queue, batch steps: what is running and what waits
    protocol.py   request bodies in, vLLM's errors out
    wire.py       response bodies and stream chunks, byte for byte in vLLM's shape
    faults.py     what goes wrong on purpose
    metrics.py    vLLM's series
    model.py      the model directory: what vLLM would refuse to load, and a tiny one to load
    streaming.py  a streamed answer, and how it breaks
    server.py     routes, drain, stop; `SimServer` is the entry for tests
    process.py    the process: model check, compile, signals
"""

from __future__ import annotations

from spotinference.devcluster.simengine.options import SimOptions
from spotinference.devcluster.simengine.server import SimServer

__all__ = ["SimOptions", "SimServer"]
