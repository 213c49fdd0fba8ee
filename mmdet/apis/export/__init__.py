"""A detector as one file that other runtimes run: torch.export's .pt2, ONNX, OpenVINO.

trace.py makes one graph of a detector, from the image as the test pipeline gives it to its detections; fold.py folds
norms into it; formats.py writes and runs each kind of file; exported.py puts a file in the place of a detector;
compare.py compares the two.
"""

from mmdet.apis.export.exported import ExportedDetector, export_detector
from mmdet.apis.export.formats import is_exported

__all__ = ['ExportedDetector', 'export_detector', 'is_exported']
