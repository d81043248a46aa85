"""The example of the page on serving runs as it stands there."""

from __future__ import annotations

from ...pages import run_example
from .conftest import Endpoint


def test_the_example_runs(endpoint: Endpoint, capsys) -> None:
    names = run_example("serve.md", {"http://127.0.0.1:8000": endpoint.url})
    said, *streamed = capsys.readouterr().out.splitlines()
    assert names["model"].id == "tiny"
    assert said.endswith("None")
    assert streamed
