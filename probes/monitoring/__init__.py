"""A probe that reads along while a model speaks: hooks, aggregators, and alarms set on whole clean generations."""
