"""How the real vLLM runs on the CPU of a laptop: its environment, in one place.

The node agent adds these variables to every engine container. They are the same for every replica:
vLLM's compile cache is keyed by its VLLM_* variables.
"""

from __future__ import annotations

VLLM_ON_CPU = {
    # GiB of key/value cache: two streams of a page each need less than a tenth of it.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # Weights come from the volume alone; a missing file is an error, not a download.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    # One thread, bound nowhere. vLLM's own choice binds every replica's threads to the same first
    # cores and lets them spin there; two replicas then starve each other and the control plane.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
    # On the CPU vLLM saves a whole compiled model that it then fails to load, and compiles its parts
    # anew; without it the parts come from Inductor's own cache at once.
    "VLLM_USE_AOT_COMPILE": "0",
    # Nobody is told about it.
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


def vllm_env() -> dict[str, str]:
    """The environment of a vLLM process on the CPU."""
    return dict(VLLM_ON_CPU)
