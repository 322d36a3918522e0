"""Parts of bench/fuzz.py: how files are changed, what is loaded, and what a load must not do."""
