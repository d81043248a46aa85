"""From the command to a server that listens: what it prints, what it refuses, and the how-to page's own example."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from defection.activations import DefectionError, load_model, load_prompts
from defection.experiments.commands import serve as command
from defection.experiments.serve.rates import CLIENTS, Rates
from defection.experiments.serve.settings import is_loopback, refuse_open
from defection.probes import calibrate, load_probe

from ...pages import DOCS
from ...probes.monitoring.conftest import random_probe
from .conftest import Endpoint


@pytest.fixture
def place(tmp_path: Path, save_tiny) -> dict[str, Path]:
    folder = save_tiny("llama", seed=3)
    random_probe(load_model(folder, device="cpu", dtype="fp32")).save(tmp_path / "probe.safetensors")
    lines = [json.dumps({"prompt": f"calm {'so ' * (i % 5)}{i}"}) for i in range(40)]
    (tmp_path / "calm.jsonl").write_text("\n".join(lines) + "\n")
    names = {name: tmp_path / name for name in ("probe.safetensors", "calm.jsonl", "kept.safetensors")}
    return {"model": folder, **names}


def arguments(place: dict[str, Path], *more: object) -> list[str]:
    given = ["serve", place["model"], "--probe", place["probe.safetensors"], "--port", 0, "--false-alarms", 0.1]
    given += ["--reply", 6, "--compute-dtype", "fp32", "--calibration", place["kept.safetensors"], *more]
    return [str(each) for each in given]


def test_the_command_serves_until_interrupted_and_keeps_its_calibration(place: dict[str, Path]) -> None:
    command_line = [sys.executable, "-m", "defection.experiments"]
    for more in (("--calibrate", place["calm.jsonl"]), ()):
        process = subprocess.Popen([*command_line, *arguments(place, "--json", *more)], stdout=subprocess.PIPE)
        try:
            about = json.loads(process.stdout.readline())
            assert about["calibrated_on"] == 20
            assert httpx.get(f"{about['url']}/v1/models", timeout=60).json()["data"][0]["id"] == place["model"].name
            process.send_signal(signal.SIGINT)
            assert process.wait(60) in (0, 130, -signal.SIGINT)
        finally:
            process.kill()
            process.communicate()
        assert place["kept.safetensors"].exists()


def test_a_port_that_is_taken_is_refused_before_anything_is_loaded(run, capsys, place: dict[str, Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(*arguments(place, "--calibrate", place["calm.jsonl"], "--port", port)) == 2
    assert f"cannot listen at 127.0.0.1, port {port}" in capsys.readouterr().err
    assert not place["kept.safetensors"].exists()


def test_a_calibration_of_another_temperature_is_refused(run, capsys, place: dict[str, Path]) -> None:
    model, probe = load_model(place["model"], device="cpu", dtype="fp32"), load_probe(place["probe.safetensors"])
    calibrate(model, probe, load_prompts(place["calm.jsonl"]), max_new_tokens=6, rate=0.1).save(
        place["kept.safetensors"]
    )
    assert run(*arguments(place, "--temperature", 0.7)) == 2
    assert "was set on replies of temperature 0, not 0.7" in capsys.readouterr().err


def test_without_its_packages_one_sentence_says_which(run, capsys, place, monkeypatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert run(*arguments(place)) == 2
    said = capsys.readouterr().err
    assert said.endswith("defection: serving needs fastapi: pip install 'defection-probes[serve]'\n")


def test_only_this_machine_may_ask_without_a_key() -> None:
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert is_loopback(host)
        refuse_open(host, None)
    for host in ("0.0.0.0", "::", "192.168.0.1", "models.example"):
        with pytest.raises(DefectionError, match="DEFECTION_API_KEY"):
            refuse_open(host, None)
        refuse_open(host, "a key that nobody guesses")
    with pytest.raises(DefectionError, match="at least 16"):
        refuse_open("127.0.0.1", "short")


def test_a_bucket_fills_steadily_and_few_clients_are_remembered() -> None:
    now = [0.0]
    rates = Rates(60, clock=lambda: now[0])
    assert [rates.wait("a") for _ in range(60)] == [0.0] * 60
    assert rates.wait("a") == pytest.approx(1.0)
    assert rates.wait("b") == 0.0
    now[0] = 1.0
    assert rates.wait("a") == 0.0
    for client in range(3 * CLIENTS):
        rates.wait(str(client))
    assert len(rates._buckets) <= CLIENTS
    assert all(Rates(0).wait("a") == 0.0 for _ in range(100))


def test_the_example_of_the_page_runs(endpoint: Endpoint, capsys) -> None:
    page = (DOCS / "serve.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    exec(compile(code.replace("http://127.0.0.1:8000", endpoint.url), "serve.md", "exec"), {})
    assert "None" in capsys.readouterr().out
