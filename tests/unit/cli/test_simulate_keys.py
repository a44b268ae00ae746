# SPDX-License-Identifier: Apache-2.0
"""`tidegate simulate` without the kernel: its files, its lines, its exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.packets.frames import ip4, tcp
from tidegate.cli.main import main
from tidegate.dataplane.inspect.capture import Writer, read

KEYS = {
    "pools/web": {},
    "pools/web/backends/b1": {"address": "198.51.100.7"},
    "vips/www": {"address": "10.99.0.1", "port": 80, "protocol": "tcp", "pool": "web"},
}
FRAMES = [
    b"",
    b"short",
    tcp("S"),
    tcp("A"),
    tcp("A"),
    tcp("S", dport=81),
    tcp("S", ip4(len=41)),
]
LARGE = tcp("A", data="x" * 1460)


class Files:
    """A file of documents and a capture, and the command on them."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.keys, self.capture, self.out = (folder / n for n in ("k.json", "c.pcap", "o.pcap"))
        self._capsys = capsys
        self.keys.write_text(json.dumps(KEYS))
        with Writer(self.capture) as writer:
            for number, frame in enumerate(FRAMES, 1):
                writer.write(number, frame)

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Return the exit code, the output, and the errors."""
        files = ["--keys", str(self.keys), "--in", str(self.capture)]
        code = main(["simulate", "--engine", "spec", *files, *arguments])
        return code, *self._capsys.readouterr()

    def lines(self, *arguments: str) -> list[dict[str, Any]]:
        """Return the JSON lines."""
        code, out, err = self.run("--json", *arguments)
        assert (code, err) == (0, "")
        return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Files:
    return Files(tmp_path, capsys)


def test_one_json_line_per_frame(files: Files) -> None:
    """Every field each time, null where it does not apply; frames count from 1."""
    lines = files.lines()
    assert [line["n"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert {tuple(line) for line in lines} == {
        ("n", "verdict", "reason", "vip", "backend", "slot", "generation", "decision", "out_len")
    }
    passed = {"verdict": "PASS", "reason": None, "vip": None, "backend": None, "slot": None}
    assert passed.items() <= lines[0].items()
    assert [line["out_len"] for line in lines] == [0, 5, 74, 74, 74, None, None]
    sent = {"verdict": "TX", "reason": None, "vip": "www", "backend": "b1", "generation": 1}
    assert all(sent.items() <= line.items() for line in lines[2:5])
    assert [line["decision"] for line in lines[2:5]] == ["syn", "current", "tracked"]
    assert len({line["slot"] for line in lines[2:5]}) == 1
    assert (lines[6]["verdict"], lines[6]["reason"]) == ("DROP", "bad_length")


def test_a_line_for_people(files: Files) -> None:
    """The same as columns with a heading, and the sum at the end."""
    code, out, _ = files.run()
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split()[:3] == ["n", "verdict", "reason"]
    assert lines[3].split()[:5] == ["3", "TX", "-", "www", "b1"]
    assert lines[-1] == "7 frames: 3 TX, 2 PASS, 1 DROP unserved, 1 DROP bad_length"


def test_what_leaves_is_written_with_its_number(files: Files) -> None:
    """Transmitted and passed frames in order; dropped ones are not there."""
    files.run("--out", str(files.out))
    written = [frame.data for frame in read(files.out)]
    assert [len(frame) for frame in written] == [0, 5, 74, 74, 74]
    assert written[2][34:] == FRAMES[2][14:]


def test_the_interface_is_described(files: Files) -> None:
    """The MAC addresses of the frame that leaves, and the MTU that it has to fit."""
    with Writer(files.capture) as writer:
        writer.write(1, LARGE)
    (told,) = files.lines()
    assert (told["verdict"], told["backend"]) == ("TX", None)  # the client is told the MTU
    (sent,) = files.lines(
        *("--out", str(files.out), "--mtu", "1600"),
        *("--gateway-mac", "02:00:00:00:00:aa", "--interface-mac", "02-00-00-00-00-bb"),
    )
    assert (sent["verdict"], sent["backend"]) == ("TX", "b1")
    (frame,) = read(files.out)
    assert frame.data[:12].hex() == "0200000000aa0200000000bb"


def test_every_refused_document_is_said(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    """Each fault with key, field and reason, on the side, and exit code 3."""
    broken = {"vips/www": {**KEYS["vips/www"], "port": 0x10000}, "vips/dns": {"adress": "x"}}
    files.keys.write_text(json.dumps({**KEYS, **broken, "vip/x": {}}))
    code, out, err = files.run("--json")
    assert (code, out) == (3, "")
    places = [line.split(": ")[1:3] for line in err.splitlines()]
    assert ["vips/www", "port"] in places
    assert ["vips/dns", "adress"] in places
    assert ["vips/dns", "address"] in places
    assert any(place[0] == "vip/x" for place in places)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "k.json:1: the file does not hold a JSON object"),
        ("{\n", "k.json:2: the file is not valid JSON"),
        ('{"pools/web": {}, "pools/web": {}}', "pools/web: the key appears more than once"),
        (b"\xff", "the file is not UTF-8"),
        ("[" * 100_000, "nested too deeply"),
    ],
    ids=["array", "cut", "twice", "not UTF-8", "deep"],
)
def test_keys_that_are_no_object(files: Files, text: str | bytes, says: str) -> None:
    """Wrong usage, said in a sentence."""
    files.keys.write_bytes(text if isinstance(text, bytes) else text.encode())
    code, _, err = files.run()
    assert code == 2
    assert says in err


def test_a_field_that_is_there_twice_is_refused(files: Files) -> None:
    """The documents reach validation byte for byte."""
    files.keys.write_text('{"pools/web": {"transition_window": 1, "transition_window": 2}}')
    code, _, err = files.run()
    assert code == 3
    assert "more than once" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--gateway-mac", "02:00"],
        ["--interface-mac", "zz:00:00:00:00:00"],
        ["--mtu", "1279"],
        ["--mtu", "x"],
        ["--source4", "10.254.0.1/16"],
        ["--source6", "fd54::/48"],
        ["--engine", "neither"],
    ],
)
def test_wrong_usage(files: Files, arguments: list[str]) -> None:
    """The argument is named, and the exit code is 2."""
    with pytest.raises(SystemExit, match="2"):
        files.run(*arguments)


def test_frames_that_the_capture_cut_are_counted(files: Files) -> None:
    """They look like lying lengths, so whoever reads the drops has to know."""
    cut = tcp("A", data="x" * 100)
    record = b"".join(n.to_bytes(4, "little") for n in (0, 0, 80, len(cut)))
    files.capture.write_bytes(files.capture.read_bytes() + record + cut[:80])
    code, out, err = files.run("--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["reason"] == "bad_length"
    assert "1 frames were cut" in err


def test_a_merged_frame_is_seen_to_its_first_page(files: Files) -> None:
    """No driver gives a program more than a page: for a VIP it is cut, else it passes whole."""
    long = [tcp("A", data="x" * 5000), tcp("A", ip4(to="192.0.2.77"), data="x" * 5000)]
    with Writer(files.capture) as writer:
        for number, frame in enumerate(long, 1):
            writer.write(number, frame)
    lines = files.lines()
    assert [line["reason"] for line in lines] == ["bad_length", None]
    assert lines[1]["out_len"] == 5054
