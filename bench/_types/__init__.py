"""Parts of bench/types.py: a tiny checkpoint of any image-text-to-text type, from its configuration and processor."""
