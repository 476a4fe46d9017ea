import psutil
import pytest

from flows import environment
from flows.environment import with_threads
from flows.graph import StageNode


def node(name: str, *upstream: str) -> StageNode:
    return StageNode(name, upstream=upstream)


GRAPH = [
    node("a"),
    node("b", "a"),
    node("t@1", "b"),
    node("t@2", "b"),
    node("t@3", "b"),
    node("e", "t@1", "t@2", "t@3"),
]


@pytest.mark.parametrize(
    ("cores", "gigabytes", "expected"), [(2, 24, 1), (4, 24, 1), (8, 64, 2), (16, 24, 1), (64, 128, 8), (1, 1, 1)]
)
def test_the_machine_says_how_many_stages_run_at_once(monkeypatch, cores, gigabytes, expected):
    memory = psutil.virtual_memory()._replace(total=gigabytes * 2**30)
    monkeypatch.setattr(environment, "cores", lambda: cores)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert environment.side_by_side(0) == expected
    assert environment.side_by_side(3) == 3


@pytest.mark.parametrize("at_once", [1, 2, 3, 5])
def test_stages_beside_each_other_never_have_more_threads_than_there_are_cores(monkeypatch, at_once):
    monkeypatch.setattr(environment, "cores", lambda: 8)
    share = environment.threads_each(GRAPH, at_once)
    assert share["a"] is share["b"] is share["e"] is None
    together = min(at_once, 3)
    assert share["t@1"] == share["t@2"] == share["t@3"]
    if together == 1:
        assert share["t@1"] is None
    else:
        assert 8 - together < share["t@1"] * together <= 8


def test_a_part_of_the_graph_has_its_own_shares(monkeypatch):
    monkeypatch.setattr(environment, "cores", lambda: 8)
    assert environment.threads_each([GRAPH[2], GRAPH[5]], 4) == {"t@1": None, "e": None}


def test_a_users_own_limit_is_never_raised():
    assert with_threads({"OMP_NUM_THREADS": "1"}, 4)["OMP_NUM_THREADS"] == "1"
    assert with_threads({"OMP_NUM_THREADS": "8"}, 4)["OMP_NUM_THREADS"] == "4"
    assert with_threads({"OMP_NUM_THREADS": "8"}, None)["OMP_NUM_THREADS"] == "8"
    assert with_threads({}, 4) == {"OMP_NUM_THREADS": "4"}
