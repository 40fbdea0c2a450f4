"""The hardware string of this machine (docs/formats.md): one door to `/proc`, `/sys` and the device tree.

The Resource API binds an account to the string, so it must stay the same until a part is really exchanged:

- CPU: on ARM the implementer and part number of the first core (core registers; which other cores are on depends on
  the power mode), on x86 the model name. The device tree's model is used only where neither is given, since the boot
  loader may rename it and Docker hides it from containers.
- GPU: vendor:device of all built-in PCI display controllers, sorted; on boards without one the first `compatible` of
  the GPU's platform device, from its `uevent`, which containers see, too.
- Memory: kB, what the kernel has, rounded up to the next size of 2^n or 3·2^n kB from 256 MiB on. What kernel,
  firmware and graphics reserve changes with updates and settings and stays far below those steps. Limits of control
  groups are not read; `/proc/zoneinfo` corrects a `/proc/meminfo` that a container system replaced.
- Drive: the first fixed NVMe, else eMMC, else SATA disk with a serial, ordered by where it is connected and not by
  its name, since names change with the order of discovery.
"""

import itertools
import os
import re
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import cython

from azaion_loader.errors import MisconfiguredDevice

UNKNOWN = "unknown"

cdef int READ_MAX_BYTES = 64 * 1024
cdef int ENTRIES_MAX = 4096
cdef int PART_MAX_CHARACTERS = 128
cdef int OVERRIDE_MAX_BYTES = 1024
cdef int SMALLEST_MEMORY_KB = 256 * 1024

cdef object MALI_OR_TEGRA = re.compile(r"[a-z]+,.*mali.*|nvidia,(gk20a|gm20b|gp10b|gv11b|ga10b|gb10b)")
# What says where a device is connected: PCI domain and device (the bus number depends on other cards), the address
# of a platform device, the port of an ATA controller.
cdef object PLACE = re.compile(r"(?P<domain>[0-9a-f]{4,}):[0-9a-f]{2}:(?P<slot>[0-9a-f]{2}\.[0-7])"
                               r"|(?P<platform>[0-9a-f]+\.[\w-]+)|ata(?P<port>\d+)")
cdef object ATA_OR_USB = re.compile(r"ata\d+|usb\d+")


class HardwareParts(NamedTuple):
    """The four parts of the hardware string; a missing one is `unknown`."""

    cpu: str
    gpu: str
    memory: str
    drive_serial: str


@cython.final
cdef class HardwareService:
    """The machine's identity, read once; safe to share between threads."""

    def __init__(self, root: Path = Path("/"), override_file: Path | None = None) -> None:
        self._root = Path(root)
        self._override_file = override_file
        self._lock = Lock()

    def hardware_string(self) -> str:
        """Return `CPU: … GPU: … Memory: … DriveSerial: …`, or the line in the override file.

        Raises MisconfiguredDevice where the override file can't be read or doesn't hold exactly one line.
        """
        parts = self.parts() if self._override_file is None else None
        with self._lock:
            if self._text is None:
                self._text = read_override(self._override_file) if parts is None else (
                    f"CPU: {parts.cpu}. GPU: {parts.gpu}. Memory: {parts.memory}. DriveSerial: {parts.drive_serial}"
                )
            return self._text

    def parts(self) -> HardwareParts:
        """Return what the machine itself says, whatever the override file holds."""
        with self._lock:
            if self._parts is None:
                self._parts = HardwareParts(
                    cpu=tidy(cpu_name(self._root)) or UNKNOWN,
                    gpu=tidy(gpu_name(self._root)) or UNKNOWN,
                    memory=memory_kb(self._root) or UNKNOWN,
                    drive_serial=drive_serial(self._root) or UNKNOWN,
                )
            return self._parts


