import pytest
from defection.activations.basics.errors import DefectionError
from defection.activations.basics.processes import Process, refuse_several, this_process


def test_the_launcher_numbers_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert this_process() == Process(0, 1, 0)
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert this_process() == Process(5, 8, 1)


@pytest.mark.parametrize("broken", [{"RANK": "8"}, {"RANK": "-1"}, {"WORLD_SIZE": "many"}, {"LOCAL_RANK": "-1"}])
def test_a_broken_launcher_is_refused(monkeypatch: pytest.MonkeyPatch, broken: dict[str, str]) -> None:
    for name, value in ({"RANK": "0", "WORLD_SIZE": "8", "LOCAL_RANK": "0"} | broken).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DefectionError, match="launcher"):
        this_process()


@pytest.mark.parametrize("size", ["1", "2"])
def test_what_one_process_does_is_refused_to_several(monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": size, "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    if size == "1":
        refuse_several("a report")
    else:
        with pytest.raises(DefectionError, match="a report runs in one process, but this launch has 2"):
            refuse_several("a report")
