"""`python -m defection.experiments …` is `defection …`, for launchers that want a module."""

from .cli import main

main()
