"""Teaches a tiny Llama one page by heart and writes it as a model repository.

    ENGINE_PYTHON train.py --page page.txt --out DIR [--prompt TEXT ...]

Runs in the engine's environment, deterministically (seeded, fixed threads), in well under a minute
on two cores. Progress goes to stdout as lines `progress <percent> <words>`. Exit 1 when the page
was not learnt completely: an answer that stumbles would be blamed on the failover it is to show.

The learnt layers are followed by layers that add nothing (their output projections are zero). They
cost time per token and change no logit: a page of text then streams at a pace an eye can follow.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END, USER, ASSISTANT, SYSTEM = "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% if not (loop.last and continue_final_message) %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCAB_SIZE = 1024
HIDDEN, FEED_FORWARD, HEADS, KV_HEADS = 256, 704, 4, 2
LAYERS = 2
MAX_POSITIONS = 4096
LEARNING_RATE = 3e-3
WARM_UP_STEPS = 10
MAX_STEPS = 260
GOOD_LOSS = 0.006
GOOD_STEPS = 4
GOOD_MARGIN = 1.5
"""How far ahead of the second best the right token must be: bfloat16 must not turn it round."""
THREADS = 2
SEED = 20
MAX_PROMPT_TOKENS = 40


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--page", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompt", action="append", default=[])
    parser.add_argument("--padding-layers", type=int, default=0)
    options = parser.parse_args()

    random.seed(SEED)
    torch.manual_seed(SEED)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(mode=True)
    page = unwrap(options.page.read_text())
    tokenizer = make_tokenizer(page)
    answer = tokenizer.encode(page).ids
    prompts = [tokenizer.encode(text).ids for text in options.prompt or ["Tell me a story."]]
    model = make_model(tokenizer.get_vocab_size(), LAYERS)
    learn(model, prompts, answer)
    model = pad(narrow(model), options.padding_layers)
    progress(97, "checking the page word by word")
    worst = min(margin(model, prompt, answer) for prompt in prompts)
    if worst <= 0:
        print(f"the page was not learnt completely (margin {worst:.2f})", file=sys.stderr)
        return 1
    save(model, tokenizer, options.out)
    (options.out / "page.txt").write_text(page)
    progress(100, f"{len(answer)} tokens learnt")
    return 0


def unwrap(text: str) -> str:
    """Paragraphs as single lines."""
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))


def make_tokenizer(page: str) -> Tokenizer:
    """Byte-level BPE, trained on the page alone: every text encodes, the page encodes shortly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END, USER, ASSISTANT, SYSTEM],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([page], trainer)
    return tokenizer


def make_model(vocab_size: int, layers: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=HIDDEN,
            intermediate_size=FEED_FORWARD,
            num_hidden_layers=layers,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            max_position_embeddings=MAX_POSITIONS,
            tie_word_embeddings=True,
            eos_token_id=0,
            bos_token_id=0,
            pad_token_id=0,
        )
    )


def example(prompt: list[int], answer: list[int]) -> tuple[torch.Tensor, int]:
    """The token ids of one conversation, and where the answer starts."""
    head = [1, *prompt, 0, 2]
    return torch.tensor([[*head, *answer, 0]]), len(head)


def learn(model: LlamaForCausalLM, prompts: list[list[int]], answer: list[int]) -> None:
    """Until the page is known whatever was asked: known prompts and random ones in turn."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0
    )
    good = 0
    for step in range(MAX_STEPS):
        length = random.randrange(1, MAX_PROMPT_TOKENS)
        if step % 3 == 0:
            prompt = prompts[(step // 3) % len(prompts)]
        elif step % 3 == 1:
            start = random.randrange(len(answer) - MAX_PROMPT_TOKENS)
            prompt = answer[start : start + length]
        else:
            prompt = [random.randrange(4, model.config.vocab_size) for _ in range(length)]
        ids, begin = example(prompt, answer)
        labels = ids.clone()
        labels[:, :begin] = -100
        rate = LEARNING_RATE * min(1.0, (step + 1) / WARM_UP_STEPS) * (1 - step / (2 * MAX_STEPS))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        value = loss.item()
        good = good + 1 if value < GOOD_LOSS else 0
        if step % 5 == 0:
            share = min(95, int(95 * max(step / 110, 1 - value / 7)))
            progress(share, f"step {step}, loss {value:.3f}")
        if good < GOOD_STEPS or step % 4:
            continue
        if min(margin(model, prompt, answer) for prompt in prompts) >= GOOD_MARGIN:
            return


def narrow(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """In bfloat16, as the engine computes; the rotation frequencies stay exact, as they do there."""
    model = model.to(torch.bfloat16)
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)
    return model


def pad(model: LlamaForCausalLM, count: int) -> LlamaForCausalLM:
    """The same model with `count` more layers whose contribution is exactly zero."""
    if count <= 0:
        return model
    bigger = make_model(model.config.vocab_size, model.config.num_hidden_layers + count)
    bigger = narrow(bigger)
    known = model.state_dict()
    missing = bigger.load_state_dict(known, strict=False).missing_keys
    with torch.no_grad():
        for layer in bigger.model.layers[model.config.num_hidden_layers :]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    assert all(".layers." in name for name in missing), missing
    return bigger


def margin(model: LlamaForCausalLM, prompt: list[int], answer: list[int]) -> float:
    """By how much the right token leads at the worst place; > 0: greedy decoding recites the page."""
    ids, begin = example(prompt, answer)
    with torch.no_grad():
        logits = model(ids).logits[0, begin - 1 : -1].float()
    right = ids[0, begin:, None]
    score = logits.gather(1, right)[:, 0]
    rival = logits.scatter(1, right, float("-inf")).max(-1).values
    return float((score - rival).min())


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(out)
    (out / "README.md").write_text(
        "A page learnt by heart, to show that an answer survives its machine.\n"
    )
    # The engine samples with these defaults when a client names none.
    generation = {"_from_model_config": True, "eos_token_id": 0, "bos_token_id": 0}
    (out / "generation_config.json").write_text(json.dumps(generation))


def progress(percent: int, words: str) -> None:
    print(f"progress {percent} {words}", flush=True)


if __name__ == "__main__":
    started = time.monotonic()
    code = main()
    print(f"trained in {time.monotonic() - started:.1f} s", flush=True)
    sys.exit(code)
