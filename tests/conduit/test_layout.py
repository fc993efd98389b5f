"""The shared structs are the same in C and in Python."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from architect.conduit import layout
from architect.errors import UsageError

HEADER = Path(layout.__file__).parent / "bpf" / "layout.h"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
def test_every_shared_struct_has_the_same_size_and_offsets_in_c(tmp_path: Path) -> None:
    lines = ["#include <stddef.h>", "#include <stdio.h>", f'#include "{HEADER}"', "int main(void) {"]
    expected = {}
    for name, struct in layout.STRUCTS.items():
        expected[name] = ctypes.sizeof(struct)
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        for field, *_rest in struct._fields_:
            expected[f"{name}.{field}"] = getattr(struct, field).offset
            lines.append(f'printf("{name}.{field} %zu\\n", offsetof(struct {name}, {field}));')
    source = tmp_path / "offsets.c"
    source.write_text("\n".join([*lines, "return 0; }"]))
    subprocess.run(["gcc", "-o", tmp_path / "offsets", source], check=True)
    output = subprocess.run([tmp_path / "offsets"], check=True, capture_output=True, text=True).stdout
    assert {name: int(size) for name, size in (line.split() for line in output.splitlines())} == expected


def test_every_struct_of_the_header_is_known_to_python() -> None:
    assert set(re.findall(r"^struct (\w+) \{", HEADER.read_text(), re.MULTILINE)) == set(layout.STRUCTS)


def test_constants_and_counter_names_follow_the_header() -> None:
    text = HEADER.read_text()
    names = re.findall(r"^\tCOUNT_(\w+)", text, re.MULTILINE)
    assert tuple(name.lower() for name in names) == layout.COUNTERS
    for name in ("LAYOUT_VERSION", "TUNNEL_PORT"):
        assert re.search(rf"#define {name} {getattr(layout, name)}$", text, re.MULTILINE), name
    for name, value in re.findall(r"(FLOW_\w+) = (\d+)", text):
        assert getattr(layout, name) == int(value)
    for name, value in re.findall(r"PORT_(\w+) = (\d+)", text):
        assert layout.PortState[name] == int(value)


def test_addresses_and_ports_are_packed_in_network_order() -> None:
    assert bytes(layout.U32(layout.packed_address("10.1.2.3"))) == bytes([10, 1, 2, 3])
    assert bytes(layout.U16(layout.packed_port(0x1234))) == b"\x12\x34"
    assert layout.address_text(layout.packed_address("10.1.2.3")) == "10.1.2.3"
    assert layout.port_number(layout.packed_port(80)) == 80
    assert layout.packed_address("") == 0 and layout.address_text(0) == ""


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(UsageError, match="not an IPv4 address"):
        layout.packed_address("10.1.2")
