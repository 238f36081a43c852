"""How good the matches of a validation are: by the protocols of `quadtree evaluate`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from ...evaluation.metrics import warp_points
from ...evaluation.predictions import Prediction
from ...evaluation.protocols import PROTOCOLS, judge_homography, judge_pose, pose_row_names
from ...evaluation.rows import Rows


class MatchingMetrics(nn.Module):
    """What is found in batches, judged pair by pair, and summed up over all devices."""

    def __init__(self) -> None:
        super().__init__()
        self.homographies = Rows(("corner_error", "right", "matches", "ms"))
        self.poses = Rows((*pose_row_names(("opencv",)), "ms"))

    def update(self, batch: dict[str, Any], found: dict[str, Tensor]) -> None:
        """Judge what `LoFTR.forward` has found in a batch, by the ``supervision`` of its samples."""
        points0, points1 = (found[key].double().cpu().numpy() for key in ("keypoints0", "keypoints1"))
        image = found["batch_indexes"].cpu().numpy()
        size = (int(batch["image0"].shape[-2]), int(batch["image0"].shape[-1]))
        for k in range(len(batch["image0"])):
            geometry = {
                name: value[k].double().cpu().numpy()
                for name, value in batch.items()
                if name in ("homography", "K0", "K1", "T_0to1", "to_stored0", "to_stored1")
            }
            mine = Prediction(points0[image == k], points1[image == k], np.zeros(0), 1.0, size, 0.0)
            if batch["supervision"][k] == "homography":
                self.homographies.update({**judge_homography(mine, geometry["homography"]), "ms": 0.0})
            else:
                self.poses.update({**_judged_pose(mine, geometry), "ms": 0.0})

    def compute(self) -> dict[str, float]:
        """Over all devices: areas under the curve of corner or pose errors, shares of right matches, and matches a pair."""
        values, rows = {}, []
        for protocol, prefix, metric in (("homography", "", self.homographies), ("pose", "pose_", self.poses)):
            if metric.update_called:
                mine = metric.compute()
                rows += mine
                for name, value in PROTOCOLS[protocol](mine).items():
                    if "@" in name:
                        values[prefix + name if name.startswith("auc") else name] = value
        return {**values, "matches": float(np.mean([row["matches"] for row in rows]))}

    def reset(self) -> None:
        """Forget all pairs."""
        self.homographies.reset()
        self.poses.reset()


def _judged_pose(found: Prediction, geometry: dict[str, np.ndarray]) -> dict[str, Any]:
    """In pixels of the images as stored, where these are known: RANSAC's threshold is in these, as published."""
    K0, K1, T_0to1 = (geometry[name] for name in ("K0", "K1", "T_0to1"))
    if "to_stored0" in geometry:
        to0, to1 = geometry["to_stored0"], geometry["to_stored1"]
        points0, points1 = warp_points(to0, found.keypoints0), warp_points(to1, found.keypoints1)
        found = replace(found, keypoints0=points0, keypoints1=points1)
        K0, K1 = to0 @ K0, to1 @ K1
    return judge_pose(found, K0, K1, T_0to1)
