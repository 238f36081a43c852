"""Renames the weights of published checkpoints.

Each family of checkpoints is a table of rules. A family is chosen if every key of the checkpoint matches one of its rules. A
new family is one more table in `FAMILIES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import InputError
from .checkpoint import weights_in


@dataclass(frozen=True)
class Rule:
    """Maps one published name, or several of a kind, to ours.

    pattern: regular expression of the whole published key.
    name: our key, a template of the pattern's groups; None drops the key.
    change: what happens to the tensor.
    """

    pattern: str
    name: str | None
    change: Callable[[Tensor], Tensor] = lambda tensor: tensor

    def under(self, published: str, ours: str) -> Rule:
        """The rule for the same module inside another: a pattern and a template that go in front of its names."""
        return Rule(published + self.pattern, None if self.name is None else ours + self.name, self.change)


def _linear(weight: Tensor) -> Tensor:
    """The weight of a 1x1 convolution ``[out, in, 1, 1]`` as that of a linear layer."""
    return weight.flatten(1) if weight.dim() == 4 else weight


_WB = r"\.(?P<end>weight|bias)"
_BN = r"\.(?P<end>weight|bias|running_mean|running_var|num_batches_tracked)"
_LAYER, _OUR_LAYER = r"layers\.(?P<layer>\d+)\.", r"layers.\g<layer>."

OPERATOR = (
    Rule(r"weight", "level_weights"),
    Rule(r"get_vs\.(?P<level>\d+)" + _WB, r"lepe.\g<level>.\g<end>"),
)
ATTENTION = (
    Rule(r"(?P<name>[qkv]_proj)\.weight", r"\g<name>.weight", _linear),
    Rule(r"(?P<name>[qkv]_proj)\.bias", r"\g<name>.bias"),
    Rule(r"proj" + _WB, r"proj.\g<end>"),
    Rule(r"value_branchs\.(?P<branch>\d+)\.(?P<place>[0235])" + _WB, r"value_branches.\g<branch>.\g<place>.\g<end>"),
    *(rule.under(r"py_att\.", "") for rule in OPERATOR),
)
TRANSFORMER = (
    # blocks of the released quadtree model
    Rule(_LAYER + r"(?P<name>norm1|norm2|mlp\.fc1|mlp\.fc2)" + _WB, _OUR_LAYER + r"\g<name>.\g<end>"),
    Rule(_LAYER + r"mlp\.dwconv\.dwconv" + _WB, _OUR_LAYER + r"mlp.dwconv.\g<end>"),
    *(rule.under(_LAYER + r"attn\.", _OUR_LAYER + "attn.") for rule in ATTENTION),
    # LoFTR's own blocks
    Rule(_LAYER + r"(?P<name>[qkv]_proj)\.weight", _OUR_LAYER + r"attn.\g<name>.weight"),
    Rule(_LAYER + r"merge\.weight", _OUR_LAYER + "attn.proj.weight"),
    Rule(_LAYER + r"mlp\.(?P<place>[02])\.weight", _OUR_LAYER + r"mlp.\g<place>.weight"),
)
LOFTR = (
    Rule(r"backbone\.conv1\.weight", "backbone.conv1.weight"),
    Rule(r"backbone\.bn1" + _BN, r"backbone.bn1.\g<end>"),
    Rule(r"backbone\.(?P<block>layer[123]\.\d+\.conv[12])\.weight", r"backbone.\g<block>.weight"),
    Rule(r"backbone\.(?P<block>layer[123]\.\d+\.bn[12])" + _BN, r"backbone.\g<block>.\g<end>"),
    Rule(r"backbone\.(?P<block>layer[123]\.\d+\.downsample\.0)\.weight", r"backbone.\g<block>.weight"),
    Rule(r"backbone\.(?P<block>layer[123]\.\d+\.downsample\.1)" + _BN, r"backbone.\g<block>.\g<end>"),
    Rule(r"backbone\.layer(?P<stage>[123])_outconv\.weight", r"backbone.lateral\g<stage>.weight"),
    Rule(
        r"backbone\.layer(?P<stage>[12])_outconv2\.(?P<place>[03])\.weight",
        r"backbone.smooth\g<stage>.\g<place>.weight",
    ),
    Rule(r"backbone\.layer(?P<stage>[12])_outconv2\.1" + _BN, r"backbone.smooth\g<stage>.1.\g<end>"),
    Rule(r"pos_encoding\.pe", None),  # computed here
    Rule(r"coarse_matching\.bin_score", "bin_score"),  # of optimal transport
    *(rule.under(r"loftr_coarse\.", "coarse.") for rule in TRANSFORMER),
    Rule(r"fine_preprocess\.down_proj" + _WB, r"windows.down_proj.\g<end>"),
    Rule(r"fine_preprocess\.merge_feat" + _WB, r"windows.merge.\g<end>"),
    *(rule.under(r"loftr_fine\.", "fine.") for rule in TRANSFORMER),
)


def _pvt_stage(stage: int) -> tuple[Rule, ...]:
    """One stage of the backbones, counted from 1 as published."""
    ours = f"stages.{stage - 1}"
    embed = "patch_embed" if stage == 1 else f"{ours}.downsample"
    block, our_block = rf"block{stage}\.(?P<block>\d+)\.", rf"{ours}.blocks.\g<block>."
    return (
        Rule(rf"patch_embed{stage}\.(?P<name>proj|norm)" + _WB, embed + r".\g<name>.\g<end>"),
        Rule(block + r"(?P<name>norm1|norm2|mlp\.fc1|mlp\.fc2)" + _WB, our_block + r"\g<name>.\g<end>"),
        Rule(block + r"mlp\.dwconv\.dwconv" + _WB, our_block + r"mlp.dwconv.\g<end>"),
        *(rule.under(block + r"attn\.", our_block + "attn.") for rule in ATTENTION),
        Rule(rf"norm{stage}" + _WB, ours + r".norm.\g<end>"),
    )


BACKBONE = tuple(rule for stage in (1, 2, 3, 4) for rule in _pvt_stage(stage))
CLASSIFIER = (*BACKBONE, Rule(r"head" + _WB, r"head.\g<end>"))
DETECTOR = (  # mmdetection's and mmsegmentation's, of which this package has the backbone
    *(rule.under(r"backbone\.", "") for rule in BACKBONE),
    Rule(r"(neck|rpn_head|bbox_head|roi_head|decode_head|auxiliary_head)\..*", None),
)
FAMILIES = (LOFTR, TRANSFORMER, ATTENTION, OPERATOR, CLASSIFIER, DETECTOR)

PREFIX = "matcher."  # of the matcher in its training module
BRANCH = re.compile(r"(.*\bvalue_branches\.)(\d+)(\..*)")


def convert_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename published weights to our names.

    Takes the state_dict of a whole LoFTR, with quadtree or with LoFTR's own linear attention, of its
    `LocalFeatureTransformer` alone, of a single attention module, or of the operator `QTAttB` alone; also a Lightning
    checkpoint that has one under "state_dict", with keys that begin with "matcher."; and that of a classifier, or of a
    detector or segmenter, of which only the backbone is taken. The result fits `LoFTR`, its `FeatureTransformer`,
    `QuadtreeAttention`, the part of the latter that the operator has parameters for, or `QuadtreeTransformer`.

    Args:
        state_dict: keys as published; not changed.

    Returns:
        dict of our keys; tensors share memory with the given ones.

    Raises:
        ValueError: keys that no family of checkpoints has; the message names the first few.
    """
    state = _weights(state_dict)
    unknown_of_family = []
    for family in FAMILIES:
        matched, unknown = _matched(family, state)
        if family in (CLASSIFIER, DETECTOR) and not any("block" in key for key in matched):
            unknown = list(state)  # heads alone are too common to identify a checkpoint
        if not unknown:
            return _renamed(state, matched)
        unknown_of_family.append(unknown)
    raise _unknown(
        min(unknown_of_family, key=len), "a published LoFTR, transformer, attention module, classifier or detector"
    )


