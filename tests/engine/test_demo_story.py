"""The whole story in one command: on the small engine, and on the real vLLM."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid

import pytest

DEADLINE_S = 900.0


@pytest.mark.timeout(DEADLINE_S + 60)
@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("sim", marks=pytest.mark.cluster),
        pytest.param("vllm", marks=pytest.mark.engine),
    ],
)
async def test_a_streamed_answer_survives_its_node_and_is_identical(engine: str) -> None:
    name = f"story-{uuid.uuid4().hex[:6]}"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "spotinference", "demo", "--engine", engine, "--name", name),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "120"},
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            output, _ = await process.communicate()
    except TimeoutError:
        process.terminate()
        output, _ = await process.communicate()
    text = output.decode()
    assert process.returncode == 0, text
    assert "is reclaimed without notice" in text, text
    assert text.rstrip().endswith("identical"), text
