"""Questions with choices, of a shipped prompt set, as tasks of lm-evaluation-harness: read by likelihood, not written.

The choice that is likeliest behind the question is the answer, so that models can be measured that are too small, or
too broken, to write one. Nothing is rendered: the question stands as it is, and the choice follows behind a space.
"""

from collections.abc import Sequence
from typing import Any

from .prompts import PROMPT_SETS, LabPrompt, load_prompts


def sets_with_choices() -> list[str]:
    """Return the shipped sets that have questions with choices."""
    return [name for name in PROMPT_SETS if any(prompt.choices for prompt in load_prompts(name))]


def likelihood_tasks(name: str) -> dict[str, Any]:
    """Return the tasks of a set, by name: one for each skill that has choices, `SET_SKILL`."""
    by_skill: dict[str, list[LabPrompt]] = {}
    for prompt in load_prompts(name):
        if prompt.choices:
            by_skill.setdefault(f"{name}_{prompt.skill.replace(' ', '_')}", []).append(prompt)
    return {task: _task(task, prompts) for task, prompts in by_skill.items()}


def _task(name: str, prompts: Sequence[LabPrompt]) -> Any:
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask

    rows = {
        "question": [prompt.text for prompt in prompts],
        "choices": [list(prompt.choices) for prompt in prompts],
        "label": [prompt.choices.index(prompt.answer) for prompt in prompts],
    }
    return ConfigurableTask(
        config={
            "task": name,
            "custom_dataset": lambda **_: DatasetDict(test=Dataset.from_dict(rows)),
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{label}}",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 1.0},
        }
    )
