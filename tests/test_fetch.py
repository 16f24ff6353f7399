"""`fetch-data`: downloads from a loopback server, archives of the published layout, folders, and bad files."""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import socket
import tarfile
import threading
import types
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from zsseg import archives, downloads, sources
from zsseg.artifacts import open_artifact
from zsseg.classes import VOC_NAMES
from zsseg.config import FetchConfig
from zsseg.downloads import Download, obtain
from zsseg.errors import ArtifactError, DataError, SettingError
from zsseg.fetch import FetchSummary, fetch_data, fetch_vectors
from zsseg.images import decode_image, decode_label_map, encode_label_map

HEIGHT, WIDTH = 6, 9


# --- what the tests are made of ---------------------------------------------------------------------------------------


def photo(value: int = 0, *, size: tuple[int, int] = (HEIGHT, WIDTH), suffix: str = "JPEG", **options: object) -> bytes:
    """Return an encoded image of noise."""
    pixels = np.random.default_rng(value).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=suffix, **options)
    return buffer.getvalue()


def classes_of(value: int, *, size: tuple[int, int] = (HEIGHT, WIDTH), top: int = 21) -> np.ndarray:
    """Return a label map of noise with some void."""
    ids = np.random.default_rng(value).integers(0, top, size, dtype=np.uint8)
    ids[0, 0] = 255
    return ids


def label_png(value: int, **options: int) -> bytes:
    """Return an encoded label map of noise."""
    return encode_label_map(classes_of(value, **options))  # type: ignore[arg-type]


def write(root: Path, files: dict[str, bytes | str]) -> Path:
    """Write files below a folder."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def voc_files(train: list[str] | None, val: list[str] | None, *, extra: tuple[str, ...] = ()) -> dict[str, bytes | str]:
    """Return a VOC folder's files by name."""
    files: dict[str, bytes | str] = {}
    for number, photo_id in enumerate([*(train or []), *(val or []), *extra]):
        files[f"JPEGImages/{photo_id}.jpg"] = photo(number)
        files[f"SegmentationClass/{photo_id}.png"] = label_png(number)
    for name, ids in (("train", train), ("val", val)):
        if ids is not None:
            files[f"ImageSets/Segmentation/{name}.txt"] = "".join(f"{photo_id}\n" for photo_id in ids)
    return files


