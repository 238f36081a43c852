"""What tasks called their options before they had `Optimization`, and how their checkpoints are read: all that is known of former trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..models.classifier import level_weights

_RATES = {name: f"optimization.{name}" for name in ("learning_rate", "weight_decay", "betas")}
_STEPS = {"warmup_steps": "optimization.warmup_steps"}
_SCHEDULE = {name: f"optimization.{name}" for name in ("schedule", "milestones")}
_MATCHING = (
    "confidence_floor",
    "negative_weight",
    "coarse_weight",
    "fine_weight",
    "fine_matches",
    "fine_percent",
    "fine_truths",
)
_STEREO = ("response_weight", "raw_weight", "disparity_weight", "occlusion_weight", "fine_weight")
_SEGMENTER = ("neck_channels", "head_channels", "norm", "dropout")
NAMES = {  # task -> former name of an option -> today's
    "MatchingTask": {
        **_RATES,
        **_STEPS,
        **_SCHEDULE,
        **{name: f"optimization.{name}" for name in ("warmup_start", "decay", "canonical_batch")},
        "decay_vectors": "optimization.decayed",
        "coarse_loss": "loss.coarse",
        "coarse_pairs": "loss.pairs",
        "fine_loss": "loss.fine",
        **{name: f"loss.{name}" for name in _MATCHING},
    },
    "StereoTask": {**_RATES, **_STEPS, **{name: f"loss.{name}" for name in _STEREO}},
    "ClassificationTask": {
        **_RATES,
        "model": "preset",
        "min_rate": "optimization.end",
        "warmup_rate": "optimization.warmup_start",
        "warmup_epochs": "optimization.warmup_epochs",
        "level_rate": "optimization.level_rate",
    },
    "DetectionTask": {
        **_RATES,
        **_STEPS,
        **_SCHEDULE,
        "decay_norms": "optimization.decayed",
        "detector": "preset",
        "init_backbone": "init_from",
    },
    "SegmentationTask": {
        **_RATES,
        **_STEPS,
        "backbone": "preset",
        **{name: f"options.{name}" for name in _SEGMENTER},
        **{name: f"optimization.{name}" for name in ("head_rate", "level_rate", "power")},
        "warmup_rate": "optimization.warmup_start",
    },
}
_ALWAYS: dict[str, dict[str, Any]] = {  # what a task did without an option for it
    "StereoTask": {"warmup_start": 0.0},
    "DetectionTask": {"warmup_start": 0.001, "end": 0.01, "decay": 0.1},
    "SegmentationTask": {"schedule": "polynomial", "decayed": "all_but_norms"},
}


def name_today(task: str, name: str) -> str | None:
    """What a former option of a task, the name of its class, is called today; None if there was none of that name."""
    return NAMES.get(task, {}).get(name)


def options_today(task: str, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The options in a checkpoint of a task, under their names of today."""
    if task not in NAMES or "optimization" in saved:
        return dict(saved)
    told: dict[str, Any] = {}
    for name, value in saved.items():
        if name in ("decay_vectors", "decay_norms"):
            value = "all" if value else "matrices"
        elif name == "schedule" and value == "step":
            value = "multistep"
        elif task == "ClassificationTask" and name in ("min_rate", "warmup_rate"):
            value = value / saved["learning_rate"]
        elif task == "SegmentationTask" and name == "options":
            name = "options.options"
            value = value or {}
        section, _, option = NAMES[task].get(name, name).rpartition(".")
        if section:
            told.setdefault(section, {})[option] = value
        else:
            told[option] = value
    told["optimization"] = {**_ALWAYS.get(task, {}), **told.get("optimization", {})}
    return told


def translated_optimizer(
    checkpoint: dict[str, Any], task: str, network: nn.Module, groups: Sequence[Mapping[str, Any]]
) -> None:
    """Put the optimizer's state in a checkpoint into the order of ``groups``, if it says no names of parameters.

    Args:
        task: the name of its class.
        groups: as of `optimization.parameter_groups`.
    """
    states = checkpoint.get("optimizer_states") or []
    if len(states) != 1 or any("param_names" in group for group in states[0]["param_groups"]):
        return
    former = [names for names in _former_groups(task, network, groups) if names]
    (state,) = states
    if [len(names) for names in former] != [len(group["params"]) for group in state["param_groups"]]:
        return  # of another network, which is said elsewhere
    place = {name: n for n, names in enumerate(former) for name in names}  # the former group
    number = {
        name: index
        for names, group in zip(former, state["param_groups"], strict=True)
        for name, index in zip(names, group["params"], strict=True)
    }
    moments: dict[int, Any] = {}
    made: list[dict[str, Any]] = []
    count = 0
    for group in groups:
        names = [name for name, _ in group["params"]]
        indexes = list(range(count, count + len(names)))
        count += len(names)
        moments |= {
            n: state["state"][number[name]]
            for n, name in zip(indexes, names, strict=True)
            if number[name] in state["state"]
        }
        made.append({**state["param_groups"][place[names[0]]], "params": indexes, "param_names": names})
    checkpoint["optimizer_states"] = [{"state": moments, "param_groups": made}]
    for schedule in checkpoint.get("lr_schedulers", []):
        for name in ("base_lrs", "_last_lr"):
            schedule[name] = [schedule[name][place[group["param_names"][0]]] for group in made]


def _former_groups(task: str, network: nn.Module, groups: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Names of the parameters in each group that the optimizer of a task had."""
    if task == "SegmentationTask" or (task == "DetectionTask" and len(groups) == 1):
        return [[name for name, _ in group["params"]] for group in groups]
    learnt = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    levels = {id(p) for p in level_weights(network)} if task == "ClassificationTask" else set()
    return [
        [name for name, p in learnt if p.dim() > 1 and id(p) not in levels],
        [name for name, p in learnt if p.dim() <= 1 and id(p) not in levels],
        [name for name, p in learnt if id(p) in levels],
    ]