cdef str read_override(object path):
    data = read_bytes(path, OVERRIDE_MAX_BYTES + 1)
    if data is None:
        raise MisconfiguredDevice(f"The hardware string file {path} can't be read.")
    try:
        text = data.decode().strip()
    except UnicodeDecodeError as err:
        raise MisconfiguredDevice(f"The hardware string file {path} is no UTF-8 text.") from err
    if len(data) > OVERRIDE_MAX_BYTES or not text or not text.isprintable():
        raise MisconfiguredDevice(
            f"The hardware string file {path} must hold one line of text, at most {OVERRIDE_MAX_BYTES} bytes."
        )
    return text


cdef str cpu_name(object root):
    midr = first_line(root / "sys/devices/system/cpu/cpu0/regs/identification/midr_el1")
    if re.fullmatch(r"0x[0-9a-f]{1,16}", midr):
        value = int(midr, 16)
        return arm_core(value >> 24 & 0xFF, value >> 4 & 0xFFF)
    info = {}
    for line in read_text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        info.setdefault(key.strip(), value.strip())
    implementer, part = info.get("CPU implementer", ""), info.get("CPU part", "")
    if re.fullmatch(r"0x[0-9a-fA-F]{1,4}", implementer) and re.fullmatch(r"0x[0-9a-fA-F]{1,4}", part):
        return arm_core(int(implementer, 16), int(part, 16))
    return (
        info.get("model name")
        or first_line(root / "proc/device-tree/model")
        or first_line(root / "sys/firmware/devicetree/base/model")
        or first_line(root / "sys/devices/soc0/machine")
    )


cdef str arm_core(int implementer, int part):
    # Numbers, not names: a table of names would grow, and a grown table would change the identity.
    return f"ARM implementer 0x{implementer:02x} part 0x{part:03x}"


cdef str gpu_name(object root):
    displays = []
    for device in entries(root / "sys/bus/pci/devices"):
        if not first_line(device / "class").lower().startswith("0x03"):
            continue
        # Neither a graphics card in a Thunderbolt box nor a slice of a card that a hypervisor gives out.
        if first_line(device / "removable") == "removable" or (device / "physfn").exists():
            continue
        vendor, product = first_line(device / "vendor").lower(), first_line(device / "device").lower()
        if vendor and product:
            displays.append(f"{vendor.removeprefix('0x')}:{product.removeprefix('0x')}")
    return "+".join(sorted(displays)) or platform_gpu(root)


cdef str platform_gpu(object root):
    found = set()
    for device in entries(root / "sys/bus/platform/devices"):
        about = dict(line.split("=", 1) for line in read_text(device / "uevent").splitlines() if "=" in line)
        compatible = about.get("OF_COMPATIBLE_0", "")
        if compatible and (about.get("OF_NAME") == "gpu" or MALI_OR_TEGRA.fullmatch(compatible)):
            found.add(compatible)
    if not found:
        for base in ("proc/device-tree", "sys/firmware/devicetree/base"):
            nodes = entries(root / base)
            for bus in [node for node in nodes if re.match(r"(soc|bus|axi|host1x)\b", node.name)]:
                nodes += entries(bus)
            for node in nodes:
                compatible = first_line(node / "compatible")
                if compatible and (re.match(r"gpu(@|$)", node.name) or MALI_OR_TEGRA.fullmatch(compatible)):
                    found.add(compatible)
    return "+".join(sorted(found))


cdef str memory_kb(object root):
    given = re.search(r"^MemTotal:\s+(\d{1,15}) kB$", read_text(root / "proc/meminfo"), re.MULTILINE)
    known_kb = max(int(given[1]) if given else 0, present_kb(read_text(root / "proc/zoneinfo")))
    if not known_kb:
        return ""
    size_kb = SMALLEST_MEMORY_KB
    while size_kb < known_kb:
        # 256 MiB, 384 MiB, 512 MiB, 768 MiB, 1 GiB, …: 2^n and the 3·2^n between them.
        size_kb = size_kb * 3 // 2 if size_kb & (size_kb - 1) == 0 else size_kb * 4 // 3
    return str(size_kb)


