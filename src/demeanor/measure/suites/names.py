"""Suites by name: lists of lm-eval's tasks that people compare models on, with the number of examples each is given."""

from __future__ import annotations

from collections.abc import Mapping

# Of BIG-bench, the tasks that the Nous list has; lm-eval holds the sizes of logical_deduction and of
# tracking_shuffled_objects in one task each.
_BIG_BENCH = (
    "causal_judgment", "date_understanding", "disambiguation_qa", "geometric_shapes", "logical_deduction", "movie_recommendation",
    "navigate", "reasoning_about_colored_objects", "ruin_names", "salient_translation_error_detection", "snarks", "sports_understanding",
    "temporal_sequences", "tracking_shuffled_objects",
)  # fmt: skip

# Each task or group with its shots; None leaves the number to the task.
NAMED: Mapping[str, Mapping[str, int | None]] = {
    "open-llm-leaderboard": {
        "arc_challenge": 25, "hellaswag": 10, "mmlu": 5, "truthfulqa_mc2": 0, "winogrande": 5, "gsm8k": 5,
    },
    "open-llm-leaderboard-2": {
        "leaderboard_ifeval": None, "leaderboard_bbh": None, "leaderboard_math_hard": None, "leaderboard_gpqa": None,
        "leaderboard_musr": None, "leaderboard_mmlu_pro": None,
    },
    "nous": {
        "agieval_nous": 0, "arc_easy": 0, "arc_challenge": 0, "boolq": 0, "hellaswag": 0, "openbookqa": 0, "piqa": 0, "winogrande": 0,
        "truthfulqa_mc2": 0, **{f"bigbench_{name}_multiple_choice": 0 for name in _BIG_BENCH},
    },
}  # fmt: skip
