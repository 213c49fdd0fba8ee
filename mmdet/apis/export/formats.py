"""The kinds of files: each class writes a graph, opens it and runs it.

A file holds one JSON text beside the graph, under the name 'mmdet': what `ExportedDetector` says of it.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmdet.config.errors import UserError, one_line
from mmdet.config.output import write_atomically

if TYPE_CHECKING:
    from torch.export import ExportedProgram

KEY = 'mmdet'
Meta = dict[str, Any]


def _library(name: str, use: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f'{use} needs {name}: pip install onnx onnxscript onnxruntime openvino') from None


@contextmanager
def _opening(path: Path, kind: str) -> Iterator[None]:
    """Any error of a library that opens a file, in one line."""
    if not path.is_file():
        raise UserError(f'{path}: no such file')
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f'{path} cannot be opened as {kind}: {one_line(error)[:200]}') from error


def _read_meta(text: str | None, path: Path) -> Meta:
    if not text:
        raise UserError(
            f"{path}: nothing in it says its classes and how an image is prepared (metadata 'mmdet'); export the "
            'checkpoint with mmdet export'
        )
    return json.loads(text)


class TorchExport:
    """torch.export's archive: runs wherever torch and torchvision are."""

    name, suffix = 'torch.export', '.pt2'

    @classmethod
    def check_libraries(cls) -> None:
        """Raise UserError where a library is missing that `write` needs."""

    @classmethod
    def write(cls, program: ExportedProgram, path: Path, meta: Meta) -> None:
        archive = io.BytesIO()
        from torch.export import save

        save(program, archive, extra_files={KEY: json.dumps(meta)})
        write_atomically(path, archive.getvalue())

    def __init__(self, path: Path, device: str | None) -> None:
        import torchvision  # noqa: F401 - its operators
        from torch.export import load

        extra = {KEY: ''}
        with _opening(path, self.name):
            program = load(path, extra_files=extra)
            self.meta = _read_meta(extra[KEY], path)
        self.device = device or 'cpu'
        if self.device != 'cpu':
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, self.device)
        self.run = program.module()

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        return {name: found.cpu() for name, found in self.run(image.to(self.device)).items()}


class Onnx:
    """ONNX, run by onnxruntime."""

    name, suffix = 'onnx', '.onnx'

    @classmethod
    def check_libraries(cls) -> None:
        for library in ('onnx', 'onnxscript'):
            _library(library, f'--format {cls.name}')

    @classmethod
    def proto(cls, program: ExportedProgram) -> Any:
        """ONNX's ModelProto of a program."""
        outputs = list(program.call_spec.out_spec.context)  # the keys of what the graph gives
        log = logging.getLogger('torch.onnx')
        level = log.level
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')
            log.setLevel(logging.ERROR)
            try:
                exported = torch.onnx.export(program, dynamo=True, input_names=['image'], output_names=outputs,
                                             verbose=False)  # fmt: skip
            finally:
                log.setLevel(level)
        return exported.model_proto

    @classmethod
    def write(cls, program: ExportedProgram, path: Path, meta: Meta) -> None:
        import onnx

        proto = cls.proto(program)
        onnx.helper.set_model_props(proto, {KEY: json.dumps(meta)})
        write_atomically(path, proto.SerializeToString())

    def __init__(self, path: Path, device: str | None) -> None:
        runtime = _library('onnxruntime', f'{path}: an ONNX file')
        provider = f'{"CUDA" if device and device.startswith("cuda") else "CPU"}ExecutionProvider'
        if provider not in runtime.get_available_providers():
            raise UserError(f'device {device}: onnxruntime has no {provider} here; install onnxruntime-gpu')
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        with _opening(path, 'ONNX'):
            self.session = runtime.InferenceSession(str(path), options, providers=[provider])
            self.meta = _read_meta(self.session.get_modelmeta().custom_metadata_map.get(KEY), path)

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        found = self.session.run(None, {'image': image.numpy()})
        return {output.name: torch.from_numpy(value) for output, value in zip(self.session.get_outputs(), found)}


class OpenVino:
    """OpenVINO's two files NAME.xml and NAME.bin, for Intel's processors; made from ONNX."""

    name, suffix = 'openvino', '.xml'

    @classmethod
    def check_libraries(cls) -> None:
        Onnx.check_libraries()
        _library('openvino', f'--format {cls.name}')

    @classmethod
    def write(cls, program: ExportedProgram, path: Path, meta: Meta) -> None:
        import openvino

        model = openvino.Core().read_model(Onnx.proto(program).SerializeToString(), b'')
        model.set_rt_info(json.dumps(meta), KEY)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            openvino.save_model(model, Path(folder) / path.name, compress_to_fp16=False)
            for suffix in ('.bin', '.xml'):  # whoever finds the .xml finds both
                os.replace(Path(folder) / path.with_suffix(suffix).name, path.with_suffix(suffix))

    def __init__(self, path: Path, device: str | None) -> None:
        openvino = _library('openvino', f'{path}: an OpenVINO file')
        if device not in (None, 'cpu'):
            raise UserError(f'device {device}: OpenVINO runs on the CPU here; leave --device out')
        core = openvino.Core()
        with _opening(path, 'OpenVINO'):
            model = core.read_model(path)
            self.meta = _read_meta(model.get_rt_info(KEY).value if model.has_rt_info(KEY) else None, path)
            # by itself it takes bfloat16 where the processor has it
            options = dict(INFERENCE_PRECISION_HINT='f32', INFERENCE_NUM_THREADS=torch.get_num_threads())
            self.model = core.compile_model(model, 'CPU', options)

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        found = self.model([image.numpy()])
        return {output.any_name: torch.from_numpy(found[output].copy()) for output in self.model.outputs}


FORMATS = {kind.name: kind for kind in (TorchExport, Onnx, OpenVino)}


def is_exported(name: Any) -> bool:
    """Whether what stands in the place of a config names an exported file, by its ending."""
    return str(name).endswith(tuple(kind.suffix for kind in FORMATS.values()))


def open_file(path: str | Path, device: str | None = None) -> TorchExport | Onnx | OpenVino:
    """What runs an exported file.

    Raises:
        UserError: it is no such file, was not written here, needs a library that is missing, or cannot run on `device`.
    """
    path = Path(path)
    return next(kind for kind in FORMATS.values() if path.suffix == kind.suffix)(path, device)
