"""Users' words: a VM's name stands for its id, but not in what files are called."""

from __future__ import annotations

from architect.control.vm_names import by_name, error_by_name
from architect.errors import ConflictError
from architect.model.ids import VmId

VM = VmId("vm-6a3f30e7b1cd")


def test_the_name_stands_where_the_id_is_a_word() -> None:
    assert by_name(f"vm {VM}: is not on host aws-1", VM, "web") == "vm web: is not on host aws-1"
    assert by_name(f"ownership log of {VM}: no answer", VM, "web") == "ownership log of web: no answer"
    assert by_name("QEMU of vm web on host aws-1", VM, "web") == "QEMU of vm web on host aws-1"
    assert by_name("a host joined", "", "") == "a host joined", "no VM, no name"


def test_paths_and_other_ids_stay() -> None:
    text = f"/var/vms/{VM}/overlay.qcow2 of {VM}0 and exec-{VM}"
    assert by_name(text, VM, "web") == text


def test_an_error_keeps_its_kind() -> None:
    error = error_by_name(ConflictError(f"vm {VM}", "is being moved already", f"see {VM}"), VM, r"w\1")
    assert type(error) is ConflictError
    assert str(error) == r"vm w\1: is being moved already; see w\1"
