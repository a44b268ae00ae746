# SPDX-License-Identifier: Apache-2.0
"""Captures: every variant is read, what is broken is said, and what is written can be read."""

import struct
from pathlib import Path

import pytest
from scapy.packet import Raw
from scapy.utils import RawPcapReader, wrpcapng

from tidegate.dataplane.inspect.capture import Frame, Writer, read
from tidegate.errors import ConfigError

FRAMES = [b"", b"abc", bytes(14), bytes(range(256)) * 8]


def pcap(frames: list[bytes], *, magic: int = 0xA1B2C3D4, order: str = "<", link: int = 1) -> bytes:
    """Return a classic pcap file."""
    head = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, link)
    return head + b"".join(
        struct.pack(f"{order}IIII", 7, 8, len(frame), len(frame)) + frame for frame in frames
    )


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("magic", [0xA1B2C3D4, 0xA1B23C4D], ids=["microseconds", "nanoseconds"])
def test_every_classic_variant(tmp_path: Path, magic: int, order: str) -> None:
    """Both byte orders, both resolutions, and frames of any length, none included."""
    path = tmp_path / "c.pcap"
    path.write_bytes(pcap(FRAMES, magic=magic, order=order))
    assert list(read(path)) == [Frame(frame, is_cut=False) for frame in FRAMES]


def test_pcapng(tmp_path: Path) -> None:
    """The format that Wireshark writes."""
    path = tmp_path / "c.pcapng"
    wrpcapng(str(path), [Raw(frame) for frame in FRAMES[1:]])
    assert [frame.data for frame in read(path)] == FRAMES[1:]


def test_a_frame_that_was_cut_says_so(tmp_path: Path) -> None:
    """The capture's record has two lengths, that of the wire and its own."""
    path = tmp_path / "c.pcap"
    path.write_bytes(pcap([]) + struct.pack("<IIII", 0, 0, 3, 90) + b"abc")
    assert list(read(path)) == [Frame(b"abc", is_cut=True)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated"),
        (b"no capture at all, but long enough", "unknown file format"),
        (pcap(FRAMES)[:-1], "broken behind frame 3"),
        (pcap([])[:20], "truncated"),
        (pcap([]) + struct.pack("<IIII", 0, 0, 1 << 31, 1 << 31) + b"abc", "broken behind frame 0"),
        (pcap([b"abc"], link=113), "LINUX_SLL"),
        (pcap([b"abc"], link=101), "RAW"),
    ],
    ids=["empty", "text", "cut", "half a header", "absurd length", "cooked", "raw IP"],
)
def test_an_unreadable_capture_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    """A sentence with the file's name, whatever is wrong with it."""
    path = tmp_path / "c.pcap"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as raised:
        list(read(path))
    assert str(path) in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """Named, with the system's reason; a folder is no capture either."""
    with pytest.raises(ConfigError, match="No such file"):
        list(read(tmp_path / "c.pcap"))
    with pytest.raises(ConfigError, match="is no file"):
        list(read(tmp_path))


def test_what_is_written_is_read_by_others(tmp_path: Path) -> None:
    """Frames in order, each with its number as its time in seconds."""
    path = tmp_path / "c.pcap"
    with Writer(path) as writer:
        for number, frame in enumerate(FRAMES, 5):
            writer.write(number, frame)
    with RawPcapReader(str(path)) as reader:
        assert [(data, meta.sec, meta.usec, meta.wirelen) for data, meta in reader] == [
            (frame, number, 0, len(frame)) for number, frame in enumerate(FRAMES, 5)
        ]


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    """No such folder, and no room."""
    with pytest.raises(ConfigError, match="cannot write"), Writer(tmp_path / "none" / "c.pcap"):
        pass
    with pytest.raises(ConfigError, match="disk"):
        _fill(Path("/dev/full"))


def _fill(path: Path) -> None:
    with Writer(path) as writer:
        for number in range(100):
            writer.write(number, bytes(1000))
