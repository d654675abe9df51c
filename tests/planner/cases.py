"""The public planner's cases that its documentation's models give, by their letters."""

from __future__ import annotations

from dvrt.planner.public import PublicInput

OPT_66B = {"num_layers": 64, "attention_size": 9216, "layer_size": 1_019_215_872}
BLOOM_176B = {"num_layers": 70, "attention_size": 14_336, "layer_size": 2_466_250_752}
OPT_30B = {"num_layers": 48, "attention_size": 7168, "layer_size": 616_562_688}
GPT2 = {"num_layers": 48, "attention_size": 1600, "layer_size": 30_740_800}
OPT_175B = {"num_layers": 96, "attention_size": 12_288, "layer_size": 1_811_939_328}

TWO_A100 = {"num_machines_per_node": 2, "memory_per_gpu": 80}
FOUR_A100 = {"num_machines_per_node": 4, "memory_per_gpu": 80}
TWO_V100 = {"num_machines_per_node": 2, "memory_per_gpu": 16}
COMMON = {"fp_size": 2, "prompt_len": 1000, "num_extra_tokens": 200, "batch_size": 8}


def case(**changes: float) -> PublicInput:
    return PublicInput(**COMMON | changes)


CASES = {
    "B": case(**OPT_66B, **TWO_A100, num_machines=4, prompt_time=850, token_time=17),
    "H": case(**OPT_66B, **TWO_A100, num_machines=4, prompt_time=1700, token_time=17),
    "I": case(**BLOOM_176B, **TWO_A100, num_machines=6, prompt_time=2600, token_time=24),
    "J": case(**BLOOM_176B, **TWO_A100, num_machines=7, prompt_time=4800, token_time=24),
    "K": case(**BLOOM_176B, **FOUR_A100, num_machines=6, prompt_time=2600, token_time=24),
    "E": case(
        **BLOOM_176B,
        **TWO_A100,
        num_machines=12,
        prompt_time=2200,
        token_time=24,
        prompt_stream_overhead=1.2,
    ),
    "L": PublicInput(
        **OPT_30B,
        **TWO_V100,
        num_machines=6,
        fp_size=2,
        prompt_len=1000,
        num_extra_tokens=200,
        batch_size=4,
        prompt_time=700,
        token_time=11,
    ),
    "M": PublicInput(
        **GPT2,
        num_machines_per_node=1,
        memory_per_gpu=16,
        num_machines=8,
        fp_size=2,
        prompt_len=500,
        num_extra_tokens=10,
        batch_size=8,
        prompt_time=30,
        token_time=3,
    ),
    "G": case(**OPT_175B, **TWO_V100, num_machines=4, prompt_time=700, token_time=11),
}
