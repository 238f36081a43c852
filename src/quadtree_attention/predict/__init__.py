"""Predictors: images in, results out, one file per task. They take all images that `data.images.read_image` takes."""
