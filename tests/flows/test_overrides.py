import pytest
from ruamel.yaml import YAML

from flows.overrides import PARAMS_FILE, changed, overridden, parse, take_back
from salf.errors import UserError

TEXT = """# head
data:
  labels: {}            # free keys
  name: null            # none
train:
  rate:                 # per method
    full: 0.0001
    lora: [0.001, 0.01]
  epochs: 2             # passes
  mixed: true
  text: |-
    two
    lines
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / PARAMS_FILE).write_text(TEXT)
    return tmp_path


def test_values_change_and_nothing_else_does():
    new = changed(
        TEXT, {"train.epochs": 3, "train.rate.full": [0.1, 0.2], "data.name": "sst", "data.labels.pos": "good"}
    )
    loaded, before = (YAML(typ="safe", pure=True).load(text) for text in (new, TEXT))
    before["train"]["epochs"] = 3
    before["train"]["rate"]["full"] = [0.1, 0.2]
    before["data"] = {"labels": {"pos": "good"}, "name": "sst"}
    assert loaded == before
    assert all(comment in new for comment in ("# head", "# free keys", "# none", "# per method", "# passes"))


def test_labels_that_look_like_numbers_or_booleans_get_their_words():
    new = changed(TEXT, parse(["data.labels={0: bad, 1.5: good, true: yes}", "data.labels.2=odd"]))
    assert YAML(typ="safe", pure=True).load(new)["data"]["labels"] == {
        "0": "bad",
        "1.5": "good",
        "true": "yes",
        "2": "odd",
    }


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.epoch", 3, r"^train\.epoch: unknown parameter; did you mean epochs\?$"),
        ("trian.epochs", 3, r"^trian\.epochs: unknown parameter; did you mean train\?$"),
        ("train.epochs.more", 3, "unknown parameter; known there: nothing"),
    ],
)
def test_what_has_no_place_is_refused_by_its_name(key, value, message):
    with pytest.raises(UserError, match=message):
        changed(TEXT, {key: value})


def test_all_faults_are_named_at_once():
    with pytest.raises(UserError, match=r"train\.epoch: .*; trian: "):
        changed(TEXT, {"train.epoch": 3, "trian": "x"})


def test_the_files_own_bytes_come_back_also_after_a_failure(project):
    seen = []

    def fail() -> None:
        seen.append((project / PARAMS_FILE).read_text())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), overridden(project, {"train.epochs": 3}):
        fail()
    assert "epochs: 3 " in seen[0]
    assert (project / PARAMS_FILE).read_text() == TEXT
    assert not take_back(project)


@pytest.mark.parametrize("encode", [lambda text: text.replace("\n", "\r\n"), "\ufeff{}".format, lambda text: text[:-1]])
def test_line_ends_and_byte_order_marks_come_back_too(project, encode):
    path = project / PARAMS_FILE
    path.write_bytes(encode(TEXT).replace("mixed", "\u00e9mixed").encode())
    before = path.read_bytes()
    with overridden(project, {"train.epochs": 3, "train.text": "one\ntwo"}):
        during = YAML(typ="safe", pure=True).load(path)
        lines = [set(content.split(b"\n")) for content in (before, path.read_bytes())]
        assert len(lines[1] - lines[0]) <= 4  # what was changed, and nothing else but a null
        assert during["train"] == {**YAML(typ="safe", pure=True).load(before)["train"], "epochs": 3, "text": "one\ntwo"}
    assert path.read_bytes() == before
    hold = overridden(project, {"train.epochs": 3})
    hold.__enter__()
    assert take_back(project)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("content", "message"), [(b"a: \xff", "cannot be read: .*utf-8"), (b"a: [", "not valid YAML")])
def test_a_file_that_cannot_be_read_is_one_line_and_stays(project, content, message):
    (project / PARAMS_FILE).write_bytes(content)
    with pytest.raises(UserError, match=message), overridden(project, {"a": 1}):
        pass
    assert (project / PARAMS_FILE).read_bytes() == content


def test_a_refused_override_touches_nothing(project):
    with pytest.raises(UserError), overridden(project, {"train.epoch": 3}):
        pass
    assert (project / PARAMS_FILE).read_text() == TEXT
    assert not take_back(project)


def test_the_next_run_takes_back_what_a_killed_one_left(project):
    hold = overridden(project, {"train.epochs": 3})
    hold.__enter__()  # and never left: as after SIGKILL
    assert take_back(project)
    assert (project / PARAMS_FILE).read_text() == TEXT


@pytest.mark.parametrize("edited", [TEXT.replace("mixed: true", "mixed: false").encode(), b"mixed: \xff"])
def test_an_edit_during_the_run_is_kept(project, edited):
    with overridden(project, {"train.epochs": 3}):
        (project / PARAMS_FILE).write_bytes(edited)
    assert (project / PARAMS_FILE).read_bytes() == edited


def test_a_linked_file_stays_a_link(project, tmp_path):
    (project / PARAMS_FILE).rename(tmp_path / "real.yaml")
    (project / PARAMS_FILE).symlink_to(tmp_path / "real.yaml")
    with overridden(project, {"train.epochs": 3}):
        assert "epochs: 3" in (tmp_path / "real.yaml").read_text()
    assert (project / PARAMS_FILE).is_symlink()
    assert (tmp_path / "real.yaml").read_text() == TEXT


def test_words_of_a_command_line_are_yaml():
    assert parse(["a.b=1e-4", "c=[1, 2]", "d=null", "e=x=y"]) == {"a.b": 1e-4, "c": [1, 2], "d": None, "e": "x=y"}
    for wrong in ("a", "=1", "a=[1"):
        with pytest.raises(UserError):
            parse([wrong])