def convert_by(family: Sequence[Rule], state_dict: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Rename by the rules of one family alone; ``what`` names it in errors. See `convert_published`.

    Raises:
        ValueError: keys that match none of its rules.
    """
    state = _weights(state_dict)
    matched, unknown = _matched(family, state)
    if unknown:
        raise _unknown(unknown, what)
    return _renamed(state, matched)


def _unknown(keys: Sequence[str], what: str) -> InputError:
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return InputError(f"unknown keys: {', '.join(keys[:5])}{more}; expected the names of {what}")


def _weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    inner = weights_in(state_dict)
    state = {key.removeprefix(PREFIX): value for key, value in inner.items()}
    if len(state) < len(inner):
        raise InputError(f"some keys occur both with and without {PREFIX!r}, expected one set of weights")
    return state


def _matched(family: Sequence[Rule], keys: Iterable[str]) -> tuple[dict[str, tuple[re.Match[str], Rule]], list[str]]:
    """The rule of each key, and the keys that have none."""
    rules = [(re.compile(rule.pattern), rule) for rule in family]
    matched: dict[str, tuple[re.Match[str], Rule]] = {}
    unknown = []
    for key in keys:
        for pattern, rule in rules:
            if match := pattern.fullmatch(key):
                matched[key] = (match, rule)
                break
        else:
            unknown.append(key)
    return matched, unknown


def _renamed(state: Mapping[str, Tensor], matched: Mapping[str, tuple[re.Match[str], Rule]]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for key, (match, rule) in matched.items():
        if rule.name is None:
            continue
        if not isinstance(state[key], Tensor):
            raise InputError(f"{key} holds a {type(state[key]).__name__}, expected a tensor")
        if not state[key].dim() and not key.endswith(("num_batches_tracked", "bin_score")):
            raise InputError(f"{key} holds a single number, expected weights")
        out[match.expand(rule.name)] = rule.change(state[key])
    return _branches_coarse_to_fine(out)


def _branches_coarse_to_fine(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Reverse the value branches: the published list begins with the finest, ours with the coarsest."""
    last: dict[str, int] = {}
    for key in state:
        if match := BRANCH.fullmatch(key):
            last[match[1]] = max(last.get(match[1], 0), int(match[2]))

    def turned(key: str) -> str:
        match = BRANCH.fullmatch(key)
        return f"{match[1]}{last[match[1]] - int(match[2])}{match[3]}" if match else key

    return {turned(key): value for key, value in state.items()}
