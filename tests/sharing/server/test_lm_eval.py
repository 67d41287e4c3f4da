"""lm-evaluation-harness asks the server as it asks any API of completions, and gets the model's own likelihoods."""

import pytest
import torch

from frankenlm.trainer_ext.generation.generate import prompt_ids

CASES = [("the cat sat on", " a mat"), ("green hills while", " birds sang of rain"), ("a", " dogs")]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["gpt2", "hybrid"])
def test_likelihoods_through_the_api(address, saved, opened, name):
    pytest.importorskip("tenacity")  # what its extra `api` brings
    instance = pytest.importorskip("lm_eval.api.instance")
    completions = pytest.importorskip("lm_eval.models.openai_completions")
    asking = completions.LocalCompletionsAPI(
        base_url=f"{address}/v1/completions", model=name, tokenizer=str(saved(name)), num_concurrent=1, max_retries=1
    )
    requests = [instance.Instance("loglikelihood", {}, case, number) for number, case in enumerate(CASES)]
    loaded = opened(name)
    for (context, continuation), (found, greedy) in zip(CASES, asking.loglikelihood(requests), strict=True):
        ids, whole = prompt_ids(loaded.tokenizer, context), prompt_ids(loaded.tokenizer, context + continuation)
        with torch.no_grad():
            logprobs = loaded.model(torch.tensor([whole])).logits[0].log_softmax(-1)
        places = range(len(ids) - 1, len(whole) - 1)
        assert found == pytest.approx(sum(float(logprobs[at, whole[at + 1]]) for at in places), abs=1e-3)
        assert greedy == all(int(logprobs[at].argmax()) == whole[at + 1] for at in places)
