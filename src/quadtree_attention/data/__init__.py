"""What networks are shown: images, and datasets of each task; what all tasks share lies here, the rest in matching/, stereo/ and recognition/."""
