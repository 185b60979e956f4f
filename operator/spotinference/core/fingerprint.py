"""What makes two engines give the same answer: only between such may an answer go on.

The image, the model (its path holds the commit of the weights), and those flags that change what is
said or how it is written. Flags of speed and size are left out, so that a roll-out of those does
not strand the answers of the old replicas.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

_SPEAKING = frozenset(
    {
        "chat-template", "chat-template-content-format", "config-format", "default-chat-template-kwargs",
        "dtype", "enable-auto-tool-choice", "enable-lora", "generation-config", "hf-overrides",
        "kv-cache-dtype", "load-format", "logits-processors", "lora-modules",
        "override-generation-config", "quantization", "reasoning-parser", "response-role", "revision",
        "rope-scaling", "speculative-config", "tokenizer", "tokenizer-mode", "tokenizer-revision",
        "tool-call-parser", "trust-request-chat-template",
    }
)  # fmt: skip


def fingerprint(image: str, args: Sequence[str]) -> str:
    """Equal for engines that give equal answers. `args` as in a pod: the model, then flags."""
    model = args[0] if args and not args[0].startswith("--") else ""
    spoken = sorted(words for name, words in flags(args) if name in _SPEAKING)
    return " ".join([image, model, *spoken])


def flags(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each flag's name, and the flag with all its values in one form."""
    name, words = "", []
    for arg in [*args, "--"]:
        if not arg.startswith("--"):
            words.append(arg)
            continue
        if name:
            yield name, " ".join([f"--{name}", *words])
        name, equals, value = arg[2:].partition("=")
        name = name.replace("_", "-")
        words = [value] if equals else []
