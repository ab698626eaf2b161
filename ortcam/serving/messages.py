"""The messages of the Open Inference Protocol for gRPC, made from the published definition when they are first used.

https://github.com/open-inference/open-inference-protocol/blob/main/specification/protocol/open_inference_grpc.proto

The messages live in a pool of their own. A client's generated stubs define the same names in Python's default pool, and
both can be used in one process. tests/test_serving_rpc.py compares the fields with those of tritonclient.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

SERVICE = "inference.GRPCInferenceService"
# Messages with their fields: type, name, number. "parameters" is a map from text to InferParameter, "[]" a list.
_DEFINITION = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live 1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready 1",
    "ModelReadyRequest": "string name 1, string version 2",
    "ModelReadyResponse": "bool ready 1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name 1, string version 2, string[] extensions 3",
    "ModelMetadataRequest": "string name 1, string version 2",
    "ModelMetadataResponse": (
        "string name 1, string[] versions 2, string platform 3, "
        "ModelMetadataResponse.TensorMetadata[] inputs 4, ModelMetadataResponse.TensorMetadata[] outputs 5"
    ),
    "ModelMetadataResponse.TensorMetadata": "string name 1, string datatype 2, int64[] shape 3",
    "InferParameter": (
        "bool bool_param 1, int64 int64_param 2, string string_param 3, double double_param 4, uint64 uint64_param 5"
    ),
    "InferTensorContents": (
        "bool[] bool_contents 1, int32[] int_contents 2, int64[] int64_contents 3, uint32[] uint_contents 4, "
        "uint64[] uint64_contents 5, float[] fp32_contents 6, double[] fp64_contents 7, bytes[] bytes_contents 8"
    ),
    "ModelInferRequest": (
        "string model_name 1, string model_version 2, string id 3, parameters 4, "
        "ModelInferRequest.InferInputTensor[] inputs 5, ModelInferRequest.InferRequestedOutputTensor[] outputs 6, "
        "bytes[] raw_input_contents 7"
    ),
    "ModelInferRequest.InferInputTensor": (
        "string name 1, string datatype 2, int64[] shape 3, parameters 4, InferTensorContents contents 5"
    ),
    "ModelInferRequest.InferRequestedOutputTensor": "string name 1, parameters 2",
    "ModelInferResponse": (
        "string model_name 1, string model_version 2, string id 3, parameters 4, "
        "ModelInferResponse.InferOutputTensor[] outputs 5, bytes[] raw_output_contents 6"
    ),
    "ModelInferResponse.InferOutputTensor": (
        "string name 1, string datatype 2, int64[] shape 3, parameters 4, InferTensorContents contents 5"
    ),
}
_ONE_OF = {"InferParameter": "parameter_choice"}  # all fields of the message are one choice
_SCALARS = {
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "uint32": FieldDescriptorProto.TYPE_UINT32,
    "uint64": FieldDescriptorProto.TYPE_UINT64,
    "float": FieldDescriptorProto.TYPE_FLOAT,
    "double": FieldDescriptorProto.TYPE_DOUBLE,
    "string": FieldDescriptorProto.TYPE_STRING,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
}


def _define() -> FileDescriptorProto:
    file = FileDescriptorProto(name="ortcam/open_inference.proto", package="inference", syntax="proto3")
    made: dict[str, DescriptorProto] = {}
    for full, fields in _DEFINITION.items():
        outer, _, name = full.rpartition(".")
        message = made[full] = (made[outer].nested_type if outer else file.message_type).add(name=name)
        if full in _ONE_OF:
            message.oneof_decl.add(name=_ONE_OF[full])
        for field in fields.split(", ") if fields else []:
            *kind, label, number = field.split()
            if kind:
                _add_field(message, kind[0], label, int(number), full in _ONE_OF)
            else:
                _add_parameters(message, full, int(number))
    return file


def _add_field(message: DescriptorProto, kind: str, name: str, number: int, one_of: bool) -> None:
    repeated, kind = kind.endswith("[]"), kind.removesuffix("[]")
    field = message.field.add(name=name, number=number)
    field.label = FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".inference.{kind}"
    if one_of:
        field.oneof_index = 0


def _add_parameters(message: DescriptorProto, full: str, number: int) -> None:
    entry = message.nested_type.add(name="ParametersEntry")
    entry.options.map_entry = True
    _add_field(entry, "string", "key", 1, False)
    _add_field(entry, "InferParameter", "value", 2, False)
    _add_field(message, f"{full}.ParametersEntry[]", "parameters", number, False)


_pool = DescriptorPool()
_pool.Add(_define())


def message(name: str) -> Any:
    """Return the class of a message, such as ``ModelInferRequest``."""
    return GetMessageClass(_pool.FindMessageTypeByName(f"inference.{name}"))
