"""Reads a COLMAP model with pycolmap and writes the parts that are needed. It is a separate program, which `read_model` runs.

pycolmap trusts the contents of a model: wrong numbers in a damaged one can hang it or crash the process. Here this happens only to this program,
whose memory and time are limited by the size of the files. It imports nothing from the package, to start fast.

    python colmap_model.py FOLDER BYTES        pickles to stdout; exit status 3 and a line on stderr for what is no model
"""

from __future__ import annotations

import pickle
import sys
from typing import Any

# What pycolmap raises for contents that make no sense. Anything else, such as a name that a version of it lacks, is a bug.
_DAMAGED = (ValueError, RuntimeError, OSError, IndexError, KeyError, MemoryError, OverflowError)


def main() -> int:
    folder, memory = sys.argv[1], int(sys.argv[2])
    import numpy as np
    import pycolmap

    pycolmap.logging.minloglevel = pycolmap.logging.Level.FATAL.value
    bound_memory(memory)
    try:
        model = pycolmap.Reconstruction(folder)
        points = {number: point.xyz for number, point in model.points3D.items()}
        content: dict[str, Any] = {
            "cameras": {
                number: (camera.model_name, camera.width, camera.height, camera.calibration_matrix())
                for number, camera in model.cameras.items()
                if camera.model_name in ("PINHOLE", "SIMPLE_PINHOLE")  # others have no matrix
            },
            "models": {number: camera.model_name for number, camera in model.cameras.items()},
            "ids": np.fromiter(points, np.uint64, len(points)),
            "points": np.array(list(points.values()), np.float64).reshape(-1, 3),
            "images": [
                (
                    image.name,
                    image.camera_id,
                    image.cam_from_world().matrix(),
                    np.array([point.point3D_id for point in image.get_observation_points2D()], np.uint64),
                )
                for _, image in sorted(model.images.items())
                if image.has_pose
            ],
        }
    except _DAMAGED as error:
        print(" ".join(str(error).split()) or type(error).__name__, file=sys.stderr)
        return 3
    pickle.dump(content, sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)
    return 0


def bound_memory(count: int) -> None:
    """Limit the memory that this process can allocate from now on, where the system supports that."""
    try:
        import resource
        from pathlib import Path

        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + count, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, OSError, ValueError):
        pass


if __name__ == "__main__":
    sys.exit(main())
