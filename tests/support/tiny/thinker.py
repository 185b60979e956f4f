"""Teaches a tiny Llama three answers by heart: one with reasoning, two with tool calls.

    ENGINE_PYTHON thinker.py DIR

Runs in the engine's environment, seeded, in seconds. What is asked is recognised by its last words
(`SCRIPTS`); the answers carry the tags that vLLM's parsers `qwen3` and `hermes` look for.
`DIR/embeds.txt` gets a prompt as embeddings, as `prompt_embeds` of /v1/completions wants it.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END, USER, ASSISTANT = "<|end|>", "<|user|>", "<|assistant|>"
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
TEMPLATE = (
    "{% for message in messages %}<|user|>{{ message.content }}<|end|>{% endfor %}<|assistant|>"
)
CALL = '<tool_call>\n{"name": "%s", "arguments": {"text": "%s"}}\n</tool_call>'
SCRIPTS = {
    "Think, then say it.": (
        "<think>\nSomebody wants to know what happens to a word when its machine is gone. "
        "I must not lose it.\n</think>\n\nIt is said again, elsewhere, and nobody hears the seam."
    ),
    "Take the lamp.": (
        "<think>\nThere is a tool for this.\n</think>\n\n"
        + CALL % ("take", "the brass lamp that stands on the table near the door")
    ),
    "Look, then take.": (
        "<think>\nTwo tools, one after the other.\n</think>\n\n"
        + CALL % ("look", "behind the curtain and under the carpet")
        + "\n"
        + CALL % ("take", "whatever glitters there")
    ),
}
EMBEDDED = "Think, then say it."
SEED, STEPS, RATE = 20, 400, 3e-3
GOOD_MARGIN = 2.0
"""By how much the right token leads at the worst place: no rounding may turn it round."""


def main(out: Path) -> int:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(), hidden_size=128, intermediate_size=256,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=2048, tie_word_embeddings=True,
            eos_token_id=0, bos_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip
    worst = learn(model, [example(tokenizer, *pair) for pair in SCRIPTS.items()])
    if worst < GOOD_MARGIN:
        print(f"not learnt (margin {worst:.2f})", file=sys.stderr)
        return 1
    out.mkdir(parents=True)
    model.save_pretrained(out)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    fast.chat_template = TEMPLATE
    fast.save_pretrained(out)
    generation = {"_from_model_config": True, "eos_token_id": 0, "bos_token_id": 0}
    (out / "generation_config.json").write_text(json.dumps(generation))
    (out / "embeds.txt").write_text(embeds(model, tokenizer))
    return 0


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE on the scripts; the tags are tokens, but not special: parsers must see them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*SCRIPTS, *SCRIPTS.values()], trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False) for tag in TAGS])
    return tokenizer


def example(tokenizer: Tokenizer, asked: str, answer: str) -> tuple[torch.Tensor, int]:
    """The token ids of a conversation, and where the answer starts."""
    head = tokenizer.encode(f"{USER}{asked}{END}{ASSISTANT}").ids
    return torch.tensor([[*head, *tokenizer.encode(answer + END).ids]]), len(head)


def learn(model: LlamaForCausalLM, examples: list[tuple[torch.Tensor, int]]) -> float:
    """Until every answer is known by a margin; the worst one."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    worst = 0.0
    for step in range(STEPS):
        for ids, begin in examples:
            labels = ids.clone()
            labels[:, :begin] = -100
            model(ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 19:
            worst = min(margin(model, *one) for one in examples)
            if worst >= GOOD_MARGIN:
                break
    return worst


def margin(model: LlamaForCausalLM, ids: torch.Tensor, begin: int) -> float:
    with torch.no_grad():
        logits = model(ids).logits[0, begin - 1 : -1]
    right = ids[0, begin:, None]
    score = logits.gather(1, right)[:, 0]
    rival = logits.scatter(1, right, float("-inf")).max(-1).values
    return float((score - rival).min())


def embeds(model: LlamaForCausalLM, tokenizer: Tokenizer) -> str:
    ids, begin = example(tokenizer, EMBEDDED, "")
    with torch.no_grad():
        tensor = model.get_input_embeddings()(ids[0, :begin]).clone()
    raw = io.BytesIO()
    torch.save(tensor, raw)
    return base64.b64encode(raw.getvalue()).decode()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