cdef object present_kb(str zones):
    """Return the memory in all zones; pages of devices (graphics memory, persistent memory) don't count."""
    pages, counted = 0, False
    for line in zones.splitlines():
        if line.startswith("Node"):
            counted = not line.endswith("Device")
        elif counted and (present := re.fullmatch(r"\s+present\s+(\d{1,15})", line)):
            pages += int(present[1])
    return pages * (os.sysconf("SC_PAGE_SIZE") // 1024)


cdef str drive_serial(object root):
    for candidates in (nvme_serials(root), emmc_serials(root), sata_serials(root)):
        for _, serial in sorted(candidates):
            return serial
    return ""


cdef list nvme_serials(object root):
    return [
        (place_of(controller), serial)
        for controller in entries(root / "sys/class/nvme")
        if first_line(controller / "transport") in ("pcie", "")
        and first_line(controller / "device/removable") != "removable"
        and (serial := usable_serial(first_line(controller / "serial")))
    ]


cdef list emmc_serials(object root):
    # SD cards have the type SD: they are meant to be taken out.
    return [
        (place_of(card), serial)
        for card in entries(root / "sys/bus/mmc/devices")
        if first_line(card / "type") == "MMC" and (serial := usable_serial(first_line(card / "serial")))
    ]


cdef list sata_serials(object root):
    found = []
    for disk in entries(root / "sys/block"):
        buses = [name for name in Path(os.path.realpath(disk)).parts if ATA_OR_USB.fullmatch(name)]
        # Behind USB also when the bridge itself speaks ATA.
        if not disk.name.startswith("sd") or not buses or any(name.startswith("usb") for name in buses):
            continue
        if first_line(disk / "removable") == "1":
            continue
        # Page 0x80 of the SCSI vital product data: four bytes of header, then the serial in ASCII.
        page = read_bytes(disk / "device/vpd_pg80", 260) or b""
        serial = usable_serial(page[4:].decode("ascii", "replace")) or usable_serial(ata_wwid_serial(disk))
        if serial:
            found.append((place_of(disk), serial))
    return found


cdef str ata_wwid_serial(object disk):
    # "t10.ATA     <model, padded>     <serial>", on kernels that don't show the page.
    wwid = first_line(disk / "device/wwid")
    return wwid.split()[-1] if wwid.startswith("t10.ATA") and len(wwid.split()) > 2 else ""


cdef tuple place_of(object device):
    place = []
    for name in Path(os.path.realpath(device)).parts:
        if at := PLACE.fullmatch(name):
            pci_or_platform = at["platform"] or f"{at['domain']}:{at['slot']}"
            place.append(f"ata{int(at['port']):06d}" if at["port"] else pci_or_platform)
    return tuple(place)


cdef str usable_serial(str text):
    serial = tidy(text)
    # Some makers leave the field at zero.
    return serial if serial.lower().removeprefix("0x").strip("0 ") and "\ufffd" not in serial else ""


cdef str tidy(str text):
    """Return the text on one line, with single spaces, bounded."""
    visible = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(visible.split())[:PART_MAX_CHARACTERS]


cdef list entries(object directory):
    """Return the entries by name, an empty list where the directory can't be read."""
    try:
        with os.scandir(directory) as found:
            return sorted(Path(entry.path) for entry in itertools.islice(found, ENTRIES_MAX))
    except OSError:
        return []  # hidden or not there: this part of the machine is unknown, which is an answer


cdef object read_bytes(object path, int limit):
    """Return at most `limit` bytes, None where the file can't be read."""
    pieces = []
    try:
        # Not blocking: a named pipe in the place of a file must not hold the service.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        with open(descriptor, "rb", buffering=0) as file:
            # In a loop, since `/proc` gives a page at a time.
            while limit > 0 and (piece := file.read(limit)):
                pieces.append(piece)
                limit -= len(piece)
    except OSError:
        return None
    return b"".join(pieces)


cdef str read_text(object path):
    return (read_bytes(path, READ_MAX_BYTES) or b"").decode("utf-8", "replace")


cdef str first_line(object path):
    # Texts of the device tree end with a NUL, lists of them hold one behind each.
    return read_text(path).split("\0")[0].partition("\n")[0].strip()
