"""The page as a Space of Hugging Face, which passes its traffic on from port 7860 of all addresses."""

import threading

from quadtree_attention.app.page import serve

with serve("0.0.0.0", 7860):
    threading.Event().wait()
