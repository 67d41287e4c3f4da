"""What we stand on in other libraries, fact by fact: it runs first, and where it fails nothing else runs.

A library that renames something we use then reads as one sentence here, and not as thousands of failures. Two kinds of
facts: every name that our code imports from another library (found in the code itself), and every private name that it
overrides, reads or calls (FACTS, which the last tests hold complete).
"""

import ast
import importlib
import inspect
import pkgutil
import platform
import re
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("modeling", "trainer_ext", "degradation", "kernels", "scripts", "sharing")
LIBRARIES = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "evaluate",
    "fastapi",
    "gradio",
    "huggingface_hub",
    "peft",
    "safetensors",
    "starlette",
    "tokenizers",
    "transformers",
    "uvicorn",
)

# "module:attribute.attribute" of another library: who needs it, and what for
FACTS = {
    "transformers:PreTrainedModel._init_weights": "our models initialise what transformers does not know",
    "transformers:PreTrainedModel._tied_weights_keys": "our heads name what they share with the embedding",
    "transformers:PreTrainedModel._no_split_modules": "our blocks stay whole under a device map",
    "transformers:PreTrainedModel._keep_in_fp32_modules": "plan.py leaves out what stays wide",
    "transformers:PreTrainedModel._keys_to_ignore_on_load_unexpected": "plan.py knows tensors that have no place",
    "transformers:PreTrainedModel._keep_in_fp32_modules_strict": "Mamba-2's scalars stay in float32",
    "transformers:PreTrainedModel._supports_sdpa": "our models offer it",
    "transformers:PreTrainedModel._is_stateful": "generation.py refuses assisted decoding with it",
    "transformers:Trainer._issue_warnings_after_load": "trainer.py says which missing keys matter",
    "transformers:PreTrainedConfig._attn_implementation": "our models ask which attention runs",
    "transformers:PreTrainedConfig._commit_hash": "fingerprint.py records which revision was damaged",
    "transformers:Trainer._remove_unused_columns": "trainer.py keeps the lengths of packed documents",
    "transformers:Trainer._get_train_sampler": "trainer.py repeats the order of batches by length on resume",
    "transformers:Trainer._load_best_model": "trainer.py lets the average be its own best, too",
    "transformers:Trainer._finalize_training": "safe_checkpoints.py ends a run without deleting what others wrote",
    "transformers:Trainer._save_optimizer_and_scheduler": "trainer.py adds the average of the weights",
    "transformers:Trainer._push_from_checkpoint": "safe_checkpoints.py pushes a checkpoint from its place",
    "peft.tuners.tuners_utils:BaseTuner._unload_and_optionally_merge": "adapters.py keeps ties through a merge",
    "peft.tuners.tuners_utils:BaseTuner._check_merge_allowed": "adapters.py refuses a merge into rounded weights",
    "peft.tuners.tuners_utils:BaseTuner.inject_adapter": "adapters.py leaves out what decides",
    "accelerate.state:PartialState._shared_state": "sharding.py says that processes on CPUs shard",
    "transformers:Trainer._get_num_items_in_batch": "trainer.py counts labels as the model's loss does",
    "transformers:Trainer._init_training_state": "trainer.py sees that a resumed run is over",
    "transformers:Trainer._load_optimizer_and_scheduler": "trainer.py lets changed settings count after a resume",
    "transformers:Trainer._save_checkpoint": "safe_checkpoints.py adds its record to a checkpoint",
    "transformers:Trainer._get_output_dir": "safe_checkpoints.py lets a checkpoint be written elsewhere",
    "transformers:Trainer._prepare_inputs": "trainer.py brings a batch to the model's device",
    "transformers:Trainer._save": "trainer.py writes what belongs into a checkpoint",
    "transformers:Trainer._loss_shifts_labels": "trainer.py smooths labels as the loss shifts them",
    "transformers:Trainer._tr_loss": "trainer.py reports the loss since the last row",
    "transformers:Trainer._globalstep_last_logged": "trainer.py reports the loss since the last row",
    "torch.nn:Module._replicate_for_data_parallel": "Infinito knows a replica by the mark it leaves",
    "torch:_foreach_norm": "gradients.py looks at all gradients in one pass",
    "torch:_foreach_mul_": "guard.py clips all gradients in one pass",
    "torch:_foreach_copy_": "rolling_copy.py copies all parameters in one pass",
    "transformers:AutoModelForImageTextToText._model_mapping": "model_checks.py tells kinds of models apart",
    "transformers:AutoModelForMaskedLM._model_mapping": "model_checks.py tells kinds of models apart",
    "transformers.generation:GenerationMixin._prepare_cache_for_generation": "generation.py brings our cache",
    "transformers.generation:GenerationMixin._prepare_generated_length": "generation.py lets a saved bound yield",
    "transformers.generation:GenerationMixin._expand_inputs_for_generation": "Infinito repeats its memory for beams",
    "transformers.cache_utils:Cache.is_croppable": "cache.py says what can be taken back",
    "transformers.cache_utils:Cache.activate_past_recording": "generate() calls it on our cache",
    "transformers.quantizers.base:HfQuantizer._process_model_before_weight_loading": "quantizer_ternary.py",
    "transformers.quantizers.base:HfQuantizer._process_model_after_weight_loading": "quantizer_ternary.py",
    "transformers.utils:ModelOutput.past_key_values": "outputs are still read under the old name",
    "evaluate:EvaluationModule._info": "our evaluate modules say what they take",
    "evaluate:EvaluationModule._compute": "our evaluate modules compute in it",
    "datasets:Dataset._fingerprint": "packing.py names prepared data by it",
    "argparse:ArgumentParser._actions": "cli.py and presets.py find a command's flags",
    "argparse:HelpFormatter._format_args": "presets.py writes the help of long lists",
    "torch:ops.mkldnn._reorder_linear_weight": "packed_linears.py keeps the layout of weights that steps multiply",
    "torch:ops.mkldnn._linear_pointwise": "packed_linears.py multiplies by weights laid out before",
    "torch:ops.mkldnn._is_mkldnn_bf16_supported": "packed_linears.py asks whether this processor can, in bfloat16",
    "torch:_int_mm": "bench_contestants.py measures torch's own int8 product",
    "torch.nn:Module._backward_hooks": "layer_calls.py calls a module where somebody listens",
    "torch.nn:Module._backward_pre_hooks": "layer_calls.py calls a module where somebody listens",
    "torch.nn:Module._forward_hooks": "layer_calls.py calls a module where somebody listens",
    "torch.nn:Module._forward_pre_hooks": "layer_calls.py calls a module where somebody listens",
    "torch.nn:Module._modules": "parameter_index.py looks into wrappers",
    "torch.nn:Module._parameters": "groups.py replaces a parameter in its place",
}
# attributes that objects get when they are made, which only their class's source shows
OF_INSTANCES = {
    "transformers:PreTrainedConfig._attn_implementation",
    "transformers:PreTrainedConfig._commit_hash",
    "transformers:Trainer._loss_shifts_labels",
    "transformers:Trainer._tr_loss",
    "transformers:Trainer._globalstep_last_logged",
    "datasets:Dataset._fingerprint",
    "argparse:ArgumentParser._actions",
    *(
        f"torch.nn:Module.{name}"
        for name in (
            "_backward_hooks",
            "_backward_pre_hooks",
            "_forward_hooks",
            "_forward_pre_hooks",
            "_modules",
            "_parameters",
        )
    ),
}


