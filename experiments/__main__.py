"""`python -m defection.experiments …` is `defection …`, for launchers that want a module."""

from .commands.cli import main

main()
