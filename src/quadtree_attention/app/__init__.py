"""The page in the browser: `quadtree app`, and a Space of Hugging Face. One file a group of tabs."""
