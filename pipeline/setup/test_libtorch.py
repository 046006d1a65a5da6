"""What `libtorch.unpack` refuses: python3 -m unittest discover -s pipeline/setup (run by `cargo test` too)."""

import io
import pathlib
import re
import tempfile
import unittest
import unittest.mock
import zipfile

import libtorch

MEMBERS = {"torch/include/": "include", "torch/lib/libc10.so": "lib"}


def wheel(folder, members):
    path = folder / "torch.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            archive.writestr(info, data, zipfile.ZIP_DEFLATED)
    return path


class Unpacking(unittest.TestCase):
    def setUp(self):
        self.home = tempfile.TemporaryDirectory()
        self.addCleanup(self.home.cleanup)
        self.folder = pathlib.Path(self.home.name)
        self.view = self.folder / "inside" / "view"

    def unpack(self, *members):
        libtorch.unpack(wheel(self.folder, members), MEMBERS, self.view)

    def files(self):
        return sorted(str(f.relative_to(self.folder)) for f in self.folder.rglob("*") if f.is_file())

    def refused(self, said, *members):
        with self.assertRaises(SystemExit) as stopped:
            self.unpack(("torch/include/first.h", b"first"), *members)
        self.assertIn(said, str(stopped.exception))
        self.assertIn("nothing was kept", str(stopped.exception))
        self.assertEqual(self.files(), ["torch.whl"])

    def test_wanted_members_are_unpacked_and_no_others(self):
        self.unpack(("torch/include/a/b.h", b"b"), ("torch/lib/libc10.so", b"c"), ("../x", b"x"), ("/x", b"x"),
                    ("torch/lib/libc10.so.bak", b"x"), ("torch/includes/y", b"y"))
        self.assertEqual(self.files(), ["inside/view/include/a/b.h", "inside/view/lib/libc10.so", "torch.whl"])

    def test_names_that_lead_out_are_refused(self):
        for name in ["torch/include/../../x", "torch/include//tmp/x", "torch/include/./x", "torch/include/a\\..\\x"]:
            self.refused("leads out of its folder", (name, b"x"))

    def test_links_are_refused(self):
        link = zipfile.ZipInfo("torch/include/link")
        link.external_attr = 0o120777 << 16
        self.refused("is a link", (link, b"/etc/passwd"))

    def test_a_bomb_is_refused_before_anything_is_written(self):
        most, libtorch.MOST_UNPACKED = libtorch.MOST_UNPACKED, 1 << 20
        try:
            self.refused("over 1048576 bytes", ("torch/include/zeros", bytes(1 << 21)))
        finally:
            libtorch.MOST_UNPACKED = most

    def test_a_member_that_is_longer_than_it_says_is_an_error(self):
        path = wheel(self.folder, [("torch/include/zeros", bytes(1 << 16))])
        data = bytearray(path.read_bytes())
        # The size in the central directory is what is counted.
        at = data.rindex(b"PK\x01\x02") + 24
        data[at:at + 4] = (100).to_bytes(4, "little")
        with self.assertRaises(zipfile.BadZipFile):
            with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
                archive.filename = str(path)
                for member, _ in libtorch.chosen(archive, MEMBERS):
                    self.assertLessEqual(len(archive.open(member).read()), 100)


class Machines(unittest.TestCase):
    def test_every_machine_has_pinned_wheels_and_the_libraries_to_link(self):
        for (system, machine), (platforms, wheels) in libtorch.MACHINES.items():
            with self.subTest(system=system, machine=machine):
                self.assertTrue(all(tag.endswith("_" + machine) for tag in platforms), platforms)
                self.assertTrue(all(re.fullmatch("[0-9a-f]{64}", digest) for _, _, digest, _ in wheels))
                names = {member.rpartition("/")[2] for *_, members in wheels for member in members}
                ending = "dylib" if system == "Darwin" else "so"
                self.assertLessEqual({f"libtorch_cpu.{ending}", f"libc10.{ending}"}, names)

    def test_a_machine_without_wheels_is_told_what_to_do(self):
        with unittest.mock.patch("libtorch.this_machine", return_value=("Plan9", "mips")):
            with self.assertRaises(SystemExit) as stopped:
                libtorch.check_machine(pathlib.Path("/nowhere"))
        for part in ["Plan9 mips", "Linux aarch64", "set LIBTORCH"]:
            self.assertIn(part, str(stopped.exception))


if __name__ == "__main__":
    unittest.main()
