"""Clients as their users run them: unmodified, with default settings, through a six-minute wake.

Time is scaled: a second of the real world is 1/scale here. So are the gateway's own timers (by its
settings) and, because they count in seconds, the clients' time-outs: each is the client's own
default divided by the scale. Retries stay as they are, and no request may have needed one.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel, SecretStr

from tests.support.eventually import eventually
from tests.support.gateway import KEY, Bench, bench
from tests.support.stalls import stalls

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the internet for prices
os.environ["LANGSMITH_TRACING"] = "false"

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
]

SCALES = (60, 12)
WAKE_S = 360.0
CAP_S = 600.0
PATIENCE_S = 30.0
"""Half of what the least patient client (LangChain) has left between two empty chunks."""
LANGCHAIN_CHUNK_TIMEOUT_S = 120
"""Its default; it reads an environment variable only when none is given."""
LITELLM_TIMEOUT_S = 600
"""Its default where none is given (`litellm.main.completion`)."""
DOCS = Path(__file__).parents[2] / "docs" / "reference" / "clients.md"

ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": "tell me a story"}]
MESSAGES: list[Any] = [dict(message) for message in ASKED]
TOOL: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "looks somewhere",
        "parameters": {
            "type": "object",
            "properties": {"text": {"type": "string"}},
            "required": ["text"],
        },
    },
}


class Place(BaseModel):
    """A place on the map."""

    name: str
    height: int
    coast: bool


@asynccontextmanager
async def serving(scale: float = 1) -> AsyncIterator[Bench]:
    import langchain_openai  # noqa: F401 - seconds, which must not pass while a client waits
    import litellm  # noqa: F401

    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(32))  # one a client
    settings = {"fail_fast_s": 5 / scale, "heartbeat_s": 10 / scale, "empty_chunk_s": 60 / scale}
    async with bench(**settings) as b:
        await b.tier("demo", wake={"cap": f"{CAP_S / scale:g}s", "budget": f"{480 / scale:g}s"})
        yield b


async def replica(b: Bench) -> None:
    """Calls its tools to the end, and speaks for about thirty tokens."""
    await b.replica(tool_parser=True, eos_mean_tokens=30)


Story = Callable[[str, float], Coroutine[None, None, None]]


# --- the OpenAI SDK -----------------------------------------------------------------------------


def openai_timeout(scale: float) -> openai.Timeout:
    own = openai.DEFAULT_TIMEOUT
    assert isinstance(own, openai.Timeout)
    assert own.read is not None
    return openai.Timeout(own.read / scale, connect=own.connect)


def openai_client(url: str, scale: float) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key=KEY, timeout=openai_timeout(scale))


def openai_async_client(url: str, scale: float) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, timeout=openai_timeout(scale))


async def openai_sync_whole(url: str, scale: float) -> None:
    def run() -> None:
        with openai_client(url, scale) as client:
            answer = client.chat.completions.create(
                model="demo", messages=ASKED, max_tokens=9, temperature=0
            )
            assert answer.choices[0].message.content

    await asyncio.to_thread(run)


async def openai_sync_stream(url: str, scale: float) -> None:
    def run() -> None:
        with openai_client(url, scale) as client:
            text, finish = "", None
            for chunk in client.chat.completions.create(
                model="demo", messages=ASKED, max_tokens=9, temperature=0, stream=True
            ):
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    finish = choice.finish_reason or finish
            assert text
            assert finish in {"length", "stop"}

    await asyncio.to_thread(run)


async def openai_tools(url: str, scale: float) -> None:
    async with openai_async_client(url, scale) as client:
        answer = await client.chat.completions.create(
            model="demo", messages=ASKED, tools=[TOOL], tool_choice="required", temperature=0
        )
        assert answer.choices[0].finish_reason == "tool_calls"
        calls = answer.choices[0].message.tool_calls
        assert calls
        assert calls[0].type == "function"
        assert calls[0].function.name == "look"


async def openai_tool_stream(url: str, scale: float) -> None:
    async with (
        openai_async_client(url, scale) as client,
        client.chat.completions.stream(
            model="demo", messages=ASKED, tools=[TOOL], tool_choice="required", temperature=0
        ) as stream,
    ):
        async for _ in stream:
            pass
        final = await stream.get_final_completion()
        calls = final.choices[0].message.tool_calls
        assert calls
        assert calls[0].function.name == "look"


async def openai_parse(url: str, scale: float) -> None:
    async with openai_async_client(url, scale) as client:
        answer = await client.chat.completions.parse(
            model="demo", messages=ASKED, response_format=Place
        )
        assert answer.choices[0].message.parsed == Place(name="word", height=1, coast=True)


async def openai_responses(url: str, scale: float) -> None:
    async with openai_async_client(url, scale) as client:
        answer = await client.responses.create(
            model="demo", input="hi", max_output_tokens=9, temperature=0
        )
        assert answer.output_text
        parsed = await client.responses.parse(model="demo", input="hi", text_format=Place)
        assert parsed.output_parsed == Place(name="word", height=1, coast=True)


async def openai_responses_stream(url: str, scale: float) -> None:
    async with (
        openai_async_client(url, scale) as client,
        client.responses.stream(
            model="demo", input="hi", max_output_tokens=9, temperature=0
        ) as stream,
    ):
        text = "".join(
            [event.delta async for event in stream if event.type == "response.output_text.delta"]
        )
        final = await stream.get_final_response()
        assert text == final.output_text


async def openai_models(url: str, scale: float) -> None:
    async with openai_async_client(url, scale) as client:
        assert [model.id async for model in client.models.list()] == ["demo"]
        assert (await client.models.retrieve("demo")).id == "demo"


# --- LangChain ----------------------------------------------------------------------------------


def langchain(url: str, scale: float, **more: Any) -> Any:
    from langchain_openai import ChatOpenAI

    if scale != 1:
        more |= {
            "timeout": openai_timeout(scale),
            "stream_chunk_timeout": LANGCHAIN_CHUNK_TIMEOUT_S / scale,
        }
    return ChatOpenAI(
        model="demo", base_url=f"{url}/v1", api_key=SecretStr(KEY), temperature=0, **more
    )


async def langchain_whole(url: str, scale: float) -> None:
    model = langchain(url, scale)
    assert (await asyncio.to_thread(model.invoke, "tell me a story")).text
    assert (await model.ainvoke("tell me a story")).text


async def langchain_stream(url: str, scale: float) -> None:
    model = langchain(url, scale)
    assert "".join([chunk.text async for chunk in model.astream("tell me a story")])


async def langchain_blocking_stream(url: str, scale: float) -> None:
    model = langchain(url, scale)

    def run() -> str:
        return "".join(chunk.text for chunk in model.stream("tell me a story"))

    assert await asyncio.to_thread(run)


async def langchain_tools(url: str, scale: float) -> None:
    model = langchain(url, scale).bind_tools([TOOL], tool_choice="required")
    calls = (await model.ainvoke("tell me a story")).tool_calls
    assert calls[0]["name"] == "look"
    assert set(calls[0]["args"]) == {"text"}


async def langchain_structured(url: str, scale: float) -> None:
    model = langchain(url, scale).with_structured_output(Place)
    assert await model.ainvoke("where?") == Place(name="word", height=1, coast=True)


async def langchain_responses(url: str, scale: float) -> None:
    model = langchain(url, scale, use_responses_api=True)
    assert "".join([chunk.text async for chunk in model.astream("tell me a story")])


# --- LiteLLM ------------------------------------------------------------------------------------


def litellm(scale: float) -> tuple[Any, dict[str, Any]]:
    import litellm as package

    package.suppress_debug_info = True
    more = {"timeout": LITELLM_TIMEOUT_S / scale} if scale != 1 else {}
    return package, more | {"temperature": 0}


async def litellm_whole(url: str, scale: float) -> None:
    package, more = litellm(scale)
    ask = {"model": "openai/demo", "api_base": f"{url}/v1", "api_key": KEY, "messages": MESSAGES}
    answer = await asyncio.to_thread(package.completion, **ask, **more)
    assert answer.choices[0].message.content
    answer = await package.acompletion(**ask, **more)
    assert answer.choices[0].message.content


async def litellm_stream(url: str, scale: float) -> None:
    package, more = litellm(scale)
    ask = {"model": "hosted_vllm/demo", "api_base": f"{url}/v1", "api_key": KEY}
    text = ""
    stream = await package.acompletion(**ask, messages=MESSAGES, stream=True, **more)
    async for chunk in stream:
        text += chunk.choices[0].delta.content or ""
    assert text


async def litellm_blocking_stream(url: str, scale: float) -> None:
    package, more = litellm(scale)
    ask = {"model": "openai/demo", "api_base": f"{url}/v1", "api_key": KEY, "messages": MESSAGES}

    def run() -> str:
        chunks = package.completion(**ask, stream=True, **more)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    assert await asyncio.to_thread(run)


async def litellm_tools(url: str, scale: float) -> None:
    package, more = litellm(scale)
    ask = {"model": "hosted_vllm/demo", "api_base": f"{url}/v1", "api_key": KEY}
    answer = await package.acompletion(
        **ask, messages=MESSAGES, tools=[TOOL], tool_choice="required", **more
    )
    assert answer.choices[0].message.tool_calls[0].function.name == "look"


STORIES: dict[str, tuple[str, Story]] = {
    "blocking, whole": ("openai", openai_sync_whole),
    "blocking, streamed": ("openai", openai_sync_stream),
    "async, tools": ("openai", openai_tools),
    "async, tools streamed": ("openai", openai_tool_stream),
    "async, structured output": ("openai", openai_parse),
    "async, responses, whole and structured": ("openai", openai_responses),
    "async, responses streamed": ("openai", openai_responses_stream),
    "models": ("openai", openai_models),
    "invoke, ainvoke": ("langchain-openai", langchain_whole),
    "stream": ("langchain-openai", langchain_blocking_stream),
    "astream": ("langchain-openai", langchain_stream),
    "bind_tools": ("langchain-openai", langchain_tools),
    "with_structured_output": ("langchain-openai", langchain_structured),
    "astream, responses API": ("langchain-openai", langchain_responses),
    "completion, acompletion": ("litellm", litellm_whole),
    "completion streamed": ("litellm", litellm_blocking_stream),
    "acompletion streamed": ("litellm", litellm_stream),
    "acompletion, tools": ("litellm", litellm_tools),
}


@pytest.fixture(autouse=True)
async def closed() -> AsyncIterator[None]:
    """Connections that a client keeps for ever are collected here, not in another test."""
    yield
    import litellm

    await litellm.close_litellm_async_clients()  # type: ignore[no-untyped-call,attr-defined]
    gc.collect()


@pytest.mark.parametrize("name", STORIES)
async def test_a_client_works_as_it_is(name: str) -> None:
    async with serving() as b:
        await replica(b)
        await STORIES[name][1](b.url, 1)


async def test_no_client_gives_up_during_a_wake_of_six_minutes() -> None:
    """All of them at once wait for the same sleeping tier; none asks a second time meanwhile.

    Where this process stood still for longer than a scaled client is patient, that says nothing of
    the gateway: it is done again with a slower clock.
    """
    for scale in SCALES:
        async with stalls() as stood_still:
            try:
                await wake_of_six_minutes(scale)
            except Exception:  # each client gives up with exceptions of its own
                if scale == SCALES[-1] or stood_still.worst_s < PATIENCE_S / scale:
                    raise
            else:
                return


async def wake_of_six_minutes(scale: float) -> None:
    async with serving(scale) as b:
        stories = {name: story for name, (_, story) in STORIES.items() if name != "models"}
        async with asyncio.TaskGroup() as tasks:
            asked_at = asyncio.get_running_loop().time()
            for story in stories.values():
                tasks.create_task(story(b.url, scale))
            await eventually(lambda: b.parked() == len(stories), WAKE_S / scale)
            left_s = asked_at + WAKE_S / scale - asyncio.get_running_loop().time()
            await asyncio.sleep(max(0.0, left_s))  # the wake itself
            assert b.parked() == len(stories)
            assert requests(b) == 0, "a client gave up"
            await replica(b)
        second = {"invoke, ainvoke", "completion, acompletion"}
        second |= {"async, responses, whole and structured"}  # these ask twice
        assert requests(b) == len(stories) + len(second)


def requests(b: Bench) -> float:
    """Ended so far, well or not."""
    text = b.gateway.context.metrics.render().decode()
    return sum(
        map(
            float, re.findall(r"^spotinference_gateway_requests_total.* (\S+)$", text, re.MULTILINE)
        )
    )


def table() -> str:
    lines = ["| client | version | what it does in the test |", "|---|---|---|"]
    for client in dict.fromkeys(client for client, _ in STORIES.values()):
        done = "; ".join(name for name, (owner, _) in STORIES.items() if owner == client)
        lines.append(f"| {client} | {version(client)} | {done} |")
    return "\n".join(lines) + "\n"


def test_the_docs_name_the_clients_that_ran_and_their_versions() -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        before = DOCS.read_text().partition("| client |")[0]
        DOCS.write_text(before + table())
    assert DOCS.read_text().endswith(table()), "remedy: UPDATE_GOLDEN=1 with this test"
