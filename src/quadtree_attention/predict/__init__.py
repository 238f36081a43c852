"""Images in, results out: one file a task. All images are as `data.images.read_image` takes them."""
