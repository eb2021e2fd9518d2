"""Positions of files in archives: formats, what is passed over, damage and hostile archives."""

import gzip
import io
import random
import tarfile
import time

import pytest

from eqjax.data import tar_index
from tests.data import tar_files

LONG = "folder/" * 30 + "image.png"


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_positions_are_those_of_tarfile(tmp_path, tar_format):
    path = tmp_path / "a.tar"
    files = {"a.png": b"x" * 1000, "b.cls": b"", "ünïcode.png": b"y" * 512, "c/d.png": b"z"}
    if tar_format != tarfile.USTAR_FORMAT:
        files[LONG] = b"w" * 700
    tar_files.write(path, files, tar_format)
    found = list(tar_index.members(str(path)))
    content = path.read_bytes()
    assert {m.name: content[m.offset : m.offset + m.size] for m in found} == files
    with tarfile.open(path) as tar:
        assert [(m.name, m.offset, m.size) for m in found] == [(i.name, i.offset_data, i.size) for i in tar]


def test_a_size_in_an_attribute_is_the_size(tmp_path):
    """As of files from 8 GB on, whose size does not fit in the header."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.png")
        info.pax_headers, info.size = {"size": "600"}, 600
        tar.addfile(info, io.BytesIO(b"x" * 600))
        tar.addfile(tarfile.TarInfo("b.png"))
    assert [(m.name, m.size) for m in tar_index.members(str(path))] == [("a.png", 600), ("b.png", 0)]


def test_links_folders_and_devices_are_passed_over(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"{kind.decode()}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("last.png"))
    assert [m.name for m in tar_index.members(str(path))] == ["last.png"]


def test_a_compressed_archive_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(gzip.compress(b"x" * 2000))
    with pytest.raises(tar_index.TarError, match=r"a\.tar is compressed \(gzip\), .*: decompress it"):
        list(tar_index.members(str(tmp_path / "a.tar")))


@pytest.mark.parametrize("kept", [100, 700, 1024 + 100])
def test_a_truncated_archive_is_refused(tmp_path, kept):
    path = tmp_path / "a.tar"
    tar_files.write(path, {"a.png": b"x" * 900, "b.png": b"y" * 900})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(tar_index.TarError, match="truncated or damaged|is no tar archive, or is damaged"):
        list(tar_index.members(str(path)))


def test_a_missing_end_is_mentioned(tmp_path, caplog):
    path = tmp_path / "a.tar"
    tar_files.write(path, {"a.png": b"x" * 512})
    path.write_bytes(path.read_bytes()[:1024])
    assert len(list(tar_index.members(str(path)))) == 1
    assert "ends without the mark of its end" in caplog.text


def header(name="a", kind=tarfile.REGTYPE, size=b"00000000000"):
    """A header whose size is written as given; its checksum is right."""
    info = tarfile.TarInfo(name)
    info.type = kind
    raw = bytearray(info.tobuf(tarfile.USTAR_FORMAT)[:512])
    raw[124:136] = size.ljust(12, b"\0")
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


HOSTILE = {
    "a negative size": header(size=b"\xff" * 12),
    "a size beyond the end": header(size=b"77777777777"),
    "long attributes": header(kind=tarfile.XHDTYPE, size=b"%011o" % (2 << 20)) + b"\0" * (2 << 20),
    "attributes beyond their length": header(kind=tarfile.XHDTYPE, size=b"%011o" % 512)
    + b"999 path=x\n".ljust(512, b"\0"),
    "attributes of no length": header(kind=tarfile.XHDTYPE, size=b"%011o" % 512) + b"0 path=x\n".ljust(512, b"\0"),
    "attributes without a length": header(kind=tarfile.XHDTYPE, size=b"%011o" % 512) + b"x" * 512,
    "a length of many digits": header(kind=tarfile.XHDTYPE, size=b"%011o" % 5120) + b"9" * 5120,
    "a negative attribute": header(kind=tarfile.XHDTYPE, size=b"%011o" % 512)
    + b"12 size=-10\n".ljust(512, b"\0")
    + header(),
    "a huge attribute": header(kind=tarfile.XHDTYPE, size=b"%011o" % 512)
    + b"27 size=99999999999999999\n".ljust(512, b"\0")
    + header(),
    "a wrong checksum": header().replace(b"a", b"b", 1),
    "a sparse file": header(kind=tarfile.GNUTYPE_SPARSE),
    "no header": b"x" * 512,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive_is_refused_with_its_name(tmp_path, what):
    path = tmp_path / "a.tar"
    path.write_bytes(HOSTILE[what] + b"\0" * 1024)
    with pytest.raises(tar_index.TarError, match=r"a\.tar"):
        list(tar_index.members(str(path)))


def test_random_damage_ends_in_files_or_in_one_error(tmp_path):
    path = tmp_path / "a.tar"
    tar_files.write(path, {"a.png": b"x" * 900, LONG: b"y" * 100, "b.png": b"z" * 10}, tarfile.PAX_FORMAT)
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    start = time.monotonic()
    for _ in range(500):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 3, 20])):
            damaged[rng.randrange(5 * 1024)] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            for member in tar_index.members(str(path)):
                assert 0 <= member.offset <= member.offset + member.size <= len(whole)
        except tar_index.TarError:
            refused += 1
    assert 100 < refused < 500 and time.monotonic() - start < 60
