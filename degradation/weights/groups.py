"""Parameter groups: which weights a lesion touches, found by full match on canonical names and checked.

    group = select_group(model, "attn_only@first25%+mlp_down")
    for target in group.targets:
        target.select(target.parameter).zero_()

The groups are GROUPS; README.md says what each means. A suffix takes layers: `@L0-5`, `@L3,7`, `@first25%`,
`@last25%`, `@every6+5` (every sixth from layer 5 on), `@2of4` (the second of four windows). `mlp_experts#0,3` takes
experts by their numbers. `a+b` is a union, its parts disjoint. Which names belong to a group is said by the model's
class (`degradation_groups`, group -> patterns), else by the table of families.py for its `model_type`, else by the
usual names of children; mixers with a state or a convolution are found from the modules (mixers.py). Where the layout
is guessed or layers are of several kinds, those that lack a group are left out, and `describe_groups` lists them. Each
storage is there once.
"""

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable

from torch import nn

from frankenlm.modeling.packed_model import output_layer
from frankenlm.trainer_ext.common.checks import check_choice, suggest

from ..layouts.cuts import Heads, Pick
from ..layouts.families import EVERYWHERE, FAMILIES, STRUCTURAL, Family
from ..layouts.heads import latent_heads
from ..layouts.wholeness import PROMISED, Missing, Weight, missing_parts
from .attention_heads import HEADED, HeadFinder
from .experts import keep_experts
from .layer_subsets import layer_ranges, parse_layers
from .mixers import MIXER_GROUPS, STATE_NORM, has_keys, mixer_picks, mixer_roots, root_of
from .norm_gains import gain_offset
from .parameter_index import Entry, canonical_name, index_parameters, logical_shape, unwrap
from .targets import Group, Target
from .tied import is_tied, offloaded_twice, path_of

COMPOSITES = {
    "attn_qkvo": ("attn_q", "attn_k", "attn_only", "attn_o", "attn_latent"),
    "mlp_only": ("mlp_gate", "mlp_up", "mlp_down"),
    "mixer": MIXER_GROUPS,
}
GROUPS = (
    "attn_only", "attn_q", "attn_k", "attn_o", "attn_latent", "attn_qkvo", "mlp_only", "mlp_gate", "mlp_up", "mlp_down",
    "mlp_experts", "router", "embed_only", "lm_head", "norm", "bias", "vision_attn", "vision_mlp", "projector",
    "mixer", *MIXER_GROUPS, STATE_NORM, "memory", "memory_read", "memory_write",
)  # fmt: skip
NORMS = ("norm", STATE_NORM)
ALIASES = {"vision": "vision_attn"}  # attn_only+vision: what a rule by name endings hits in a multimodal model
TIED_POLICIES = ("both", "input_only", "output_only")

# Groups that have a part in every layer of the modality.
LAYERED = frozenset(
    {"attn_only", "attn_q", "attn_k", "attn_o", "mlp_gate", "mlp_up", "mlp_down", "vision_attn", "vision_mlp"}
)


class NothingThere(ValueError):
    """The model has the group, but not in the layers that are asked for."""


def select_group(model: nn.Module, group: str, *, tied_policy: str = "both", norm_gain: bool = True) -> Group:
    """Return the weights of a group, in the model's order.

    Works on the meta device, on wrapped and compiled models, and where linear layers are held in 4 bits.

    Args:
        group: name, with layers, as a union; see the module.
        tied_policy: which side of tied embeddings embed_only and lm_head mean; anything but "both" asks for `untie`.
        norm_gain: group norm: targets of norms that scale by 1 + w say so in `gain_offset`.

    Raises:
        ValueError: unknown group or layers, nothing matches, a layer is missed, sizes that disagree with the
            configuration, parts that overlap, or packed weights. The message names what was near.
    """
    check_choice("tied_policy", tied_policy, TIED_POLICIES)
    finder = _GroupFinder(model, tied_policy, norm_gain)
    targets: list[Target] = []
    for part in re.split(r"\+(?!\d)", group):
        name, at, layers = part.partition("@")
        name, number, experts = name.partition("#")
        found = finder.find(ALIASES.get(name, name))
        if number:
            found = keep_experts(found, part.partition("@")[0], experts)
        targets += _keep_layers(found, part, layers, finder) if at else found
    _check_disjoint(group, targets)
    targets.sort(key=lambda target: (finder.order[target.name], target.slice.start if target.slice else 0))
    return Group(group, tuple(targets), needs_untie=any(target.name in finder.untied for target in targets))