def broken(fact: str) -> str | None:
    """Return the sentence that says what is missing, or None."""
    module_name, _, path = fact.partition(":")
    library = module_name.partition(".")[0]
    try:
        found = importlib.import_module(module_name)
        *owners, last = path.split(".")
        for name in owners:
            found = getattr(found, name)
        if fact not in OF_INSTANCES:
            if not hasattr(found, last) and not owners:
                return importlib.import_module(f"{module_name}.{last}") and None  # a module of a package
            getattr(found, last)
        elif not re.search(rf"\b{last}\b", inspect.getsource(found)):
            raise AttributeError(last)
    except (ImportError, AttributeError) as error:
        cause = f" ({error})" if isinstance(error, ImportError) else ""
        return f"{library} {version_of(library)} has no {fact.replace(':', '.')}: {NEEDS[fact]}{cause}"
    return None


def version_of(library: str) -> str:
    return platform.python_version() if library in sys.stdlib_module_names else version(library)


@cache
def imported_facts() -> dict[str, str]:
    """Return every name our code imports from LIBRARIES, as facts, with the files that do so."""
    files: dict[str, list[str]] = {}
    for path in our_files():
        for fact in imports_of(path):
            files.setdefault(fact, []).append(path.relative_to(ROOT).as_posix())
    return {fact: f"imported by {', '.join(paths)}" for fact, paths in files.items()}


def our_files() -> list[Path]:
    return [ROOT / "app.py", *(path for part in PARTS for path in sorted((ROOT / part).rglob("*.py")))]


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module.partition(".")[0] in LIBRARIES:
            found |= {f"{node.module}:{alias.name}" for alias in node.names}
    return found


NEEDS = {**imported_facts(), **FACTS}

# what libraries warn of while they are imported is not our business
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("fact", sorted(NEEDS))
def test_a_name_we_use_is_there(fact):
    sentence = broken(fact)
    assert sentence is None, sentence


def test_a_rename_is_told_in_one_sentence(monkeypatch):
    fact = "transformers:Trainer._a_name_of_yesterday"
    monkeypatch.setitem(NEEDS, fact, "trainer.py repeats the order of batches by length on resume")
    assert broken(fact) == (
        f"transformers {version('transformers')} has no transformers.Trainer._a_name_of_yesterday: "
        "trainer.py repeats the order of batches by length on resume"
    )


# --- the table of private names is complete


def private_names(path: Path) -> tuple[set[str], set[str]]:
    """Return the private names that a file defines, and the private attributes that it reads."""
    defined, read = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            (read if isinstance(node.ctx, ast.Load) else defined).add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
    return tuple({name for name in names if re.match("_[a-z]", name)} for names in (defined, read))


def test_every_private_name_that_is_not_ours_is_a_fact():
    files = {path: private_names(path) for path in our_files()}
    ours = set().union(*(defined for defined, _ in files.values()))
    known = {fact.rpartition(".")[2].rpartition(":")[2] for fact in FACTS}
    foreign = {name: path.name for path, (_, read) in files.items() for name in read - ours - known}
    assert not foreign, f"private names of other libraries without a line in FACTS: {foreign}"


def our_classes() -> set[type]:
    found: set[type] = set()
    for package in ("modeling", "trainer_ext", "degradation"):
        folder = importlib.import_module(f"frankenlm.{package}")
        for module in pkgutil.walk_packages(folder.__path__, f"{folder.__name__}."):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and value.__module__.startswith("frankenlm."):
                    found.add(value)
    return found


def test_every_private_name_that_we_override_is_a_fact():
    known = {fact.rpartition(".")[2] for fact in FACTS}
    for each in our_classes():
        theirs = {
            name for base in each.__mro__ if base.__module__.partition(".")[0] in LIBRARIES for name in vars(base)
        }
        ours = {name for name in vars(each) if re.match("_[a-z]", name)} - {"_auto_class", "_abc_impl"}  # set for us
        assert not (ours & theirs) - known, f"{each.__name__} overrides {(ours & theirs) - known}: add lines to FACTS"