def tar_bytes(files: dict[str, bytes | str], mode: str = "w", extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    """Return a tar archive with these regular files and extra members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            raw = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
        for member in extra:
            tar.addfile(member)
    return buffer.getvalue()


def mat(label_map: np.ndarray) -> bytes:
    """Return SBD's MATLAB struct GTcls, with its other fields too."""
    buffer = io.BytesIO()
    fields = {"Boundaries": np.zeros((20, 1)), "Segmentation": label_map, "CategoriesPresent": np.array([1, 2])}
    savemat(buffer, {"GTcls": fields}, do_compression=True)
    return buffer.getvalue()


def voc_archive(extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    """Return a VOC 2012 archive: train v1 v2, val v3 v4, and photos s1 s2 s3 that only SBD labels."""
    files = voc_files(["v1", "v2"], ["v3", "v4"])
    files |= {f"JPEGImages/{photo_id}.jpg": photo(50 + n) for n, photo_id in enumerate(["s1", "s2", "s3"])}
    files |= {"Annotations/v1.xml": "<annotation/>", "SegmentationObject/v1.png": label_png(1)}
    return tar_bytes({f"VOCdevkit/VOC2012/{name}": content for name, content in files.items()}, extra=extra)


SBD_MAPS = {photo_id: classes_of(70 + n) % 21 for n, photo_id in enumerate(["s1", "s2", "s3", "v1", "v3"])}


def sbd_archive(extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    """Return an SBD archive: train s2 v1 s1 v3, val s3; v1 is in VOC's train and v3 in VOC's val."""
    files: dict[str, bytes | str] = {f"dataset/cls/{photo_id}.mat": mat(ids) for photo_id, ids in SBD_MAPS.items()}
    files |= {f"dataset/img/{photo_id}.jpg": photo(60 + n) for n, photo_id in enumerate(SBD_MAPS)}
    files |= {"dataset/inst/s1.mat": b"not needed", "README": "SBD"}
    files |= {"dataset/train.txt": "s2\nv1\ns1\nv3\n", "dataset/val.txt": "s3\n"}
    return tar_bytes({f"benchmark_RELEASE/{name}": content for name, content in files.items()}, "w:gz", extra)


@dataclass
class Mirror:
    """A loopback server: paths and their contents, how it behaves, and what was asked of it."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    cut: int = 0  # this many answers break off half way
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Serve one request."""
        wanted = request.headers.get("Range")
        self.asked.append((request.path, wanted))
        content = self.files.get(request.path)
        if content is None:
            request.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if start >= len(content):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(content)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        # As some servers do for .tgz files; the client must not unpack on the way.
        request.send_header("Content-Encoding", "gzip")
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        stop = len(content)
        if self.cut:
            self.cut -= 1
            stop = start + (len(content) - start) // 2
        request.wfile.write(content[start:stop])


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """Run a loopback server."""
    state = Mirror()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(downloads, "PAUSE", 0.0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def dead() -> str:
    """Return the address of a server that does not exist."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def published(content: bytes, *mirrors: str, algorithm: str = "md5", file: str = "file.bin") -> Download:
    """Return a table entry for this content."""
    return Download(file, mirrors, f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}", "use --archive FILE")


BIG = np.random.default_rng(0).bytes(700_000)


# --- downloads --------------------------------------------------------------------------------------------------------


def test_download_is_verified_and_fetched_once(mirror: Mirror, tmp_path: Path) -> None:
    """A second run uses the file that is there."""
    mirror.files["/f"] = BIG
    entry = published(BIG, f"{mirror.address}/f", algorithm="sha256")
    assert obtain(entry, tmp_path / "cache").read_bytes() == BIG
    assert obtain(entry, tmp_path / "cache").read_bytes() == BIG
    assert mirror.asked == [("/f", None)]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["file.bin"]


@pytest.mark.parametrize("cuts", [1, 3])
def test_broken_transfer_is_resumed(mirror: Mirror, tmp_path: Path, cuts: int) -> None:
    """After a cut connection only the missing bytes are asked for."""
    mirror.files["/f"] = BIG
    mirror.cut = cuts
    path = obtain(published(BIG, f"{mirror.address}/f"), tmp_path)
    assert path.read_bytes() == BIG
    ranges = [asked for _, asked in mirror.asked]
    assert len(ranges) == cuts + 1
    assert ranges[:2] == [None, f"bytes={len(BIG) // 2}-"]


def test_resume_where_the_server_ignores_range(mirror: Mirror, tmp_path: Path) -> None:
    """A server that sends everything again still gives the right file."""
    mirror.files["/f"] = BIG
    mirror.cut, mirror.ranges = 1, False
    assert obtain(published(BIG, f"{mirror.address}/f"), tmp_path).read_bytes() == BIG
    assert len(mirror.asked) == 2


def test_a_later_run_resumes(mirror: Mirror, tmp_path: Path) -> None:
    """What an interrupted run left is used; a complete leftover needs no transfer."""
    mirror.files["/f"] = BIG
    entry = published(BIG, f"{mirror.address}/f")
    (tmp_path / "file.bin.part").write_bytes(BIG[:100])
    assert obtain(entry, tmp_path).read_bytes() == BIG
    assert mirror.asked == [("/f", "bytes=100-")]
    (tmp_path / "file.bin").rename(tmp_path / "file.bin.part")
    assert obtain(entry, tmp_path).read_bytes() == BIG


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * 800_000], ids=["stale", "too long"])
def test_a_wrong_leftover_is_replaced(mirror: Mirror, tmp_path: Path, left: bytes) -> None:
    """A leftover that does not lead to the checksum is thrown away and the file fetched from the start."""
    mirror.files["/f"] = BIG
    (tmp_path / "file.bin.part").write_bytes(left)
    assert obtain(published(BIG, f"{mirror.address}/f"), tmp_path).read_bytes() == BIG


def test_wrong_checksum(mirror: Mirror, tmp_path: Path) -> None:
    """The error names file, algorithm, both checksums, the removal and what to do; nothing is left behind."""
    mirror.files["/f"] = b"something else"
    got, expected = hashlib.md5(b"something else").hexdigest(), hashlib.md5(BIG).hexdigest()
    with pytest.raises(DataError) as caught:
        obtain(published(BIG, f"{mirror.address}/f"), tmp_path)
    for words in ("file.bin", f"md5 checksum {got}, expected {expected}", "was removed", "--archive FILE"):
        assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_file_of_that_name_is_left_alone(tmp_path: Path) -> None:
    """A file that zsseg did not verify is reported, not deleted."""
    (tmp_path / "file.bin").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"file\.bin: md5 checksum .*remove it and run"):
        obtain(published(BIG), tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == b"mine"


def test_mirrors_in_turn(mirror: Mirror, dead: str, tmp_path: Path) -> None:
    """A dead mirror, one without the file and one with a wrong file are passed over."""
    mirror.files |= {"/bad": b"wrong", "/good": BIG}
    entry = published(BIG, f"{dead}/f", f"{mirror.address}/none", f"{mirror.address}/bad", f"{mirror.address}/good")
    assert obtain(entry, tmp_path).read_bytes() == BIG
    assert [path for path, _ in mirror.asked] == ["/none", "/bad", "/good"]


def test_all_mirrors_dead(mirror: Mirror, dead: str, tmp_path: Path) -> None:
    """One line names every mirror and its reason, and the way out."""
    with pytest.raises(DataError) as caught:
        obtain(published(BIG, f"{dead}/f", f"{mirror.address}/none"), tmp_path)
    message = str(caught.value)
    assert f"{dead}/f (cannot connect)" in message
    assert f"{mirror.address}/none (HTTP 404)" in message
    assert "--archive FILE" in message
    assert "\n" not in message


def test_unwritable_cache(tmp_path: Path) -> None:
    """A cache folder that cannot be made is an error that names it."""
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be stored.*ZSSEG_CACHE"):
        obtain(published(BIG, "http://127.0.0.1:1/f"), tmp_path / "file" / "cache")


def test_published_table() -> None:
    """Every entry has mirrors and a checksum of its algorithm's length."""
    for entry in downloads.DOWNLOADS.values():
        algorithm, digest = entry.checksum.split(":")
        assert len(digest) == 2 * hashlib.new(algorithm).digest_size
        assert all(url.startswith(("https://", "http://")) for url in entry.mirrors)


# --- VOC 2012 and SBD -------------------------------------------------------------------------------------------------


@pytest.fixture
def served(mirror: Mirror, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Mirror:
    """Serve small archives of the published layout in place of the published ones."""
    mirror.files = {"/voc.tar": voc_archive(), "/sbd.tgz": sbd_archive()}
    table = {
        "voc2012": published(mirror.files["/voc.tar"], f"{mirror.address}/voc.tar", file="voc.tar"),
        "sbd": published(mirror.files["/sbd.tgz"], f"{mirror.address}/sbd.tgz", file="sbd.tgz"),
    }
    monkeypatch.setattr(downloads, "DOWNLOADS", table)
    monkeypatch.setenv("ZSSEG_CACHE", str(tmp_path / "cache"))
    return mirror


def contents(path: Path) -> dict[str, tuple[str, bytes, bytes]]:
    """Return partition, image and label map bytes by id, after checking the artifact."""
    with open_artifact(path, "data") as data:
        ids = data.strings("ids")
        found = {}
        for partition in ("train", "val"):
            for index in data.array(partition):
                image, label_map = data.bytes_at("images", index), data.bytes_at("label_maps", index)
                assert decode_image(image, "x").shape[:2] == tuple(data.array("sizes")[index])
                found[ids[index]] = (partition, image, label_map)
        assert list(found) == ids
        return found


def ids_of(path: Path, partition: str) -> list[str]:
    return [photo_id for photo_id, row in contents(path).items() if row[0] == partition]


@pytest.mark.usefixtures("served")
def test_voc2012(tmp_path: Path) -> None:
    """VOC's lists, names and bytes are kept as published."""
    out = tmp_path / "data.h5"
    summary = fetch_data(out, FetchConfig(source="voc2012"))
    assert summary == FetchSummary(out, "voc2012", VOC_NAMES, 2, 2, ())
    expected = voc_files(["v1", "v2"], ["v3", "v4"])
    for photo_id, (_, image, label_map) in contents(out).items():
        assert image == expected[f"JPEGImages/{photo_id}.jpg"]
        assert label_map == expected[f"SegmentationClass/{photo_id}.png"]
    assert ids_of(out, "val") == ["v3", "v4"]


@pytest.mark.usefixtures("served")
def test_sbd(tmp_path: Path) -> None:
    """SBD's own lists and images are kept, and its MATLAB label maps become palette PNGs."""
    out = tmp_path / "data.h5"
    fetch_data(out, FetchConfig(source="sbd"))
    assert ids_of(out, "train") == ["s2", "v1", "s1", "v3"]
    assert ids_of(out, "val") == ["s3"]
    for photo_id, (_, image, label_map) in contents(out).items():
        assert np.array_equal(decode_label_map(label_map, photo_id), SBD_MAPS[photo_id])
        assert image == photo(60 + list(SBD_MAPS).index(photo_id))
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["sbd.tgz"]


@pytest.mark.usefixtures("served")
def test_trainaug(tmp_path: Path) -> None:
    """Train is VOC's train and SBD's lists less VOC's val; VOC's own label map wins."""
    out = tmp_path / "data.h5"
    fetch_data(out, FetchConfig(source="voc2012+sbd"))
    assert ids_of(out, "train") == ["v1", "v2", "s1", "s2", "s3"]
    assert ids_of(out, "val") == ["v3", "v4"]
    found, voc = contents(out), voc_files(["v1", "v2"], ["v3", "v4"])
    assert found["v1"][2] == voc["SegmentationClass/v1.png"]
    assert np.array_equal(decode_label_map(found["s2"][2], "s2"), SBD_MAPS["s2"])
    assert found["s2"][1] == photo(51), "the image is VOC's"


def test_the_same_bytes_twice(served: Mirror, tmp_path: Path) -> None:
    """Two runs write the same file, whether the archives were downloaded or given."""
    for name, content in served.files.items():
        (tmp_path / name[1:]).write_bytes(content)
    given = [tmp_path / "sbd.tgz", tmp_path / "voc.tar"]
    fetch_data(tmp_path / "a.h5", FetchConfig(source="voc2012+sbd"))
    fetch_data(tmp_path / "b.h5", FetchConfig(source="voc2012+sbd"), archives=given, root=tmp_path / "other")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_archives_are_recognised(served: Mirror, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A given archive is taken by checksum, or with a warning by layout, and nothing is downloaded."""
    exact = write(tmp_path, {"renamed": served.files["/voc.tar"]}) / "renamed"
    fetch_data(tmp_path / "a.h5", FetchConfig(source="voc2012"), archives=[exact])
    assert not caplog.records
    packed = write(tmp_path, {"again.tar.gz": gzip.compress(served.files["/voc.tar"])}) / "again.tar.gz"
    fetch_data(tmp_path / "b.h5", FetchConfig(source="voc2012"), archives=[packed])
    assert "not the published checksum" in caplog.text
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert served.asked == []


def test_wrong_archives(served: Mirror, tmp_path: Path) -> None:
    """Each wrong --archive has its own clear error."""
    files: dict[str, bytes | str] = {
        "voc.tar": served.files["/voc.tar"],
        "sbd.tgz": served.files["/sbd.tgz"],
        "text.tar": "hello",
        "other.tar": tar_bytes({"a/b.txt": "c"}),
        "cut.tar": served.files["/voc.tar"][:-20_000],
    }
    write(tmp_path, files)

    def fetch(source: str, *names: str) -> None:
        fetch_data(tmp_path / "x.h5", FetchConfig(source=source), archives=[tmp_path / name for name in names])

    with pytest.raises(DataError, match=r"sbd\.tgz: is the archive of sbd, expected voc\.tar \(voc2012\)"):
        fetch("voc2012", "sbd.tgz")
    with pytest.raises(DataError, match=r"text\.tar: not a readable tar archive"):
        fetch("voc2012", "text.tar")
    with pytest.raises(DataError, match=r"other\.tar: has the layout of neither"):
        fetch("voc2012", "other.tar")
    with pytest.raises(DataError, match=r"cut\.tar: not a readable tar archive"):
        fetch("voc2012", "cut.tar")
    with pytest.raises(DataError, match="nowhere: no such file"):
        fetch("voc2012", "nowhere")
    with pytest.raises(DataError, match="is a folder"):
        fetch("voc2012", ".")
    with pytest.raises(DataError, match="and so is"):
        fetch("voc2012", "voc.tar", "voc.tar")
    with pytest.raises(SettingError, match="takes no --archive"):
        fetch("sample", "voc.tar")
    assert not (tmp_path / "x.h5").exists()


def special(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    """Return an empty member of some kind."""
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = target
    return member


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "VOCdevkit/VOC2012/JPEGImages/../../../../evil.jpg"])
@pytest.mark.parametrize("source", ["voc2012", "sbd"])
@pytest.mark.usefixtures("served")
def test_hostile_member_names(tmp_path: Path, source: str, name: str) -> None:
    """An archive with an absolute or climbing name is refused, and nothing appears anywhere."""
    content = voc_archive((special(name),))
    if source == "sbd":
        content = tar_bytes({name: b"x", "benchmark_RELEASE/dataset/train.txt": "s1"}, "w:gz")
    path = write(tmp_path / "in", {"hostile.tar": content}) / "hostile.tar"
    with pytest.raises(DataError, match="unsafe member name"):
        fetch_data(tmp_path / "x.h5", FetchConfig(source=source), archives=[path])
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.usefixtures("served")
def test_links_and_giants_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link in place of a photo, or an absurdly large member, counts as a bad file."""
    link = special("VOCdevkit/VOC2012/JPEGImages/v1.jpg", tarfile.SYMTYPE, "/etc/passwd")
    path = write(tmp_path, {"link.tar": voc_archive((link,))}) / "link.tar"
    with pytest.raises(DataError, match=r"JPEGImages/v1\.jpg is a link.*only bad one of 4.*--skip-bad"):
        fetch_data(tmp_path / "x.h5", FetchConfig(source="voc2012"), archives=[path])
    monkeypatch.setattr(archives, "MAX_MEMBER", 100)
    with pytest.raises(DataError, match="bytes, more than the 100 accepted"):
        fetch_data(tmp_path / "x.h5", FetchConfig(source="voc2012"))


@pytest.mark.usefixtures("served")
def test_broken_mat_is_a_bad_file(tmp_path: Path) -> None:
    """A MATLAB file that cannot be read, or holds no label map, is named and can be left out."""
    files: dict[str, bytes | str] = {
        "benchmark_RELEASE/dataset/train.txt": "a\nb\nc\nd\n",
        "benchmark_RELEASE/dataset/val.txt": "",
        "benchmark_RELEASE/dataset/cls/a.mat": mat(classes_of(0) % 21),
        "benchmark_RELEASE/dataset/cls/b.mat": b"MATLAB 5.0 MAT-file, or not",
        "benchmark_RELEASE/dataset/cls/c.mat": mat(np.zeros((2, 3, 4), np.uint8)),
        "benchmark_RELEASE/dataset/cls/d.mat": mat(np.full((HEIGHT, WIDTH), 300, np.int16)),
        **{f"benchmark_RELEASE/dataset/img/{photo_id}.jpg": photo(0) for photo_id in "abcd"},
    }
    path = write(tmp_path, {"sbd.tgz": tar_bytes(files, "w:gz")}) / "sbd.tgz"
    with pytest.raises(DataError, match=r"dataset/cls/b\.mat: no readable GTcls.*3 bad files in all among 4"):
        fetch_data(tmp_path / "x.h5", FetchConfig(source="sbd"), archives=[path])
    summary = fetch_data(tmp_path / "x.h5", FetchConfig(source="sbd", skip_bad=True), archives=[path])
    assert (summary.train, summary.val) == (1, 0)
    assert [name for name, _ in summary.skipped] == [f"dataset/cls/{photo_id}.mat" for photo_id in "bcd"]


@pytest.mark.usefixtures("served")
def test_limit_copies_only_what_is_needed(tmp_path: Path) -> None:
    """--limit on a compressed archive reads only the chosen images."""
    out = tmp_path / "data.h5"
    fetch_data(out, FetchConfig(source="sbd", limit=2))
    assert ids_of(out, "train") == ["s2"]
    assert ids_of(out, "val") == ["s3"]


# --- folders ----------------------------------------------------------------------------------------------------------


def folder(root: Path, out: Path, **settings: object) -> FetchSummary:
    """Import a folder."""
    config = replace(FetchConfig(source="folder"), **settings)  # type: ignore[arg-type]
    return fetch_data(out, config, root=root)


@pytest.mark.parametrize("inside", ["", "VOC2012", "VOCdevkit/VOC2012", "some/where/else"])
def test_folder_is_found(tmp_path: Path, inside: str) -> None:
    """--root may be the data set's folder or one above it; lists and bytes are kept."""
    files = voc_files(["b", "a"], ["c"], extra=("unlisted",))
    write(tmp_path / "root" / inside, files)
    out = tmp_path / "data.h5"
    summary = folder(tmp_path / "root", out)
    assert summary == FetchSummary(out, "folder", VOC_NAMES, 2, 1, ())
    assert ids_of(out, "train") == ["b", "a"]
    for photo_id, (_, image, label_map) in contents(out).items():
        assert image == files[f"JPEGImages/{photo_id}.jpg"]
        assert label_map == files[f"SegmentationClass/{photo_id}.png"]


def test_images_and_masks(tmp_path: Path) -> None:
    """images/ beside masks/ needs classes.txt; suffixes may be of any case; what is no JPEG or PNG becomes PNG."""
    tif, bmp = photo(3, suffix="TIFF"), io.BytesIO()
    Image.fromarray(classes_of(3, top=2)).save(bmp, format="BMP")
    root = write(
        tmp_path / "root",
        {
            "images/a.JPG": photo(1), "images/b.Png": photo(2, suffix="PNG"), "images/c.tif": tif,
            "images/notes.txt": "", "images/.hidden.jpg": b"",
            "masks/a.png": label_png(1, top=2), "masks/b.PNG": label_png(2, top=2), "masks/c.bmp": bmp.getvalue(),
            "train.txt": "a.JPG\n\nb\n", "val.txt": "\ufeffc\r\n",
        },
    )  # fmt: skip
    out = tmp_path / "data.h5"
    with pytest.raises(DataError, match=r"classes\.txt: no such file; write the class names"):
        folder(root, out)
    write(root, {"classes.txt": "background\r\ncat\r\n\r\n"})
    assert folder(root, out).names == ("background", "cat")
    found = contents(out)
    assert found["a"][1] == photo(1)
    assert found["b"][1] == photo(2, suffix="PNG")
    assert found["c"][1].startswith(b"\x89PNG")
    assert np.array_equal(decode_image(found["c"][1], "c"), decode_image(tif, "c"))
    assert np.array_equal(decode_label_map(found["c"][2], "c"), classes_of(3, top=2))
    assert [found[photo_id][0] for photo_id in "abc"] == ["train", "train", "val"]


@pytest.mark.parametrize("which", ["train", "val"])
def test_one_list_is_missing(tmp_path: Path, which: str) -> None:
    """The list that is there is kept, and the other partition is empty."""
    ids = ["a", "b"]
    files = voc_files(ids if which == "train" else None, ids if which == "val" else None, extra=("c",))
    summary = folder(write(tmp_path / "root", files), tmp_path / "data.h5")
    assert (summary.train, summary.val) == ((2, 0) if which == "train" else (0, 2))


def test_without_lists_a_seeded_split(tmp_path: Path) -> None:
    """With neither list every image is split by the seed; trainval.txt narrows what is split."""
    everything = [f"p{number}" for number in range(10)]
    root = write(tmp_path / "root", voc_files(None, None, extra=tuple(everything)))
    outs = [tmp_path / f"{number}.h5" for number in range(4)]
    assert folder(root, outs[0], val_fraction=0.3).val == 3
    folder(root, outs[1], val_fraction=0.3)
    folder(root, outs[2], val_fraction=0.3, seed=1)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert ids_of(outs[0], "val") != ids_of(outs[2], "val")
    assert sorted(contents(outs[0])) == everything
    write(root, {"ImageSets/Segmentation/trainval.txt": "p1\np2\np3\n"})
    summary = folder(root, outs[3], val_fraction=0.01)
    assert (summary.train, summary.val) == (2, 1)


def test_exif_orientation_counts(tmp_path: Path) -> None:
    """A turned photo fits a label map of its upright size, and its own bytes are kept."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = photo(0, size=(WIDTH, HEIGHT), exif=exif)
    files = voc_files(["a"], []) | {"JPEGImages/a.jpg": turned}
    assert folder(write(tmp_path / "root", files), tmp_path / "data.h5").train == 1
    assert contents(tmp_path / "data.h5")["a"][1] == turned


ListedFiles = dict[str, bytes | str]
JPEG_LABEL = photo(1, suffix="JPEG")
RGB_LABEL = photo(1, suffix="PNG")
BAD: dict[str, tuple[Callable[[ListedFiles], object], str, str]] = {
    "no image": (lambda f: f.pop("JPEGImages/b.jpg"), "JPEGImages/b", "no image with this id"),
    "no label map": (lambda f: f.pop("SegmentationClass/b.png"), "SegmentationClass/b", "no label map with this id"),
    "no photo at all": (lambda f: f.update({"JPEGImages/b.jpg": "hello"}), "JPEGImages/b.jpg", "not a readable image"),
    "truncated": (
        lambda f: f.update({"JPEGImages/b.jpg": photo(1, size=(90, 90))[:-900]}),
        "JPEGImages/b.jpg",
        "not a readable image",
    ),
    "broken label map": (
        lambda f: f.update({"SegmentationClass/b.png": b"\x89PNG"}),
        "SegmentationClass/b.png",
        "not a readable image",
    ),
    "another size": (
        lambda f: f.update({"SegmentationClass/b.png": encode_label_map(np.zeros((WIDTH, HEIGHT), np.uint8))}),
        "SegmentationClass/b.png",
        "label map of 6×9 pixels, expected the image's 9×6",
    ),
    "index out of range": (
        lambda f: f.update({"SegmentationClass/b.png": encode_label_map(np.full((HEIGHT, WIDTH), 21, np.uint8))}),
        "SegmentationClass/b.png",
        "holds class id 21, expected 0 to 20 for the 21 classes, or 255 for void",
    ),
    "colours": (
        lambda f: f.update({"SegmentationClass/b.png": RGB_LABEL}),
        "SegmentationClass/b.png",
        "label map of mode RGB",
    ),
    "lossy": (
        lambda f: (f.pop("SegmentationClass/b.png"), f.update({"SegmentationClass/b.jpg": JPEG_LABEL})),
        "SegmentationClass/b.jpg",
        "does not keep class ids",
    ),
    "two files of one id": (
        lambda f: f.update({"JPEGImages/b.png": RGB_LABEL}),
        "JPEGImages/b.png",
        "has the same id as b.jpg",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path: Path, case: str) -> None:
    """A bad file stops the import by name with nothing written, or is left out and counted."""
    change, name, reason = BAD[case]
    files = voc_files(["a", "b"], ["c"])
    change(files)
    root, out = write(tmp_path / "root", files), tmp_path / "out" / "data.h5"
    with pytest.raises(DataError) as caught:
        folder(root, out)
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert reason in message
    assert "only bad one of 3" in message
    assert "--skip-bad" in message
    assert list(out.parent.iterdir()) == []
    summary = folder(root, out, skip_bad=True)
    assert (summary.train, summary.val) == (1, 1)
    assert [bad for bad, _ in summary.skipped] == [name]
    assert reason in summary.skipped[0][1]
    assert list(contents(out)) == ["a", "c"]


def test_the_first_of_many_bad_files(tmp_path: Path) -> None:
    """The error names the first bad file in list order and how many there are, and an old artifact stays."""
    ids = [f"p{number:02}" for number in range(30)]
    files = voc_files(ids, [])
    files |= {f"JPEGImages/{photo_id}.jpg": b"" for photo_id in ids[5:]}
    out = tmp_path / "data.h5"
    out.write_bytes(b"old")
    root = write(tmp_path / "root", files)
    with pytest.raises(ArtifactError, match="exists already"):
        folder(root, out)
    with pytest.raises(DataError, match=r"JPEGImages/p05\.jpg: .*25 bad files in all among 30 images"):
        fetch_data(out, FetchConfig(source="folder"), root=root, force=True)
    assert out.read_bytes() == b"old"


def test_no_usable_file(tmp_path: Path) -> None:
    """With skip_bad and nothing left there is an error, not an empty artifact."""
    root = write(tmp_path / "root", voc_files(["a"], []) | {"JPEGImages/a.jpg": b""})
    with pytest.raises(DataError, match="none of the 1 files can be used"):
        folder(root, tmp_path / "data.h5", skip_bad=True)
    assert not (tmp_path / "data.h5").exists()


def test_duplicate_ids(tmp_path: Path) -> None:
    """An id listed twice is reported by list; left out, it is kept once, and in val where it is in both lists."""
    files = voc_files(["a", "b"], ["c"]) | {"ImageSets/Segmentation/train.txt": "a\nb\na\nc\n"}
    root, out = write(tmp_path / "root", files), tmp_path / "data.h5"
    with pytest.raises(DataError, match=r"train\.txt: id 'c' is also in ImageSets/Segmentation/val\.txt; 2 bad files"):
        folder(root, out)
    summary = folder(root, out, skip_bad=True)
    assert [(row[0], photo_id) for photo_id, row in contents(out).items()] == [
        ("train", "a"), ("train", "b"), ("val", "c"),
    ]  # fmt: skip
    assert "id 'a' is listed twice" in [reason for _, reason in summary.skipped]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("background\ncat\ncat\n", r"classes\.txt: 'cat' is on lines 2 and 3"),
        ("background\n\ncat\n", r"classes\.txt: line 2 is empty"),
        ("", r"classes\.txt: line 1 is empty"),
        ("\n".join(f"c{number}" for number in range(256)), r"classes\.txt: 256 classes, expected at most 255"),
        (b"caf\xe9\n", r"classes\.txt: not UTF-8 text"),
    ],
)
def test_bad_class_files(tmp_path: Path, text: bytes | str, match: str) -> None:
    """A class file that cannot be used is an error that skip_bad does not silence."""
    root = write(tmp_path / "root", voc_files(["a"], []) | {"classes.txt": text})
    with pytest.raises(DataError, match=match):
        folder(root, tmp_path / "data.h5", skip_bad=True)


def test_wrong_folders(tmp_path: Path) -> None:
    """A missing folder, one of another layout and one that lists nothing each say what was expected."""
    with pytest.raises(DataError, match=r"nowhere: no such folder.*--root"):
        folder(tmp_path / "nowhere", tmp_path / "x.h5")
    write(tmp_path / "flat", {"a.jpg": photo(0)})
    with pytest.raises(DataError, match="holds neither JPEGImages/ and SegmentationClass/ nor images/ and masks/"):
        folder(tmp_path / "flat", tmp_path / "x.h5")
    with pytest.raises(DataError, match="lists no image"):
        folder(write(tmp_path / "empty", voc_files([], []) | voc_files(None, None, extra=("a",))), tmp_path / "x.h5")


def test_limit_keeps_proportion(tmp_path: Path) -> None:
    """--limit takes an even sample of both partitions, at least one of each."""
    train, val = [f"t{number:02}" for number in range(16)], [f"v{number}" for number in range(4)]
    root = write(tmp_path / "root", voc_files(train, val))
    kept = {}
    for limit in (2, 5, 10, 20, 99):
        out = tmp_path / f"{limit}.h5"
        folder(root, out, limit=limit)
        kept[limit] = (ids_of(out, "train"), ids_of(out, "val"))
    assert {limit: (len(a), len(b)) for limit, (a, b) in kept.items()} == {
        2: (1, 1), 5: (4, 1), 10: (8, 2), 20: (16, 4), 99: (16, 4),
    }  # fmt: skip
    assert kept[5][0] == ["t00", "t04", "t08", "t12"]
    with pytest.raises(SettingError, match=r"--limit 1: .*expected 2 or more"):
        folder(root, tmp_path / "x.h5", limit=1)
    with pytest.raises(SettingError, match="--limit 0: expected 1 or more"):
        folder(root, tmp_path / "x.h5", limit=0)


def test_settings(tmp_path: Path) -> None:
    """A misspelt source is an error with a suggestion, and a folder needs --root."""
    with pytest.raises(SettingError, match=r"'voc2021': no such source.*did you mean voc2012"):
        fetch_data(tmp_path / "x.h5", FetchConfig(source="voc2021"))
    with pytest.raises(SettingError, match="name it with --root DIR"):
        fetch_data(tmp_path / "x.h5", FetchConfig(source="folder"))
    with pytest.raises(SettingError, match=r"val_fraction 1\.0"):
        folder(tmp_path, tmp_path / "x.h5", val_fraction=1.0)


def test_warning_filters_survive_the_threads(tmp_path: Path) -> None:
    """Decoding in threads leaves the warning filters as they were."""
    import warnings

    before = list(warnings.filters)
    folder(write(tmp_path / "root", voc_files([f"p{n}" for n in range(40)], [])), tmp_path / "data.h5")
    assert warnings.filters == before


# --- the sample and vectors -------------------------------------------------------------------------------------------


def test_sample_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator's scenes are stored as PNG, the first TRAIN_COUNT as train, and --limit thins them evenly."""

    def scenes(count: int, seed: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        for number in range(count):
            rng = np.random.default_rng((seed, number))
            yield f"scene{number}", rng.integers(0, 256, (5, 7, 3), np.uint8), rng.integers(0, 2, (5, 7), np.uint8)

    fake = types.SimpleNamespace(TRAIN_COUNT=4, VAL_COUNT=2, names=lambda: ("a", "b"), scenes=scenes)
    monkeypatch.setattr("zsseg.sample", fake, raising=False)
    monkeypatch.setitem(__import__("sys").modules, "zsseg.sample", fake)
    out = tmp_path / "data.h5"
    assert fetch_data(out, FetchConfig(seed=3)) == FetchSummary(out, "sample", ("a", "b"), 4, 2, ())
    found = contents(out)
    for photo_id, image, label_map in scenes(6, 3):
        assert np.array_equal(decode_image(found[photo_id][1], "x"), image)
        assert np.array_equal(decode_label_map(found[photo_id][2], "x"), label_map)
    fetch_data(tmp_path / "few.h5", FetchConfig(seed=3, limit=3))
    assert list(contents(tmp_path / "few.h5")) == ["scene0", "scene2", "scene4"]


@pytest.fixture
def vectors(mirror: Mirror, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Mirror:
    """Serve small vector files."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as members:
        for dim in (50, 100, 200, 300):
            members.writestr(f"glove.6B.{dim}d.txt", f"the {dim}\n" * dim)
    mirror.files = {"/w.gz": gzip.compress(b"1 1\ncow \0\0\0\0"), "/g.zip": packed.getvalue()}
    entry = published(mirror.files["/w.gz"], f"{mirror.address}/w.gz", file="GoogleNews-vectors-negative300.bin.gz")
    glove = published(mirror.files["/g.zip"], f"{mirror.address}/g.zip", file="glove.6B.zip", algorithm="sha256")
    monkeypatch.setattr(downloads, "DOWNLOADS", {"word2vec-google-news-300": entry, "glove-6b": glove})
    monkeypatch.setenv("ZSSEG_CACHE", str(tmp_path / "cache"))
    return mirror


def test_word2vec(vectors: Mirror, tmp_path: Path) -> None:
    """The file lies in the cache under the name that embed-labels looks for."""
    path = fetch_vectors("word2vec-google-news-300")
    assert path == tmp_path / "cache" / "vectors" / "GoogleNews-vectors-negative300.bin.gz"
    assert path.read_bytes() == vectors.files["/w.gz"]


def test_glove(vectors: Mirror, tmp_path: Path) -> None:
    """The three larger GloVe sets are unpacked, the archive goes, and a second run asks for nothing."""
    place = fetch_vectors("glove-6b", root=tmp_path / "here")
    assert sorted(path.name for path in place.iterdir()) == [f"glove.6B.{dim}d.txt" for dim in (100, 200, 300)]
    assert (place / "glove.6B.200d.txt").read_text() == "the 200\n" * 200
    assert fetch_vectors("glove-6b-300d", root=place) == place / "glove.6B.300d.txt"
    assert len(vectors.asked) == 1


def test_vectors_that_cannot_be_had(vectors: Mirror, tmp_path: Path) -> None:
    """A misspelt name is suggested, a dead mirror says how else, and a damaged archive leaves no half file."""
    with pytest.raises(SettingError, match="did you mean glove-6b"):
        fetch_vectors("glove-6")
    vectors.files.pop("/w.gz")
    with pytest.raises(DataError, match="HTTP 404"):
        fetch_vectors("word2vec-google-news-300")
    content = vectors.files["/g.zip"] = tar_bytes({"no": "zip"})
    downloads.DOWNLOADS["glove-6b"] = published(content, f"{vectors.address}/g.zip", file="glove.6B.zip")
    with pytest.raises(DataError, match="not a readable zip archive"):
        fetch_vectors("glove-6b", root=tmp_path / "here")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["glove.6B.zip"]


# --- real photos ------------------------------------------------------------------------------------------------------


def test_real_photos(data_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Real VOC photos come through unchanged, found below the folder that is named."""
    caplog.set_level(logging.INFO)
    root = data_root / "voc-animals"
    summary = folder(root, tmp_path / "data.h5", limit=30)
    assert (summary.names, summary.train, summary.val) == (VOC_NAMES, 28, 2)
    for photo_id, (_, image, _) in contents(tmp_path / "data.h5").items():
        assert image == (root / "VOC2012" / "JPEGImages" / f"{photo_id}.jpg").read_bytes()


def test_lists_take_file_names() -> None:
    """A list may give file names; ids with a dot that is no image suffix stay whole."""
    assert sources.lines("a.jpg\n b.PNG \n\nv1.2\n.png\n") == ("a", "b", "v1.2", ".png")
