"""The hardware string: three real-life trees, what must not change it, and what must."""

import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from azaion_loader.errors import MisconfiguredDevice
from azaion_loader.hardware_service import HardwareService

TREES = Path(__file__).parents[1] / "vectors" / "hardware"
EXPECTED = {
    "jetson-orin": "CPU: ARM implementer 0x41 part 0xd42. GPU: nvidia,ga10b. Memory: 33554432. "
    "DriveSerial: S6B0NL0T512345",
    "rk3588": "CPU: ARM implementer 0x41 part 0xd05. GPU: arm,mali-bifrost. Memory: 16777216. DriveSerial: 0x5a1b2c3d",
    "pc": "CPU: Intel(R) Core(TM) i7-8700 CPU @ 3.20GHz. GPU: 10de:2204+8086:3e92. Memory: 16777216. "
    "DriveSerial: WD-WCC6Y7ABCDEF",
}
ALL = sorted(EXPECTED)
Tree = Callable[[str], Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Give a copy of a sample tree that a test may change."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(TREES / name, tmp_path / name, symlinks=True))

    return copy


def text_of(root: Path) -> str:
    return HardwareService(root).hardware_string()


def edit(path: Path, pattern: str, replacement: str) -> None:
    before = path.read_text()
    after = re.sub(pattern, replacement, before)
    assert after != before
    path.write_text(after)


def move(link: Path, name: str) -> None:
    link.rename(link.with_name(name))


@pytest.mark.parametrize("name", ALL)
def test_sample_trees(name: str) -> None:
    assert text_of(TREES / name) == EXPECTED[name]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("lost_kb", [-40_000, 12_345, 200_000, 700_000])
def test_another_kernel_reserve_changes_nothing(tree: Tree, name: str, lost_kb: int) -> None:
    root = tree(name)
    total = int(re.findall(r"MemTotal:\s+(\d+)", (root / "proc/meminfo").read_text())[0])
    edit(root / "proc/meminfo", r"MemTotal:\s+\d+", f"MemTotal: {total - lost_kb}")
    (root / "proc/zoneinfo").unlink(missing_ok=True)
    assert text_of(root) == EXPECTED[name]


@pytest.mark.parametrize("name", ["rk3588", "pc"])
def test_a_container_limit_shown_as_total_memory_changes_nothing(tree: Tree, name: str) -> None:
    if os.sysconf("SC_PAGE_SIZE") != 4096:
        pytest.skip("the sample counts pages of 4096 bytes")
    root = tree(name)
    edit(root / "proc/meminfo", r"MemTotal:\s+\d+", "MemTotal:        2097152")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/memory.max").write_text("2147483648\n")
    assert text_of(root) == EXPECTED[name]


@pytest.mark.parametrize("name", ["jetson-orin", "rk3588"])
def test_a_container_that_hides_the_device_tree_changes_nothing(tree: Tree, name: str) -> None:
    root = tree(name)
    shutil.rmtree(root / "proc/device-tree")
    assert text_of(root) == EXPECTED[name]


def test_a_renamed_board_and_sleeping_cores_change_nothing(tree: Tree) -> None:
    root = tree("rk3588")
    (root / "proc/device-tree/model").write_bytes(b"Radxa ROCK 5 Model B\0")
    lines = (root / "proc/cpuinfo").read_text().split("\n\n")
    (root / "proc/cpuinfo").write_text("\n\n".join(lines[:2]) + "\n")
    assert text_of(root) == EXPECTED["rk3588"]


def test_the_core_register_and_cpuinfo_agree(tree: Tree) -> None:
    root = tree("jetson-orin")
    shutil.rmtree(root / "sys/devices/system/cpu")
    assert text_of(root) == EXPECTED["jetson-orin"]


def test_a_microcode_update_changes_nothing(tree: Tree) -> None:
    root = tree("pc")
    edit(root / "proc/cpuinfo", "0xf4", "0xfa")
    assert text_of(root) == EXPECTED["pc"]


def test_usb_sticks_and_virtual_disks_are_never_taken(tree: Tree) -> None:
    root = tree("pc")
    (root / "sys/block/sda").unlink()
    (root / "sys/block/sdb").unlink()
    assert text_of(root).endswith("DriveSerial: unknown")


def test_a_usb_bridge_that_speaks_ata_is_never_taken(tree: Tree) -> None:
    root = tree("pc")
    bridge = root / "sys/devices/pci0000:00/0000:00:14.0/usb1/1-5/ata9/host9"
    (bridge / "block/sdd").mkdir(parents=True)
    (bridge / "vpd_pg80").write_bytes(b"\0\x80\0\x04AAAA")
    (bridge / "block/sdd/device").symlink_to("../..")
    (root / "sys/block/sda").unlink()
    (root / "sys/block/sdb").unlink()
    (root / "sys/block/sdd").symlink_to(bridge / "block/sdd")
    assert text_of(root).endswith("DriveSerial: unknown")


def test_disks_found_in_another_order_change_nothing(tree: Tree) -> None:
    root = tree("pc")
    block = root / "sys/block"
    move(block / "sda", "old")
    move(block / "sdb", "sda")
    move(block / "sdc", "sdb")
    move(block / "old", "sdc")
    assert text_of(root) == EXPECTED["pc"]


def test_nvme_disks_found_in_another_order_change_nothing(tree: Tree) -> None:
    root = tree("jetson-orin")
    second = root / "sys/devices/platform/bus@0/141a0000.pcie/pci0005:00/0005:00:00.0/0005:01:00.0/nvme/nvme0"
    second.mkdir(parents=True)
    (second / "serial").write_text("AAAA-SECOND\n")
    (second / "transport").write_text("pcie\n")
    classes = root / "sys/class/nvme"
    move(classes / "nvme0", "nvme1")
    (classes / "nvme0").symlink_to(second)
    assert text_of(root) == EXPECTED["jetson-orin"]


def test_graphics_cards_found_in_another_order_change_nothing(tree: Tree) -> None:
    root = tree("pc")
    devices = root / "sys/bus/pci/devices"
    move(devices / "0000:00:02.0", "0000:09:00.0")
    assert text_of(root) == EXPECTED["pc"]


def test_external_and_virtual_graphics_change_nothing(tree: Tree) -> None:
    root = tree("pc")
    devices = root / "sys/bus/pci/devices"
    for name, marker in (("0000:3e:00.0", "removable"), ("0000:00:02.1", "physfn")):
        (devices / name).mkdir()
        for file, content in (("class", "0x030000"), ("vendor", "0x1002"), ("device", "0x73bf"), (marker, "removable")):
            (devices / name / file).write_text(content + "\n")
    assert text_of(root) == EXPECTED["pc"]


def test_emmc_is_taken_before_a_card_and_cards_never(tree: Tree) -> None:
    root = tree("rk3588")
    (root / "sys/bus/mmc/devices/mmc0:0001").unlink()
    assert text_of(root).endswith("DriveSerial: unknown")


@pytest.mark.parametrize(
    ("name", "path", "pattern", "replacement"),
    [
        ("pc", "proc/cpuinfo", "i7-8700", "i9-9900"),
        ("pc", "sys/bus/pci/devices/0000:01:00.0/device", "0x2204", "0x2684"),
        ("pc", "proc/meminfo", r"\b16257596\b", "32718844"),
        ("jetson-orin", "sys/class/nvme/nvme0/serial", "512345", "512346"),
        ("jetson-orin", "sys/devices/system/cpu/cpu0/regs/identification/midr_el1", "fd42", "fd0b"),
        ("rk3588", "sys/bus/platform/devices/fb000000.gpu/uevent", "bifrost", "valhall"),
        ("rk3588", "sys/bus/mmc/devices/mmc0:0001/serial", "0x5a", "0x5b"),
        ("rk3588", "proc/cpuinfo", "0xd05", "0xd46"),
    ],
)
def test_an_exchanged_part_changes_the_string(tree: Tree, name: str, path: str, pattern: str, replacement: str) -> None:
    root = tree(name)
    edit(root / path, pattern, replacement)
    assert text_of(root) != EXPECTED[name]


def test_serials_from_an_older_kernel_are_the_same(tree: Tree) -> None:
    root = tree("pc")
    device = root / "sys/block/sda/device"
    (device / "vpd_pg80").unlink()
    (device / "wwid").write_text("t10.ATA     WDC WD10EZEX-00BN5A0                        WD-WCC6Y7ABCDEF\n")
    assert text_of(root) == EXPECTED["pc"]


@pytest.mark.parametrize("junk", ["", "   ", "0x00000000", "0000 0000"])
def test_an_empty_serial_is_none(tree: Tree, junk: str) -> None:
    root = tree("rk3588")
    (root / "sys/bus/mmc/devices/mmc0:0001/serial").write_text(junk)
    assert text_of(root).endswith("DriveSerial: unknown")


def test_the_device_tree_tells_where_nothing_else_does(tree: Tree) -> None:
    root = tree("rk3588")
    (root / "proc/cpuinfo").write_text("processor\t: 0\nisa\t\t: rv64imafdc\n")
    shutil.rmtree(root / "sys/bus/platform")
    parts = HardwareService(root).parts()
    assert (parts.cpu, parts.gpu) == ("Radxa ROCK 5B", "arm,mali-bifrost")


def test_a_gpu_below_a_bus_of_the_device_tree(tmp_path: Path) -> None:
    node = tmp_path / "sys/firmware/devicetree/base/bus@0/gpu@17000000"
    node.mkdir(parents=True)
    (node / "compatible").write_bytes(b"nvidia,ga10b\0nvidia,other\0")
    assert HardwareService(tmp_path).parts().gpu == "nvidia,ga10b"


def test_nothing_readable_gives_fixed_words(tmp_path: Path) -> None:
    assert text_of(tmp_path) == "CPU: unknown. GPU: unknown. Memory: unknown. DriveSerial: unknown"


def test_hostile_files_are_bounded_and_give_no_crash(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    proc.mkdir()
    os.mkfifo(proc / "meminfo")
    (proc / "zoneinfo").mkdir()
    with (proc / "cpuinfo").open("wb") as file:
        file.write(b"model name : \xff\x00\x1b" + b"x" * 1000 + b"\n")
        file.truncate(1 << 32)
    cpu, _, memory, _ = HardwareService(tmp_path).parts()
    assert len(cpu) <= 128
    assert cpu.isprintable()
    assert memory == "unknown"


@pytest.mark.parametrize(
    ("total_kb", "installed_kb"),
    [
        (1, 262144),
        (3_884_000, 4194304),
        (7_620_000, 8388608),
        (8_388_608, 8388608),
        (8_388_609, 12582912),
        (12_100_000, 12582912),
        (65_000_000, 67108864),
        (98_000_000, 100663296),
    ],
)
def test_memory_is_rounded_up_to_what_is_installed(tmp_path: Path, total_kb: int, installed_kb: int) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: {total_kb} kB\n")
    assert HardwareService(tmp_path).parts().memory == str(installed_kb)


def test_memory_of_devices_does_not_count(tree: Tree) -> None:
    root = tree("pc")
    with (root / "proc/zoneinfo").open("a") as file:
        file.write("Node 0, zone   Device\n        present  99999999\n")
    assert text_of(root) == EXPECTED["pc"]


def test_it_is_read_once_and_by_many_threads(tree: Tree) -> None:
    root = tree("pc")
    service = HardwareService(root)
    seen: list[str] = []
    threads = [threading.Thread(target=lambda: seen.append(service.hardware_string())) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shutil.rmtree(root)
    assert [*seen, service.hardware_string()] == [EXPECTED["pc"]] * 17


def test_this_machine_gives_a_string() -> None:
    assert re.fullmatch(r"CPU: .+\. GPU: .+\. Memory: \d+\. DriveSerial: .+", HardwareService().hardware_string())


def test_the_override_file_wins_and_the_parts_stay(tmp_path: Path) -> None:
    file = tmp_path / "hardware.txt"
    file.write_text("  CPU: Old. GPU: Old. Memory: 1. DriveSerial: Ü \n\n")
    service = HardwareService(TREES / "pc", file)
    assert service.hardware_string() == "CPU: Old. GPU: Old. Memory: 1. DriveSerial: Ü"
    assert service.parts().drive_serial == "WD-WCC6Y7ABCDEF"


@pytest.mark.parametrize("content", [b"", b" \n\t\n", b"one\ntwo", b"a\0b", b"\xff\xfe", b"x" * 1025, None])
def test_an_unusable_override_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "hardware.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(MisconfiguredDevice, match=r"hardware\.txt"):
        HardwareService(TREES / "pc", file).hardware_string()