def describe_groups(model: nn.Module) -> list[dict]:
    """Return a line for every group that the model has, as the command groups shows it.

    Returns:
        {group, tensors, elements, share, layers, without}; share of all the model's elements; layers: those it lies
        in, `-` where it lies in none; without: the other layers of the same part (text, vision), which it leaves out.
    """
    finder = _GroupFinder(model, "both", norm_gain=False)
    total = sum(math.prod(entry.shape) for entry in finder.entries)
    rows = []
    for name in finder.available():
        group = Group(name, tuple(finder.find(name)))
        there = {target.layer for target in group.targets} - {None}
        missed = set(finder.layers(group.targets[0].canonical.partition("/")[0])) - there if there else set()
        rows.append(
            {
                "group": name,
                "tensors": group.tensors,
                "elements": group.numel,
                "share": group.numel / total,
                "layers": layer_ranges(there),
                "without": layer_ranges(missed),
            }
        )
    return rows


def ungrouped(model: nn.Module) -> list[dict]:
    """Return {parameter, tensors, elements} for each kind of parameter that no group holds; * stands for numbers."""
    finder = _GroupFinder(model, "both", norm_gain=False)
    held = finder.held()
    kinds: dict[str, list[int]] = {}
    for entry in finder.entries:
        if entry.name not in held:
            kinds.setdefault(_numberless(entry.canonical), []).append(math.prod(entry.shape))
    return [{"parameter": name, "tensors": len(sizes), "elements": sum(sizes)} for name, sizes in kinds.items()]


def refused_groups(model: nn.Module) -> list[dict]:
    """Return {group, known, missing, perhaps_in} for each composite that lacks a part of a layer, and is refused."""
    finder = _GroupFinder(model, "both", norm_gain=False)
    found = [(name, finder.missing(name)) for name in PROMISED]
    return [
        {
            "group": name,
            "known": " ".join(part for part in COMPOSITES[name] if part in finder.available()),
            "missing": " ".join(missing.parts),
            "perhaps_in": " ".join(dict.fromkeys(_numberless(each) for each in missing.beside)),
        }
        for name, missing in found
        if missing is not None
    ]


def _numberless(canonical: str) -> str:
    return re.sub(r"\.\d+(?=\.)", ".*", canonical)


