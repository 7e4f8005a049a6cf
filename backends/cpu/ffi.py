"""Whether XLA's foreign-function interface (FFI) is as the handler in `xla` expects it.

The interface has a header in C, which jaxlib ships. The handler reads XLA's call frame at fixed offsets, and a wrong
offset is a crash. So the version, every structure that it reads, and the order of the functions that it calls must
stand in that header as they stand here, and jaxlib must be one with which the tests were run.
"""

from __future__ import annotations

import ctypes
import functools
import re
import struct
from pathlib import Path

__all__ = ["FRAME", "FUNCTIONS", "TESTED", "differs", "refusal"]

TESTED = ("0.10.2",)
"""The versions of jaxlib with which the handler was tested."""

FRAME = """\
struct XLA_FFI_Extension_Base { size_t struct_size; XLA_FFI_Extension_Type type; struct XLA_FFI_Extension_Base* next; }
struct XLA_FFI_Api_Version { size_t struct_size; XLA_FFI_Extension_Base* extension_start; int major_version;
  int minor_version; }
struct XLA_FFI_Buffer { size_t struct_size; XLA_FFI_Extension_Base* extension_start; XLA_FFI_DataType dtype;
  void* data; int64_t rank; int64_t* dims; }
struct XLA_FFI_Args { size_t struct_size; XLA_FFI_Extension_Base* extension_start; int64_t size;
  XLA_FFI_ArgType* types; void** args; }
struct XLA_FFI_Rets { size_t struct_size; XLA_FFI_Extension_Base* extension_start; int64_t size;
  XLA_FFI_RetType* types; void** rets; }
struct XLA_FFI_Attrs { size_t struct_size; XLA_FFI_Extension_Base* extension_start; int64_t size;
  XLA_FFI_AttrType* types; XLA_FFI_ByteSpan** names; void** attrs; }
struct XLA_FFI_Array { XLA_FFI_DataType dtype; size_t size; void* data; }
struct XLA_FFI_CallFrame { size_t struct_size; XLA_FFI_Extension_Base* extension_start; const XLA_FFI_Api* api;
  XLA_FFI_ExecutionContext* ctx; XLA_FFI_ExecutionStage stage; XLA_FFI_Args args; XLA_FFI_Rets rets;
  XLA_FFI_Attrs attrs; XLA_FFI_Future* future; }
struct XLA_FFI_Error_Destroy_Args { size_t struct_size; XLA_FFI_Extension_Base* extension_start; XLA_FFI_Error* error; }
struct XLA_FFI_Error_Create_Args { size_t struct_size; XLA_FFI_Extension_Base* extension_start; const char* message;
  XLA_FFI_Error_Code errc; }
struct XLA_FFI_ThreadPool_Schedule_Args { size_t struct_size; XLA_FFI_Extension_Base* extension_start;
  XLA_FFI_ExecutionContext* ctx; XLA_FFI_Task* task; void* data; }
struct XLA_FFI_ThreadPool_NumThreads_Args { size_t struct_size; XLA_FFI_Extension_Base* extension_start;
  XLA_FFI_ExecutionContext* ctx; int64_t* num_threads; }
struct XLA_FFI_Metadata { size_t struct_size; XLA_FFI_Api_Version api_version; XLA_FFI_Handler_Traits traits;
  XLA_FFI_TypeId state_type_id; }
struct XLA_FFI_Metadata_Extension { XLA_FFI_Extension_Base extension_base; XLA_FFI_Metadata* metadata; }
"""
"""The parts of the header `xla/ffi/api/c_api.h` whose offsets are in `xla`."""

FUNCTIONS = """Error_Create Error_GetMessage Error_Destroy Handler_Register Stream_Get Type_Register
    ExecutionContext_Get State_Set State_Get DeviceMemory_Allocate DeviceMemory_Free ThreadPool_Schedule
    ThreadPool_NumThreads""".split()
"""The first functions of XLA's table, in their order: 8 bytes each, from byte 48."""

VERSION = (0, 3)


@functools.cache
def refusal() -> str | None:
    """Why XLA is not given the kernels here; None if it is."""
    import jax
    import jaxlib

    found = jaxlib.version.__version__
    if found not in TESTED:
        return f"jaxlib {found} was not tested with the kernels ({', '.join(TESTED)} was)"
    if ctypes.sizeof(ctypes.c_void_p) != 8 or struct.pack("=H", 1) != struct.pack("<H", 1):
        return "the processor is not a little-endian one of 64 bits"
    try:
        header = (Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h").read_text(encoding="utf-8")
    except OSError as error:
        return f"jaxlib's header of the FFI cannot be read: {error}"
    return differs(header)


def differs(header: str) -> str | None:
    """In what this header of the FFI is not as the handler expects it."""
    for name, number in zip(("MAJOR", "MINOR"), VERSION):
        if re.findall(rf"#define XLA_FFI_API_{name} (\d+)", header) != [str(number)]:
            return "jaxlib's FFI has another version"
    header = re.sub(r"//[^\n]*|/\*.*?\*/", "", header, flags=re.S)
    for expected in re.findall(r"struct .*?}", FRAME, re.S):
        name = expected.split()[1]
        given = re.search(rf"struct {name} {{.*?}}", header, re.S)
        if given is None or given.group().split() != expected.split():
            return f"jaxlib's {name} has other fields"
    table = re.search(r"struct XLA_FFI_Api {(.*?)};", header, re.S)
    start = """size_t struct_size; XLA_FFI_Extension_Base* extension_start; XLA_FFI_Api_Version api_version;
        const XLA_FFI_InternalApi* internal_api;""".split()
    start += [f"_XLA_FFI_API_STRUCT_FIELD(XLA_FFI_{name});" for name in FUNCTIONS]
    if table is None or table.group(1).split()[: len(start)] != start:
        return "jaxlib's table of functions has another order"
    return None
