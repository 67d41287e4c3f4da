"""Odd values for rows of result files, each with what the refusal of it says; for the tests."""

import json

HUGE, DEEP = 10**400, json.loads("[" * 400 + "]" * 400)

# a field of a row, what stands there, and what the message says of it
ODD_FIELDS = [
    *(
        (name, value, name)
        for name in ("model_name", "experiment_id", "prompt_group", "param_group_name", "degradation_method")
        for value in (3, None, ["a"], "half \ud800")
    ),
    *((name, value, name) for name in ("prompt_text", "completion") for value in (3, None, {"a": 1}, DEEP)),
    *(
        ("level_value", value, "level_value")
        for value in (float("nan"), float("inf"), -float("inf"), "0.1", HUGE, -0.5, True, [0.1], 1e300)
    ),
    *((name, value, name) for name in ("repeat_index", "prompt_id") for value in (-1, 1.5, "0", None, HUGE, True)),
    *(("status", value, "status") for value in ("fine", None, 1, ["ok"], {})),
    *(("attempt", value, "attempt") for value in ("2", [1], HUGE)),
    *(
        (name, value, name)
        for name in ("mean_logprob", "mean_entropy", "tokens_generated", "damage_rel_l2")
        for value in ("1", float("nan"), HUGE, [1.0])
    ),
    *(("perplexity", value, "perplexity") for value in (0, -1.0, float("inf"), "2", HUGE)),
    *(("image_sha256", value, "image_sha256") for value in (["a"], {}, 5)),
    ("finish_reason", ["eos"], "finish_reason"),
    ("is_baseline", "no", "is_baseline"),
    ("row_key", DEEP, "row_key"),
]


def odd_name(field, value) -> str:
    text = "10**400" if value is HUGE else "deep" if value is DEEP else ascii(value)
    return f"{field}={text}"