class _GroupFinder:
    """Looks up one group after the other in one model."""

    def __init__(self, model: nn.Module, tied_policy: str, norm_gain: bool):
        self.model, self.policy, self.norm_gain = unwrap(model), tied_policy, norm_gain
        twice = offloaded_twice(self.model)
        self.entries = [entry for entry in index_parameters(self.model) if entry.name not in twice]
        self.order = {entry.name: index for index, entry in enumerate(self.entries)}
        self.config = self.model.config.get_text_config()
        # fields that some families have and others do not
        self.fields = self.config.to_dict()
        self.mixers = mixer_roots(self.model, self.entries)
        self.family, self.table = self._table()
        self.heads = HeadFinder(self.model, self.family, self.mixers)
        self.untied: set[str] = set()
        self.matched: dict[tuple[bool, Pick], list[Entry]] = {}
        self.not_whole: dict[str, Missing | None] = {}
        self._check_number_of_layers()

    def _table(self) -> tuple[Family | None, dict[str, tuple[Pick, ...]]]:
        declared = getattr(type(self.model), "degradation_groups", None)
        common = EVERYWHERE | mixer_picks(self.entries, self.mixers)
        if declared is not None:
            picks = {group: tuple(Pick(pattern) for pattern in patterns) for group, patterns in declared.items()}
            return None, common | picks
        family = FAMILIES.get(self.config.model_type, STRUCTURAL)
        return family, common | dict(family.groups)

    def layers(self, modality: str) -> list[int]:
        """Return the indices of the layers that have parameters of their own."""
        found = {entry.layer for entry in self.entries if entry.modality == modality}
        return sorted(found - {None})

    def _check_number_of_layers(self) -> None:
        found, said = len(self.layers("text")), self.fields.get("num_hidden_layers", 0)
        if found and said % found:
            raise ValueError(f"num_hidden_layers={said}, but {found} layers with parameters were found in the model.")

    def known(self) -> list[str]:
        """Return the names of all groups there are, and of those that the model's class adds."""
        return [*GROUPS, *(name for name in self.table if name not in GROUPS)]

    def available(self) -> list[str]:
        """Return the names of the groups that the model has, whole."""
        return [name for name in self.known() if self._is_there(name) and self.missing(name) is None]

    def _is_there(self, name: str) -> bool:
        if name in COMPOSITES and name not in self.table:
            return any(self._is_there(part) for part in COMPOSITES[name])
        return any(self._matches(name, pick) for pick in self._picks(name))

    def missing(self, name: str) -> Missing | None:
        """Return what a composite lacks, for which it is refused; None where it is whole or its layout is known."""
        if name not in PROMISED or name in self.table or self.family is None or self.family.everywhere:
            return None
        if name not in self.not_whole:
            members = [(part, target) for part in COMPOSITES[name] for target in self._targets(part)]
            held = self.held()
            self.not_whole[name] = missing_parts(
                name,
                [Weight(target.canonical, target.shape, part) for part, target in members],
                [Weight(entry.canonical, entry.shape) for entry in self.entries if entry.name not in held],
            )
        return self.not_whole[name]

    def held(self) -> set[str]:
        """Return the names of all parameters that are in a group."""
        tied = {self._tied_target("embed_only").name} if self._is_tied() and self._is_there("embed_only") else set()
        return tied | {target.name for name in self.table for target in self._targets(name)}

    def _picks(self, name: str) -> Iterable[Pick]:
        if name in COMPOSITES and name not in self.table:
            return [pick for part in COMPOSITES[name] for pick in self.table.get(part, ())]
        return self.table.get(name, ())

    def _matches(self, group: str, pick: Pick) -> list[Entry]:
        key = (group == "attn_o", pick)
        if key not in self.matched:
            self.matched[key] = self._match(group, pick)
        return self.matched[key]

    def _match(self, group: str, pick: Pick) -> list[Entry]:
        pattern = re.compile(pick.pattern)
        found = [entry for entry in self.entries if pattern.fullmatch(entry.canonical)]
        if pick.stacked:
            found = [entry for entry in found if len(entry.shape) == 3]
        if pick.holds == "kv":
            found = [entry for entry in found if latent_heads(self.model, entry.name)]
        if group == "attn_o" and self.family is STRUCTURAL:
            # what a recurrence without keys puts out, in modules called attention too (Qwen3-Next's linear_attn)
            found = [entry for entry in found if self._has_keys_if_mixer(entry)]
        return found

    def _has_keys_if_mixer(self, entry: Entry) -> bool:
        root = root_of(entry, self.mixers)
        return root is None or has_keys(self.model, root)

    def _targets(self, name: str) -> list[Target]:
        """Return the targets of a group that is no composite, unchecked."""
        return [self._target(name, pick, entry) for pick in self._picks(name) for entry in self._matches(name, pick)]

    def find(self, name: str) -> list[Target]:
        """Return the targets of one group without suffix, checked against the layers and heads of the model."""
        check_choice("group", name, [*self.known(), *ALIASES])
        if name in COMPOSITES and name not in self.table:
            parts = [part for part in COMPOSITES[name] if self._is_there(part)]
            if not parts:
                self._nothing(name)
            missing = self.missing(name)
            if missing is not None:
                raise ValueError(missing.why(name, parts))
            return [target for part in parts for target in self.find(part)]
        if name in ("embed_only", "lm_head") and self._is_tied():
            return [self._tied_target(name)]
        if name == "embed_only" and self.policy == "output_only":
            raise ValueError("tied_policy='output_only': this model's embeddings are not tied; use group lm_head.")
        targets = self._targets(name)
        if not targets:
            self._nothing(name)
        if name in LAYERED and (self.family is not None or name.startswith("vision")):
            self._check_layers(name, targets)
        return targets

    def _nothing(self, name: str) -> None:
        wanted = " ".join(re.sub(r"\\d\+", "0", pick.pattern).replace("\\", "") for pick in self._picks(name)) or name
        # one example of each kind of parameter
        kinds = {re.sub(r"\.\d+\.", ".0.", entry.canonical): entry.canonical for entry in reversed(self.entries)}
        near = difflib.get_close_matches(wanted, list(kinds), n=3, cutoff=0.0)
        raise ValueError(
            f"group {name!r} matches no parameter of this model ({self.config.model_type}). Nearest parameters: "
            f"{', '.join(kinds[kind] for kind in near)}. Groups it has: {', '.join(self.available())}."
            f"{suggest(name, self.available())}"
        )

    def _check_layers(self, name: str, targets: list[Target]) -> None:
        layers = self.layers("vision" if name.startswith("vision") else "text")
        hits = Counter(target.layer for target in targets)
        shared = 0
        if self.family is not None and self.family.shared_kv and name in ("attn_k", "attn_only"):
            shared = self.fields[self.family.shared_kv]
        expected = layers[: len(layers) - shared]
        if self.family is not None and not self.family.everywhere:
            # of a guessed layout it is not known which layers are of which kind: hybrids mix attention with recurrences
            expected = [layer for layer in layers if hits[layer]]
        exact = name.startswith("vision") or (
            self.family is not None and self.family.uniform and self.family.everywhere
        )
        per_layer = len(self.table[name]) if exact else 1
        wrong = [layer for layer in expected if (hits[layer] != per_layer if exact else not hits[layer])]
        if wrong or len(hits) != len(expected):
            where = wrong or sorted(hits.keys() - set(expected))
            raise ValueError(
                f"group {name!r}: {len(targets)} parameters in {len(hits)} layers, where {per_layer} in each of "
                f"{len(expected)} layers was expected; layer {where[0]} differs."
            )

    # --- one target

    def _target(self, group: str, pick: Pick, entry: Entry) -> Target:
        heads = self.heads.of(group, pick, entry)
        cut = pick.cut(entry.shape, heads) if pick.cut else None
        if cut is not None and math.prod(cut.view_shape) != math.prod(entry.shape):
            raise ValueError(f"{entry.canonical}: shape {entry.shape} does not hold the heads {heads}.")
        # a Conv1D of transformers is the one linear layer whose weight is (inputs, outputs)
        transposed = type(entry.module).__name__ == "Conv1D"
        # q, k and v have heads along their outputs, o along its inputs
        head_axis = int((group == "attn_o") != transposed)
        has_heads = heads is not None and group in HEADED
        if has_heads:
            self._check_heads(group, pick, entry, heads, head_axis)
        return Target(
            entry.name,
            entry.canonical,
            self.model,
            entry.shape,
            cut.numel if cut else math.prod(entry.shape),
            slice=cut,
            part=pick.part,
            group=group,
            layer=entry.layer,
            transposed=transposed,
            head_dim=pick.head_width(heads) if has_heads else None,
            head_axis=head_axis if has_heads else None,
            gain_offset=gain_offset(entry.module) if group in NORMS and self.norm_gain else 0.0,
        )

    def _check_heads(self, group: str, pick: Pick, entry: Entry, heads: Heads, head_axis: int) -> None:
        size = entry.shape[head_axis]
        expected = sum(heads.rows(each) for each in (pick.holds if pick.cut else HEADED[group]))
        if size != expected:
            raise ValueError(
                f"{entry.canonical}: {size} of shape {entry.shape} should be {expected}, for the {heads.query} heads, "
                f"{heads.key_value} of them for keys and values, of width {heads.width} that the configuration names."
            )

    # --- tied embeddings

    def _is_tied(self) -> bool:
        return is_tied(self.model)

    def _tied_target(self, group: str) -> Target:
        if group == "lm_head" and self.policy != "output_only":
            raise ValueError(
                f"group 'lm_head', tied_policy={self.policy!r}: the head shares its weights with the token table. "
                "Use group embed_only, or tied_policy='output_only'."
            )
        of_output = self.policy == "output_only"
        module = output_layer(self.model) if of_output else self.model.get_input_embeddings()
        name = path_of(self.model, module)
        self.order.setdefault(name, len(self.order))
        if self.policy != "both":
            self.untied.add(name)
        shape = logical_shape(module, "weight")
        return Target(name, canonical_name(name), self.model, shape, math.prod(shape), group=group)


def _keep_layers(targets: list[Target], part: str, spec: str, finder: _GroupFinder) -> list[Target]:
    modality = targets[0].canonical.partition("/")[0]
    layers = finder.layers(modality)
    if not any(target.layer is not None for target in targets):
        raise ValueError(f"group {part!r}: {part.partition('@')[0]} does not lie in layers; leave out '@{spec}'.")
    wanted = parse_layers(spec, layers)
    kept = [target for target in targets if target.layer in wanted]
    if not kept:
        raise NothingThere(f"group {part!r}: nothing of it lies in these layers.")
    return kept


def _check_disjoint(group: str, targets: list[Target]) -> None:
    """Raise ValueError if an element belongs to two targets."""
    by_name: dict[str, list[Target]] = {}
    for target in targets:
        by_name.setdefault(target.name, []).append(target)
    for same in by_name.values():
        runs = sorted(run for target in same for run in target.runs()) if len(same) > 1 else []
        if any(start + length > after for (start, length), (after, _) in zip(runs, runs[1:], strict=False)):
            raise ValueError(f"group {group!r}: its parts overlap in {same[0].canonical}; name each weight once.")
