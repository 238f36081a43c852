"""Cameras and points of folders of photographs, by COLMAP: what `ColmapData` trains matchers on.

    python recipes/reconstruct_scenes.py SCENES OUT [NAME ...]

SCENES holds a folder of photographs for each scene. OUT/NAME is then a model without distortion, as `colmap image_undistorter` makes it: images/
and sparse/. Scenes that have one already are left as they are, so that a run that was cut off goes on. COLMAP's own SIFT, matched exhaustively and
verified, is what it rests on; of several models of a scene the one with the most images is kept.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pycolmap
from PIL import Image

FEATURES = 3000
SUFFIXES = {".jpg", ".jpeg", ".png"}


def reconstruct(photos: Path, out: Path, threads: int) -> str:
    """One scene; returns what became of it."""
    work = out.with_name(out.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    names = sorted(path.name for path in photos.iterdir() if path.suffix.lower() in SUFFIXES)
    sizes = set()
    for name in names:
        with Image.open(photos / name) as image:
            sizes.add(image.size)
    mode = pycolmap.CameraMode.SINGLE if len(sizes) == 1 else pycolmap.CameraMode.PER_IMAGE
    database = work / "database.db"
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.num_threads, extraction.sift.max_num_features = threads, FEATURES
    pycolmap.extract_features(
        database, photos, image_names=names, camera_mode=mode, extraction_options=extraction, device=pycolmap.Device.cpu
    )
    matching = pycolmap.FeatureMatchingOptions()
    matching.num_threads = threads
    pycolmap.match_exhaustive(database, matching_options=matching, device=pycolmap.Device.cpu)
    mapping = pycolmap.IncrementalPipelineOptions()
    mapping.num_threads, mapping.min_model_size = threads, 3
    models = pycolmap.incremental_mapping(database, photos, work / "models", options=mapping)
    if not models:
        shutil.rmtree(work)
        return f"{photos.name}: no model of {len(names)} images"
    number, best = max(models.items(), key=lambda item: item[1].num_reg_images())
    pycolmap.undistort_images(work / "flat", work / "models" / str(number), photos)
    (work / "flat").rename(out)
    shutil.rmtree(work)
    return (
        f"{photos.name}: {best.num_reg_images()} of {len(names)} images, {best.num_points3D()} points, "
        f"{best.compute_mean_reprojection_error():.2f} pixels"
    )


def main() -> None:
    """Reconstruct what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", help="of folders in SCENES; by default all")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pycolmap.logging.minloglevel = 2
    for name in options.names or sorted(path.name for path in options.scenes.iterdir() if path.is_dir()):
        if not (options.out / name).exists():
            print(reconstruct(options.scenes / name, options.out / name, options.threads), flush=True)


if __name__ == "__main__":
    main()
