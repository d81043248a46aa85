"""An organism trained to hide from a probe: whether it then does, what it cost, and what still catches it."""
