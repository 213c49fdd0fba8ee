"""What was found on one image: a data sample that can be looked at, and goes into other tools.

D detections; boxes are xyxy in pixels of the image.
"""

from __future__ import annotations

import base64
import html
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmdet.apis.images import to_input
from mmdet.config.errors import UserError
from mmdet.structures import DetDataSample, DetectedInstances, RLEMasks
from mmdet.visualization.visualizer import class_name, draw_instances, read_image, write_image


class DetResult(DetDataSample):
    """A data sample with `pred_instances`, the names of its classes, and the image it was made from.

    ``classes`` are the names by label. A score threshold of the methods leaves lower detections out.
    """

    _source, _palette = None, None  # a copy that mmengine makes has lost them

    @classmethod
    def of(cls, sample: DetDataSample, dataset_meta: dict, source: Any = None) -> DetResult:
        """The same data with the data set's classes and palette, and what the image was given as, see `to_input`."""
        names = dataset_meta.get('classes') or ()
        result = cls(metainfo=dict(sample.metainfo_items()))
        result.set_metainfo(dict(classes=(names,) if isinstance(names, str) else tuple(names)))
        for name, value in sample.items():
            result.set_field(value, name)
        if 'masks' in result.get('pred_instances', ()):  # of a model of one's own
            found = dict(result.pred_instances.items())
            found['masks'] = RLEMasks.of(found['masks'], *result.ori_shape[:2])
            result.pred_instances = DetectedInstances(**found)
        object.__setattr__(result, '_palette', dataset_meta.get('palette'))
        result.remember(source)
        return result

    def remember(self, source: Any) -> None:
        """Keep what the image was given as, for `plot`; not as metainfo, which mmengine copies with every sample."""
        object.__setattr__(self, '_source', source)

    def above(self, score_thr: float) -> DetResult:
        """The same with the detections of at least this score."""
        return self._with(self.pred_instances.scores >= score_thr)

    def of_labels(self, labels: Sequence[int]) -> DetResult:
        """The same with the detections of these labels."""
        return self._with(torch.isin(self.pred_instances.labels, torch.tensor(labels, dtype=torch.int64)))

    def _with(self, wanted: torch.Tensor) -> DetResult:
        result = DetResult.of(self, dict(classes=self.classes, palette=self._palette), self._source)
        result.pred_instances = self.pred_instances[wanted]
        return result

    def summary(self) -> str:
        """'3 cat, 1 dog', or 'nothing'."""
        return ', '.join(f'{count} {name}' for name, count in self.counts().items()) or 'nothing'

    def counts(self) -> dict[str, int]:
        """How many of each class, the most frequent first."""
        names = (class_name(label, self.classes) for label in self.pred_instances.labels.tolist())
        return dict(Counter(names).most_common())

    def __repr__(self) -> str:
        where = self.get('img_path') or 'an image'
        if 'pred_instances' not in self:
            return f'DetResult({where})'
        height, width = self.ori_shape[:2]
        found = self.pred_instances
        best = f', scores up to {found.scores.max():.2f}' if len(found) else ''
        names = [f'{count} {name}' for name, count in self.counts().items()]
        names = names[:5] + ([f'{len(names) - 5} more classes'] if len(names) > 5 else [])
        masks = ', with masks' if 'masks' in found else ''
        return f'DetResult({where}, {width} x {height}: {", ".join(names) or "nothing"}{best}{masks})'

    def _repr_html_(self) -> str:
        """For notebooks: the drawing and the twenty best detections."""
        rows = ''.join(
            f'<tr><td>{html.escape(row["name"])}</td><td>{row["score"]:.2f}</td>'
            + ''.join(f'<td>{row[key]:.0f}</td>' for key in ('x1', 'y1', 'x2', 'y2')) + '</tr>'
            for row in self.rows()[:20]
        )
        head = ''.join(f'<th>{name}</th>' for name in ('class', 'score', 'x1', 'y1', 'x2', 'y2'))
        try:
            drawing = self.plot()
            drawing.thumbnail((960, 720))
            file = io.BytesIO()
            drawing.save(file, 'JPEG', quality=88)
            image = f'<img src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"/>'
        except (UserError, OSError):  # the file is gone
            image = ''
        return f'<div><p>{html.escape(repr(self))}</p>{image}<table><tr>{head}</tr>{rows}</table></div>'

    def rows(self) -> list[dict]:
        """One dict a detection: name, label, score, x1, y1, x2, y2."""
        found = self.pred_instances
        return [
            dict(name=class_name(label, self.classes), label=label, score=score, x1=x1, y1=y1, x2=x2, y2=y2)
            for label, score, (x1, y1, x2, y2) in zip(
                found.labels.tolist(), found.scores.tolist(), found.bboxes.tolist()
            )
        ]

    def to_dict_of_lists(self) -> dict[str, list]:
        """Plain lists, as `DetInferencer` gives them: labels, scores, bboxes and, with a mask head, masks (RLEs)."""
        found = self.pred_instances
        lists = {key: found[key].tolist() for key in ('labels', 'scores', 'bboxes')}
        if 'masks' in found:
            lists['masks'] = [_json_rle(rle) for rle in found.masks]
        return lists

    def to_coco(self, image_id: int | str | None = None, score_thr: float = 0.0) -> list[dict]:
        """COCO's results: image_id, category_id (label + 1), bbox xywh, area, score and, with masks, segmentation."""
        image_id = self.get('img_id') if image_id is None else image_id
        entries, found = [], self.pred_instances
        for i, row in enumerate(self.rows()):
            if row['score'] < score_thr:
                continue
            width, height = row['x2'] - row['x1'], row['y2'] - row['y1']
            entry = dict(image_id=image_id, category_id=row['label'] + 1, bbox=[row['x1'], row['y1'], width, height],
                         area=width * height, score=row['score'], iscrowd=0)  # fmt: skip
            if 'masks' in found:
                entry['segmentation'] = _json_rle(found.masks[i])
            entries.append(entry)
        return entries

    def to_pandas(self) -> Any:
        """A table, one row a detection: name, label, score, x1, y1, x2, y2.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UserError('to_pandas needs pandas: pip install pandas') from None
        return pandas.DataFrame(self.rows(), columns=['name', 'label', 'score', 'x1', 'y1', 'x2', 'y2'])

    def to_supervision(self) -> Any:
        """``supervision.Detections``, with masks and the classes' names.

        Raises:
            UserError: supervision is not installed.
        """
        try:
            from supervision import Detections
        except ImportError:
            raise UserError('to_supervision needs supervision: pip install supervision') from None
        found = self.pred_instances
        return Detections(
            xyxy=found.bboxes.numpy(),
            confidence=found.scores.numpy(),
            class_id=found.labels.numpy().astype(int),
            mask=found.masks.numpy() if 'masks' in found else None,
            data=dict(class_name=np.array([row['name'] for row in self.rows()], dtype=str)),
        )

    def image(self) -> np.ndarray:
        """The image (H, W, 3) uint8 RGB.

        Raises:
            UserError, OSError: it was no file, and this is a copy without it; or the file is gone.
        """
        source = self._source
        if source is None and not self.get('img_path'):
            raise UserError('this copy of a result has no image; give plot(image=...)')
        loaded = dict(img_path=self.img_path) if source is None else to_input(source)
        return loaded['img'][..., ::-1] if 'img' in loaded else read_image(loaded['img_path'])

    def plot(
        self, score_thr: float = 0.3, image: np.ndarray | None = None, annotators: Sequence = (), **options
    ) -> Image.Image:
        """The image with its detections, which a notebook shows and ``.save(path)`` writes.

        Args:
            image: (H, W, 3) uint8 RGB to draw on.
            annotators: supervision's, such as ``[sv.HaloAnnotator(), sv.PercentageBarAnnotator()]``, one after the
                other in the place of our own drawing.
            options: of `mmdet.visualization.draw_instances`.
        """
        image = self.image() if image is None else image
        if annotators:
            scene, found = np.ascontiguousarray(image[..., ::-1]), self.above(score_thr).to_supervision()
            for annotator in annotators:
                scene = annotator.annotate(scene, found)
            return Image.fromarray(np.ascontiguousarray(scene[..., ::-1]))
        options = {'palette': self._palette, **options}
        return Image.fromarray(draw_instances(image, self.pred_instances, self.classes, score_thr, **options))

    def save(self, path: str | Path, score_thr: float = 0.3, **options) -> None:
        """`plot` into a file; its folder is made."""
        write_image(path, np.asarray(self.plot(score_thr, **options)))


def _json_rle(rle: dict) -> dict:
    return dict(size=list(rle['size']), counts=rle['counts'].decode())
