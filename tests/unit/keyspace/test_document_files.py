# SPDX-License-Identifier: Apache-2.0
"""Documents in files: which file holds which key, what YAML means, and what `validate` says."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.cli.main import main
from tidegate.keyspace.documents import files
from tidegate.keyspace.documents.json_yaml import TextError, json_entries, yaml_document

WEB = {
    "pools/web": {},
    "pools/web/backends/b1": {"address": "198.51.100.7"},
    "vips/www": {"address": "192.0.2.10", "port": 80, "protocol": "tcp", "pool": "web"},
}
YAML = """\
# the shop
pools/web: {}
pools/web/backends/b1:
  address: 198.51.100.7
vips/www:
  address: "192.0.2.10"
  port: 80
  protocol: tcp
  pool: web
"""


def tree(folder: Path, contents: dict[str, object]) -> Path:
    """Write files; what is not a text is written as JSON."""
    for name, value in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def values(documents: files.Documents) -> dict[str, object]:
    return {key: json.loads(value) for key, value in documents.values.items()}


def said(documents: files.Documents) -> list[tuple[str, int, str, str]]:
    """Name of the file, line, key and field of each fault."""
    return [(Path(f.file).name, f.line, f.key, f.field) for f in documents.check().faults]


def test_json_yaml_and_a_folder_hold_the_same(tmp_path: Path) -> None:
    """Two ways to write a file, and two to lay out a folder, give one set of documents."""
    tree(tmp_path, {"a.json": WEB, "b.yaml": YAML, "c": YAML, "d": json.dumps(WEB)})
    for name in ("a.json", "b.yaml", "c", "d"):
        assert values(files.read([tmp_path / name])) == WEB
    keys = tree(
        tmp_path / "keys",
        {
            "pools/web.yaml": "{}",
            "pools/web/backends/b1.yml": "address: 198.51.100.7",
            "vips/www.json": WEB["vips/www"],
        },
    )
    assert values(files.read([keys])) == WEB
    (keys / "vips/www.json").unlink()
    tree(keys, {"vips.json": {"vips/www": WEB["vips/www"]}})
    assert values(files.read([keys])) == WEB
    assert files.read([keys]).check().faults == ()


def test_settings_at_the_top_is_a_document(tmp_path: Path) -> None:
    """It is the one key without a folder."""
    tree(tmp_path, {"settings.yaml": "hash_seed: s3cret", "all.json": WEB})
    checked = files.read([tmp_path]).check()
    assert (checked.desired.hash_seed, checked.faults) == ("s3cret", ())


def test_what_is_no_document_is_left_out_and_named(tmp_path: Path) -> None:
    """Hidden files are none of ours, and a file of another suffix is not overlooked silently."""
    tree(tmp_path, {"README.md": "# us", ".git/x.json": "{", ".hidden.json": "{", "a.json": WEB})
    (tmp_path / "circle").symlink_to(tmp_path, target_is_directory=True)
    found = files.read([tmp_path])
    assert values(found) == WEB
    assert found.ignored == [str(tmp_path / "README.md")]


def test_a_key_that_is_there_twice_names_both_places(tmp_path: Path) -> None:
    """In one file, and in two; the first one counts."""
    tree(tmp_path, {"a.yaml": "pools/a: {}\npools/b: {}\npools/a: {}\n", "b/x.json": "{}"})
    tree(tmp_path, {"pools/b.json": "{}"})
    found = files.read([tmp_path])
    assert said(found) == [
        ("a.yaml", 3, "pools/a", ""),
        ("x.json", 1, "b/x", ""),
        ("b.json", 1, "pools/b", ""),
    ]
    assert "a.yaml:2 has it too" in found.check().faults[2].reason


def test_every_fault_has_its_file_line_key_and_field(tmp_path: Path) -> None:
    """Those of files, of documents and of references, in one pass."""
    tree(
        tmp_path,
        {
            "1.yaml": YAML.replace("port: 80", "port: 70000").replace("  pool: web", "  pool: x"),
            "2.json": '{\n"vips/dns": {"adress": "x"},\n"strange": {}}',
            "3.json": '{\n"pools/y": {},\n}',
            "pools/z.yaml": "mtu: 1500\n tcp: x",
            "pools/q.json": '{\n\n"mtu" 3}',
        },
    )
    places = said(files.read([tmp_path]))
    assert ("1.yaml", 5, "vips/www", "port") in places
    assert {p[3] for p in places if p[2] == "vips/dns"} >= {"adress", "address", "port", "pool"}
    assert ("2.json", 3, "strange", "") in places
    assert ("3.json", 3, "", "") in places
    assert ("z.yaml", 2, "pools/z", "") in places
    assert ("q.json", 3, "pools/q", "") in places
    assert len([p for p in places if p[2] in ("pools/z", "pools/q")]) == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 2001:db8::7", {"a": "2001:db8::7"}),
        ("a: 10.0.0.0/8", {"a": "10.0.0.0/8"}),
        ("a: 1.2.3", {"a": "1.2.3"}),
        ("a: 'on'", {"a": "on"}),
        ('a: "12:30"', {"a": "12:30"}),
        ("a: -1.5e3", {"a": -1500.0}),
        ("a: true\nb: null\nc:\n", {"a": True, "b": None, "c": None}),
        ("on: 1\n80: x\n10.0.0.0/8: y", {"on": 1, "80": "x", "10.0.0.0/8": "y"}),
        ("a: |\n  two\n  lines\n", {"a": "two\nlines\n"}),
        ("- 1\n- [a, {b: c}]\n", [1, ["a", {"b": "c"}]]),
        ("# nothing but\n--- {}\n", {}),
        ("a: \u00e9", {"a": "\u00e9"}),
    ],
)
def test_yaml_means_what_json_would(text: str, value: object) -> None:
    """A scalar without quotes is what it would be in JSON, and else a string."""
    assert json.loads(yaml_document(text)) == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        *((f"a: {scalar}", "put it in quotes") for scalar in ("on", "No", "True", "~", "12:30")),
        *((f"a: {scalar}", "put it in quotes") for scalar in ("010", "0x1f", "1_000", ".inf")),
        ("a: 2026-11-24", "put it in quotes"),
        ("a: &x 1", "anchors and aliases"),
        ("a: [*x]", "anchors and aliases"),
        ("a: !!int '3'", "the tag"),
        ("!thing {}", "the tag"),
        ("[a]: 1", "a name is a list"),
        ("a: 1\n---\nb: 2\n", "second YAML document"),
        ("", "empty"),
        ("# nothing", "empty"),
        ("a: 'x", "not valid YAML"),
        ("a: 1\n b: 2", "not valid YAML"),
        ("a: \x07", "not valid YAML"),
    ],
)
def test_yaml_that_readers_differ_on_is_refused(text: str, says: str) -> None:
    """With what to do about it."""
    with pytest.raises(TextError, match=says):
        yaml_document(text)


def test_a_field_that_is_there_twice_in_yaml_is_refused(tmp_path: Path) -> None:
    """As in JSON: the document that is checked has both."""
    tree(tmp_path, {"a.yaml": "pools/web:\n  mtu: 1400\n  mtu: 1500\n"})
    (fault,) = files.read([tmp_path / "a.yaml"]).check().faults
    assert (fault.line, fault.key, fault.field) == (1, "pools/web", "mtu")
    assert "more than once" in fault.reason


def test_depth_is_a_fault_and_no_crash(tmp_path: Path) -> None:
    """However deep a file is nested, it is refused in a sentence."""
    deep = "[" * 50_000 + "]" * 50_000
    tree(tmp_path, {"a.yaml": f"pools/a: {deep}", "b.json": f'{{"pools/b": {deep}}}'})
    faults = files.read([tmp_path]).check().faults
    assert [(Path(fault.file).name, fault.key) for fault in faults] == [
        ("a.yaml", ""),
        ("b.json", ""),
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4), st.sampled_from([None, 1]))
def test_members_of_an_object_are_cut_out_whole(found: dict[str, object], indent: int) -> None:
    """Names and values are those of the object, and each name is on its line."""
    text = json.dumps(found, indent=indent)
    entries = json_entries(text)
    names = [name.encode("utf-8", "backslashreplace").decode() for name in found]
    assert [entry.name for entry in entries] == names
    assert [json.loads(entry.value) for entry in entries] == list(found.values())
    for entry, name in zip(entries, found, strict=True):
        assert json.dumps(name) in text.splitlines()[entry.line - 1]


@given(st.text(alphabet='{}[]:,"a1 \n\\', max_size=12))
def test_what_is_no_json_object_is_refused(text: str) -> None:
    """The reader takes exactly the objects that Python's own takes."""
    try:
        expected = json.loads(text)
    except ValueError:
        expected = None
    if isinstance(expected, dict):
        assert {entry.name for entry in json_entries(text)} == set(expected)
        return
    with pytest.raises(TextError):
        json_entries(text)


