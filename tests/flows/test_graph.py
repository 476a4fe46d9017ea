import networkx as nx
import pytest
from dvc.repo import Repo

from flows.graph import matching, read_graph, select
from salf.errors import UserError


def test_every_stage_follows_all_that_dvc_says_it_reads(toy):
    order = [node.name for node in read_graph(toy.root)]
    with Repo(str(toy.root)) as repo:
        edges = [(reader.name, read.name) for reader, read in repo.index.graph.edges]
        everything = {stage.name for stage in repo.index.graph.nodes}
    assert len(edges) == 4
    assert set(order) == everything
    assert all(order.index(read) < order.index(reader) for reader, read in edges)


def test_matrix_items_carry_their_own_names_and_meta(toy):
    graph = {node.name: node for node in read_graph(toy.root)}
    assert list(graph) == ["first", "train@a+b-1", "train@c-1", "judge"]
    item = graph["train@a+b-1"]
    assert (item.description, item.upstream, item.outputs) == ("Train a+b", ("first",), ("models/a+b-1",))
    assert (item.retries, item.timeout) == (2, 60.0)
    assert graph["judge"].upstream == ("train@a+b-1", "train@c-1")
    assert (graph["judge"].outputs, graph["judge"].uncached) == (("metrics.json",), ("metrics.json",))
    assert (graph["judge"].retries, graph["judge"].timeout) == (0, None)


def test_a_target_brings_what_it_reads_and_nothing_else(toy):
    graph = read_graph(toy.root)
    assert [node.name for node in select(graph, ["train@c-1"])] == ["first", "train@c-1"]
    assert [node.name for node in select(graph, ["train"])] == ["first", "train@a+b-1", "train@c-1"]
    assert select(graph, []) == graph
    reads = nx.DiGraph([(node.name, read) for node in graph for read in node.upstream])
    assert {node.name for node in select(graph, ["judge"])} == nx.descendants(reads, "judge") | {"judge"}


def test_an_unknown_target_is_answered_with_what_there_is(toy):
    with pytest.raises(UserError, match=r"no stage 'trian'.*first, train@a\+b-1, train@c-1, judge"):
        matching(read_graph(toy.root), ["trian"])


def test_a_broken_graph_is_one_line(toy):
    toy.configure(graph="stages: {first: {cmd: x, depz: [y]}}")
    with pytest.raises(UserError, match="validation failed") as fault:
        read_graph(toy.root)
    assert "\n" not in str(fault.value)


def test_a_folder_without_a_project_is_said_so(tmp_path):
    with pytest.raises(UserError, match="not inside of a DVC repository"):
        read_graph(tmp_path)


def test_an_empty_matrix_is_named_with_what_to_write(toy):
    toy.configure(graph="stages: {train: {matrix: {variant: '${variants}'}, cmd: 'true ${item.variant}'}}")
    (toy.root / "params.yaml").write_text("variants:\n")
    with pytest.raises(UserError, match=r"DVC finds an empty entry where a matrix needs values; write {}"):
        read_graph(toy.root)
    (toy.root / "params.yaml").write_text("variants: {}\n")
    assert read_graph(toy.root) == ()
