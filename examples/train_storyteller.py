"""Make the storyteller: a small Llama that writes small stories, trained on the CPU in minutes.

    python examples/train_storyteller.py --out DIR [--quick]

The text comes from the grammar beside this file; nothing is downloaded. The same seed and number
of threads make the same model.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from story_grammar import (
    Story,
    make_request,
    make_scene,
    make_small_talk,
    make_story,
    stories,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

END, USER, ASSISTANT = "<|endoftext|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}<|user|>\n{{ message.content }}\n"
    "{% elif message.role == 'assistant' %}<|assistant|>\n{{ message.content }}<|endoftext|>\n"
    "{% elif message.role != 'system' %}"
    "{{ raise_exception('the roles are system, user and assistant, not ' + message.role) }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""Turns end with a line break, answers with the end of the text. A system message is left out:
the model tells stories, whatever the system."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long to train, and on how much."""

    n_steps: int
    n_tokenizer_stories: int
    batch_tokens: int = 2048
    peak_rate: float = 3e-3
    n_warmup_steps: int = 50
    share_of_scenes: float = 0.3
    share_before_decay: float = 0.4
    seed: int = 20240721


FULL = Plan(n_steps=2100, n_tokenizer_stories=20000)
QUICK = Plan(n_steps=3, n_tokenizer_stories=400, batch_tokens=512, n_warmup_steps=1)


def train_tokenizer(n_stories: int, seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 2048 tokens, learnt from stories and from what people say to hear them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=[END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(seed)
    told = list(islice(stories(seed), n_stories))
    requests = [make_request(rng, story) + "\n" for story in told]
    scenes = [make_scene(rng) for _ in range(n_stories // 10)]
    spoken = [line for _ in range(n_stories // 10) for line in make_small_talk(rng)]
    tokenizer.train_from_iterator(
        [*(story.text for story in told), *requests, *spoken, *scenes], trainer
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Six layers, so that two, three and six stages are even, and four and five are not."""
    end_id = tokenizer.eos_token_id
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=192,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=end_id,
        eos_token_id=end_id,
        pad_token_id=None,
        dtype="float32",
    )
    return LlamaForCausalLM(config)  # type: ignore[no-untyped-call]


def make_short_text(rng: random.Random) -> str:
    """Something for the beginning: names and things are learnt to be kept in mind much sooner from
    a few sentences than from whole stories.
    """
    if rng.random() < 0.6:
        return make_scene(rng) + END
    story = make_story(rng)
    return turn(make_request(rng, story), story.text.partition("\n\n")[0])


def make_text(rng: random.Random) -> str:
    """One text to learn: a story alone, or one told in a conversation of one or two turns."""
    story, kind = make_story(rng), rng.random()
    if kind < 0.55:
        return story.text + END
    if kind < 0.9:
        return asked(rng, story)
    if kind < 0.94:
        return turn(*make_small_talk(rng))
    if kind < 0.97:
        return turn(*make_small_talk(rng)) + "\n" + asked(rng, story)
    second = turn(*make_small_talk(rng)) if kind < 0.985 else asked(rng, make_story(rng))
    return asked(rng, story) + "\n" + second


def asked(rng: random.Random, story: Story) -> str:
    """A story and the request for it."""
    return turn(make_request(rng, story), story.text)


def turn(question: str, answer: str) -> str:
    """One exchange as the chat template writes it."""
    return f"{USER}\n{question}\n{ASSISTANT}\n{answer}{END}"


def batches(tokenizer: PreTrainedTokenizerFast, plan: Plan) -> Iterator[list[list[int]]]:
    """``n_steps`` batches of texts of similar lengths, ``batch_tokens`` each with the padding."""
    rng = random.Random(plan.seed + 1)
    n_left = plan.n_steps
    while n_left > 0:
        is_beginning = n_left > plan.n_steps * (1 - plan.share_of_scenes)
        pool = make_pool(rng, tokenizer, plan.batch_tokens, is_beginning=is_beginning)[:n_left]
        n_left -= len(pool)
        yield from pool


def make_pool(
    rng: random.Random,
    tokenizer: PreTrainedTokenizerFast,
    batch_tokens: int,
    *,
    is_beginning: bool,
) -> list[list[list[int]]]:
    """Some batches in random order; short texts prevail at the beginning."""
    make = [make_short_text, make_text] if is_beginning else [make_text]
    texts = [rng.choices(make, [4, 1][: len(make)])[0](rng) for _ in range(256)]
    pool: list[list[list[int]]] = [[]]
    for row in sorted(tokenizer(texts)["input_ids"], key=len):
        if (len(pool[-1]) + 1) * len(row) > batch_tokens and pool[-1]:
            pool.append([])
        pool[-1].append(row)
    rng.shuffle(pool)
    return pool


def make_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the embedding and the norms."""
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    chosen = set(matrices)
    others = [p for p in model.parameters() if p not in chosen]
    return [
        torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, plan: Plan) -> None:
    """The rate rises, stays, and falls to zero; the loss printed is a running mean of 20 steps."""
    optimizers = make_optimizers(model)
    started, n_tokens, mean_loss = time.monotonic(), 0, 0.0
    for step, rows in enumerate(batches(tokenizer, plan)):
        for group in (group for each in optimizers for group in each.param_groups):
            group["lr"] = plan.peak_rate * rate_at(step, plan)
        loss = loss_of(model, rows)
        model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        n_tokens += sum(map(len, rows))
        mean_loss += (loss.item() - mean_loss) / min(step + 1, 20)
        if step % 50 == 0 or step + 1 == plan.n_steps:
            elapsed_s = time.monotonic() - started
            print(
                f"step {step:5}  loss {mean_loss:.4f}  {n_tokens:8} tokens  {elapsed_s:6.1f} s",
                flush=True,
            )


def rate_at(step: int, plan: Plan) -> float:
    """The share of the peak learning rate at a step."""
    warm = (step + 1) / plan.n_warmup_steps
    left = (1 - step / plan.n_steps) / (1 - plan.share_before_decay)
    return min(1.0, warm, left)


def loss_of(model: LlamaForCausalLM, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Mean cross entropy over all but the first token of each row; rows are padded on the right."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full((len(rows), longest), -100)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = labels[i, : len(row)] = torch.tensor(row)
    loss: torch.Tensor = model(input_ids=ids, labels=labels, use_cache=False).loss
    return loss


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Everything a checkpoint needs; sampling is a little below the model's own randomness."""
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True, temperature=0.8, top_p=0.95, eos_token_id=tokenizer.eos_token_id
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory, save_jinja_files=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="where to write the checkpoint")
    parser.add_argument("--quick", action="store_true", help="a few steps: a trial, not a model")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(plan.seed)
    tokenizer = train_tokenizer(plan.n_tokenizer_stories, plan.seed)
    model = make_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {plan.n_steps} steps")
    train(model, tokenizer, plan)
    save(model, tokenizer, arguments.out)
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
