"""Parts of bench/kills.py: which commands are killed, and how one is started, killed and waited for."""
