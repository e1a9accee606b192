"""What paths of a stranger's table may have read: below their root, and what is allowed."""

import os
import pickle
from pathlib import Path

import pytest

from shards import durable
from shards.source import Table
from shards.source.reach import Outside, Reach
from shards.source.source import NoImage
from shards.writing.write import write

SECRET = b"root:x:0:0"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with an image, beside a secret and another folder of images."""
    (tmp_path / "secret").write_bytes(SECRET)
    for name in ("root/in", "other", "root2"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.jpg").write_bytes(name.encode())
    root = tmp_path / "root"
    (root / "in" / "up").symlink_to("..")
    (root / "out").symlink_to(tmp_path / "other")
    (root / "link.jpg").symlink_to(tmp_path / "secret")
    (root / "chain.jpg").symlink_to("link.jpg")
    (root / "environ.jpg").symlink_to("/proc/self/environ")
    (tmp_path / "alias").symlink_to(root)
    return root


def test_what_is_below_the_root_is_read_by_any_name(root: Path):
    for reach in (Reach(str(root), None), Reach(f"file://{root}", None)):
        for path in (
            *("in/a.jpg", "in/../in/a.jpg", "in/up/in/a.jpg", f"{root}/in/a.jpg"),
            *(f"file://{root}/in/a.jpg", f"{root.parent}/alias/in/a.jpg", f"{root}//in/./a.jpg"),
        ):
            reach.check(path)
            assert reach.read(path) == b"root/in"
    through = pickle.loads(pickle.dumps(Reach(str(root.parent / "alias"), None)))
    assert through.read("in/a.jpg") == through.read(f"{root}/in/a.jpg") == b"root/in"
    with through.open("in/a.jpg") as file:
        assert file.read() == b"root/in"


@pytest.mark.parametrize(
    "path",
    [
        *("../secret", "in/../../secret", "in/up/../secret", "/etc/hostname", "/etc/passwd"),
        *("../root2/a.jpg", "file:///etc/hostname", "local:///etc/hostname", "file://etc/hostname"),
        *("http://127.0.0.1/x", "HTTP://127.0.0.1/x", "s3://bucket/x.jpg", "memory://x"),
        *("simplecache::file:///etc/hostname", "zip://a::file:///x.zip", "FILE:///etc/hostname"),
    ],
)
def test_what_leads_outside_is_refused_at_once_and_the_flag_is_named(root: Path, path: str):
    reach = Reach(str(root), None)
    for act in (reach.check, reach.read, reach.open):
        with pytest.raises(Outside, match=r"is not below .*--allow_outside "):
            act(path)


@pytest.mark.parametrize("path", ["link.jpg", "chain.jpg", "out/a.jpg", "in/up/link.jpg"])
def test_links_are_followed_before_it_is_judged(root: Path, path: str):
    with pytest.raises(Outside, match=r"leads to .*is not below"):
        Reach(str(root), None).read(path)


def test_what_is_allowed_is_read_and_no_more(root: Path):
    reach = Reach(str(root), [f"{root.parent}/other"])
    assert reach.read("out/a.jpg") == reach.read(f"{root.parent}/other/a.jpg") == b"other"
    for path in ("link.jpg", "../secret", "../root2/a.jpg", "../other/../secret"):
        with pytest.raises(Outside):
            reach.read(path)
    assert Reach(str(root), "/").read("link.jpg") == SECRET
    with pytest.raises(ValueError, match="allow_outside holds an empty name"):
        Reach(str(root), "")


@pytest.mark.parametrize(
    "path",
    [
        *("/proc/self/environ", "/proc/cpuinfo", "/sys/kernel/uevent_seqnum", "/dev/null"),
        *("/dev/zero", "environ.jpg", "/etc/../proc/self/environ", "file:///proc/self/environ"),
        *("/proc/self/root/proc/version", "/dev/stdin"),
    ],
)
def test_nothing_allows_files_of_the_kernel(root: Path, path: str):
    for reach in (Reach(str(root), "/"), Reach("/", ["/proc", "/dev", "/sys"])):
        with pytest.raises(Outside, match="belongs to the system"):
            reach.read(path if path.startswith(("/", "file:")) else f"{root}/{path}")


def test_a_folder_in_memory_is_a_folder(tmp_path: Path):
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no /dev/shm here")
    place = Path(f"/dev/shm/viewrank-test-{os.getpid()}")
    place.mkdir()
    try:
        (place / "a.jpg").write_bytes(b"image")
        assert Reach(str(place), None).read("a.jpg") == b"image"
        with pytest.raises(Outside):
            Reach(str(tmp_path), None).read(str(place / "a.jpg"))
    finally:
        (place / "a.jpg").unlink()
        place.rmdir()


def test_pipes_and_links_into_proc_are_opened_by_nobody(root: Path):
    os.mkfifo(root / "pipe.jpg")
    for name in ("pipe.jpg", "environ.jpg"):
        with pytest.raises(OSError, match="not a regular file"):
            durable.read(root / name)
    with pytest.raises(OSError, match="not a regular file"):
        Reach(str(root), None).read("pipe.jpg")


def test_a_path_that_is_none_is_no_image(root: Path):
    with pytest.raises(NoImage, match="zero byte"):
        Reach(str(root), None).read("a\0.jpg")


def test_a_store_is_left_by_no_step_up_and_by_no_other_name():
    import fsspec

    files = fsspec.filesystem("memory")
    for name in ("/bucket/images/a.jpg", "/bucket/secret", "/bucket/images2/a.jpg", "/more/b.jpg"):
        files.pipe_file(name, name.encode())
    reach = Reach("memory://bucket/images", None)
    assert reach.read("a.jpg") == reach.read("memory://bucket/images/a.jpg")
    for path in (
        *("../secret", "memory://bucket/secret", "memory://bucket/images/../secret"),
        *("%2e%2e/secret", "%252e%252e/secret", r"..\secret", "memory://bucket/images2/a.jpg"),
        *("memory://bucket/images/x::memory://bucket/secret", "s3://bucket/images/a.jpg"),
        *("/etc/hostname", "memory://bucket/images"),
    ):
        with pytest.raises(Outside):
            reach.read(path)
    more = Reach("memory://bucket/images", ["memory://more"])
    assert more.read("memory://more/b.jpg") == b"/more/b.jpg"
    anything = Reach("/nowhere", "memory://")
    assert anything.read("memory://bucket/secret") == b"/bucket/secret"
    with pytest.raises(Outside, match="--allow_outside s3://other:"):
        anything.read("s3://other/x")


def test_no_byte_of_elsewhere_gets_into_a_shard_set(class_folders, tmp_path: Path):
    root = class_folders(classes=1, per_class=4)
    images = sorted(path.relative_to(root) for path in root.rglob("*.*"))
    (tmp_path / "secret").write_bytes(SECRET)
    (root / "link.jpg").symlink_to(tmp_path / "secret")
    (root / "environ.jpg").symlink_to("/proc/self/environ")
    rows = ["path", *map(str, images), "link.jpg", "environ.jpg"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    out = tmp_path / "out"
    shard_set = write(Table(root=root, table=tmp_path / "t.csv"), out, max_missing=1)
    account = shard_set.manifest.account
    assert (account.written, account.quarantined) == (4, 2)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert [path.name for path in out.glob("quarantine/**/*") if path.is_file()] == [
        "reasons.jsonl"
    ]
    assert not any(SECRET in path.read_bytes() or b"PATH=" in path.read_bytes() for path in files)
    for evil in ("../secret", str(tmp_path / "secret"), "/proc/self/environ", "http://127.0.0.1/"):
        (tmp_path / "t.csv").write_text("\n".join([*rows, evil]))
        with pytest.raises(ValueError, match=rf"t\.csv, row 7: {evil} (is|leads) "):
            Table(root=root, table=tmp_path / "t.csv")


def test_a_path_with_line_breaks_is_refused_in_a_line(root: Path):
    (root / "t.csv").write_text('path\n"../a\nb\x1b[2J.jpg"\n')
    with pytest.raises(ValueError, match=r"row 1: \.\./a\\nb\\x1b\[2J") as error:
        Table(table=root / "t.csv")
    assert str(error.value).isprintable()


def test_a_table_all_of_whose_images_are_links_is_told_the_flag(root: Path):
    (root / "t.csv").write_text("path\nlink.jpg\nout/a.jpg\n")
    with pytest.raises(ValueError, match=r"link\.jpg leads to .*--allow_outside "):
        Table(table=root / "t.csv")
    opened = Table(table=root / "t.csv", allow_outside=[str(root.parent / "other")])
    assert opened[1].image == b"other"
