"""Makes a tiny BLIP-2 with random weights: it says nonsense, another one for each picture.

    ENGINE_PYTHON seer.py DIR

Runs in the engine's environment, seeded, in seconds. BLIP-2 because most vision models of vLLM 0.32
(LLaVA and Qwen-VL among them) import torchvision, which its build for the CPU can do without.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessorPil,
    OPTConfig,
    PreTrainedTokenizerFast,
)

END, USER, ASSISTANT, IMAGE = "<|end|>", "<|user|>", "<|assistant|>", "<image>"
TEMPLATE = (
    "{% for message in messages %}<|user|>"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|end|>{% endfor %}<|assistant|>"
)
PIXELS, PATCH, QUERIES = 28, 14, 4
SEED = 20


def main(out: Path) -> None:
    torch.manual_seed(SEED)
    tokenizer = make_tokenizer()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    fast.chat_template = TEMPLATE
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    model = Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config=Blip2VisionConfig(
                **size, num_attention_heads=2, image_size=PIXELS, patch_size=PATCH
            ),
            qformer_config=Blip2QFormerConfig(
                **size, num_attention_heads=2, encoder_hidden_size=64, vocab_size=32
            ),
            text_config=OPTConfig(
                vocab_size=tokenizer.get_vocab_size(), hidden_size=64, ffn_dim=128,
                num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=64,
                max_position_embeddings=1024, eos_token_id=0, bos_token_id=0, pad_token_id=0,
            ),
            num_query_tokens=QUERIES,
            image_token_index=tokenizer.token_to_id(IMAGE),
        )
    )  # fmt: skip
    with torch.no_grad():  # loud enough for a picture to be heard, and for ties not to happen
        for name, weights in model.named_parameters():
            if weights.dim() > 1:
                torch.nn.init.normal_(weights, std=0.3)
            elif "query_tokens" in name:
                torch.nn.init.normal_(weights)
    out.mkdir(parents=True)
    model.save_pretrained(out)
    pictures = BlipImageProcessorPil(size={"height": PIXELS, "width": PIXELS})
    Blip2Processor(pictures, fast, num_query_tokens=QUERIES).save_pretrained(out)
    generation = {"_from_model_config": True, "eos_token_id": 0, "bos_token_id": 0}
    (out / "generation_config.json").write_text(json.dumps(generation))


def make_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["What is in the picture? Describe it."], trainer)
    tokenizer.add_tokens([AddedToken(IMAGE, special=True)])
    return tokenizer


if __name__ == "__main__":
    main(Path(sys.argv[1]))
