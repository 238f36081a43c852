"""Data: reads images, and makes the datasets of each task. Shared parts are here, the rest in matching/, stereo/ and recognition/."""
