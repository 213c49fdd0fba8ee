"""A back-end of an annotation tool: boxes in per cent of the image, and the outline of every mask."""

import os.path as osp
import sys

import cv2
import numpy as np

from mmdet.apis import inference_detector, init_detector


class Backend:
    def __init__(self, config, checkpoint, device='cpu', score_threshold=0.0):
        self.model = init_detector(config, checkpoint, device=device)
        self.classes, self.threshold = self.model.dataset_meta['classes'], score_threshold

    def predict(self, path):
        height, width = cv2.imread(path).shape[:2]
        rows = []
        for item in inference_detector(self.model, path).pred_instances:  # one at a time
            score, (x1, y1, x2, y2) = float(item['scores'][-1]), item['bboxes'][0].tolist()
            if score >= self.threshold:
                rows.append(dict(label=self.classes[int(item['labels'])], score=score, x=100 * x1 / width,
                                 y=100 * y1 / height, width=100 * (x2 - x1) / width,
                                 height=100 * (y2 - y1) / height))  # fmt: skip
        return rows

    def outlines(self, path):
        found = inference_detector(self.model, path).pred_instances
        found = found[found.scores > self.threshold].cpu().numpy()
        outlines, painted = [], cv2.imread(path)
        for mask, label in zip(found.masks, found.labels):
            shapes, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            outlines.append((self.classes[label], [shape.reshape(-1, 2).tolist() for shape in shapes]))
            painted[mask] = 0.5 * painted[mask]
        everything = np.any(found.masks, axis=0)
        filled = np.zeros(everything.shape, np.uint8)
        for _, polygons in outlines:
            cv2.fillPoly(filled, [np.array(polygon, np.int32) for polygon in polygons], 1)
        outside = painted[~everything] == cv2.imread(path)[~everything]
        return outlines, bool(filled[everything].all()), bool(outside.all())


if __name__ == '__main__':
    backend = Backend('config.py', 'weights.pth')
    rows = backend.predict(sys.argv[1])
    outlines, whole, clean = backend.outlines(sys.argv[1])
    assert all(0 <= row['x'] <= 100 and row['width'] <= 100 for row in rows)
    print(osp.basename(sys.argv[1]), len(rows) == len(outlines) > 0, whole, clean)
