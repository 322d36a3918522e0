"""``python -m safetykit``, which is how launchers of several processes start a command."""

from .cli import main

main()
