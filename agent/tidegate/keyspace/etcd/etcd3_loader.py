# SPDX-License-Identifier: Apache-2.0
"""Load the `etcd3` package on a current protobuf; the only place that imports it.

etcd3 0.12.0 is the last release. Its generated `*_pb2.py` modules were made by a protoc of 2019,
and a protobuf of today refuses to run them. They are not run here: the serialised file descriptors
that they carry are read from their source as literals, the few fields that etcd has had since 3.4
and the old schema lacks are added, and message classes are built from the result and registered
under the module names that `etcd3.etcdrpc` imports. The descriptors live in a pool of their own, so
another package's `rpc.proto` cannot clash with them.

This module opens no connection; `client` does.
"""

import ast
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message_factory import GetMessageClass

from tidegate.errors import CapabilityError

_PACKAGE = "etcd3.etcdrpc"
_FILES = ("kv", "auth", "rpc")  # each imports only files before it
_BOOL = FieldDescriptorProto.TYPE_BOOL
_INT64 = FieldDescriptorProto.TYPE_INT64


@cache
def load() -> Any:  # noqa: ANN401 - etcd3 is untyped, and so are classes that are built at run time
    """Import and return `etcd3`, with its messages built for the installed protobuf.

    Raises:
        CapabilityError: etcd3 is missing, is another version, or was imported by somebody else.
    """
    if "etcd3" in sys.modules:
        raise CapabilityError(
            "the package etcd3 was imported before tidegate.keyspace could prepare it; "
            "import it only through tidegate.keyspace.etcd.etcd3_loader"
        )
    pool = DescriptorPool()
    for name in _FILES:
        pool.Add(_patched(_descriptor(name)))
    for name in _FILES:
        sys.modules[f"{_PACKAGE}.{name}_pb2"] = _module(pool, name)
    import etcd3  # noqa: PLC0415, TID251 - this is the one place, and only now can it be imported

    return etcd3


def _descriptor(name: str) -> FileDescriptorProto:
    """Read the file descriptor that etcd3's `<name>_pb2.py` carries, without running it."""
    spec = find_spec("etcd3")
    if spec is None or not spec.submodule_search_locations:
        raise CapabilityError("the Python package etcd3 is not installed; install etcd3==0.12.0")
    path = Path(spec.submodule_search_locations[0]) / "etcdrpc" / f"{name}_pb2.py"
    try:
        tree = ast.parse(path.read_bytes())
    except OSError as error:
        raise CapabilityError(f"etcd3 lacks {path}; install etcd3==0.12.0") from error
    for node in ast.walk(tree):
        # serialized_pb=_b('…'): a str literal whose characters are the bytes.
        if isinstance(node, ast.keyword) and node.arg == "serialized_pb":
            call = node.value
            literal = call.args[0] if isinstance(call, ast.Call) else call
            return FileDescriptorProto.FromString(ast.literal_eval(literal).encode("latin-1"))
    raise CapabilityError(f"{path} carries no serialised descriptor; install etcd3==0.12.0")


def _patched(proto: FileDescriptorProto) -> FileDescriptorProto:
    """Add what etcd's rpc.proto has had since 3.4; numbers are those of etcd's own file."""
    if proto.name != "rpc.proto":
        return proto
    messages = {message.name: message for message in proto.message_type}
    _field(messages["WatchCreateRequest"], "watch_id", 7, _INT64)
    _field(messages["WatchCreateRequest"], "fragment", 8, _BOOL)
    _field(messages["WatchResponse"], "fragment", 7, _BOOL)
    proto.message_type.add(name="WatchProgressRequest")
    progress = _field(
        messages["WatchRequest"], "progress_request", 3, FieldDescriptorProto.TYPE_MESSAGE
    )
    progress.type_name = ".etcdserverpb.WatchProgressRequest"
    progress.oneof_index = 0  # request_union, beside create_request (1) and cancel_request (2)
    return proto


def _field(message: Any, name: str, number: int, kind: int) -> FieldDescriptorProto:  # noqa: ANN401 - protobuf's own
    if any(name == field.name or number == field.number for field in message.field):
        raise CapabilityError(
            f"etcd3's {message.name} already has field {name} or number {number}; "
            "install etcd3==0.12.0"
        )
    return message.field.add(
        name=name, number=number, type=kind, label=FieldDescriptorProto.LABEL_OPTIONAL
    )


def _module(pool: DescriptorPool, name: str) -> ModuleType:
    """Build what protoc would have generated: a class per message, a wrapper per top-level enum."""
    module = ModuleType(f"{_PACKAGE}.{name}_pb2", f"Messages of etcd's {name}.proto.")
    file = pool.FindFileByName(f"{name}.proto")
    for message in file.message_types_by_name.values():
        setattr(module, message.name, GetMessageClass(message))
    for enum in file.enum_types_by_name.values():
        setattr(module, enum.name, EnumTypeWrapper(enum))
        for value in enum.values:
            setattr(module, value.name, value.number)
    return module