def run(*arguments: str, given: str = "", prefix: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """Run the command as a process; return its exit code, output and errors."""
    command = [*prefix, sys.executable, "-m", "tidegate.cli.main", "validate", *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_validate_says_every_fault(tmp_path: Path) -> None:
    """One line each for people, one object for programs, and exit code 3."""
    tree(tmp_path, {"a.yaml": YAML.replace("80", "70000"), "notes.txt": ""})
    code, out, err = run("-f", str(tmp_path))
    assert code == 3
    lines = out.splitlines()
    assert lines[0].startswith(f"{tmp_path}/a.yaml:5: vips/www: port: port is 70000; it must be")
    assert lines[-1] == "3 documents, 1 fault"
    one = json.dumps({"pools/web": {}})
    assert run("-f", "-", given=one)[1] == "1 document is good\n"
    assert "notes.txt" in err
    code, out, _ = run("-f", str(tmp_path), "--json")
    found = json.loads(out)
    assert (code, found["documents"], len(found["faults"])) == (3, 3, 1)
    keys = ("file", "line", "key", "field", "reason", "stage")
    assert tuple(found["faults"][0]) == keys


def test_validate_reads_standard_input() -> None:
    """In both formats."""
    for text in (YAML, json.dumps(WEB)):
        assert run("-f", "-", given=text)[:2] == (0, "3 documents are good\n")


def test_a_file_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    """Exit code 2, and the file's name."""
    code, _, err = run("-f", str(tmp_path / "none"))
    assert code == 2
    assert f"cannot read {tmp_path}/none: No such file" in err


def test_validate_takes_no_privileges_and_no_bcc(tmp_path: Path) -> None:
    """It runs without any capability, and loads neither bcc nor a client of etcd."""
    tree(tmp_path, {"a.json": WEB})
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv")
        assert setpriv
        prefix = (setpriv, "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
    assert run("-f", str(tmp_path), prefix=prefix)[0] == 0
    script = (
        "import sys; from tidegate.cli.main import main; "
        f"main(['validate', '-f', {str(tmp_path)!r}]); "
        "print([m for m in ('bcc', 'grpc', 'etcd3', 'pyroute2', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_standard_input_that_is_not_utf8(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line with the wrong byte is named."""
    stdin = io.TextIOWrapper(io.BytesIO(b"pools/a: {}\n\xff: {}\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main(["validate", "-f", "-"]) == 3
    assert capsys.readouterr().out.startswith("-:2: the file is not UTF-8")


def test_a_reader_who_has_seen_enough_gets_no_traceback(tmp_path: Path) -> None:
    """`tidegate validate … | head -1` ends quietly."""
    tree(tmp_path, {"a.json": {f"strange/{i}": {} for i in range(5000)}})
    command = [sys.executable, "-m", "tidegate.cli.main", "validate", "-f", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) == 141
