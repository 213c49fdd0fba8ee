"""`DetInferencer`: mmengine's inferencer protocol, with arguments and results of mmdetection's class of that name."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.infer.infer import BaseInferencer
from torch import nn

from mmdet.apis.export import is_exported
from mmdet.apis.images import expand, to_input
from mmdet.apis.inference import detect, init_detector, pipeline_of
from mmdet.apis.progress import ImageProgress
from mmdet.apis.results import DetResult
from mmdet.checkpoints import config_of, load_pretrained
from mmdet.config.errors import UserError
from mmdet.config.load import load_config
from mmdet.config.overrides import refuse_overrides
from mmdet.config.shipped import shipped_names, zoo_config
from mmdet.registry import INFERENCERS, VISUALIZERS
from mmdet.visualization.visualizer import DetVisualizer, read_image, write_image


@INFERENCERS.register_module(name=['det-object-detection', 'DetInferencer'])
@refuse_overrides(
    'inference.md', pred2dict='postprocess', _get_chunk_data='preprocess', _load_weights_to_model='_init_model',
)  # fmt: skip
class DetInferencer(BaseInferencer):
    """Detect in anything `mmdet.apis.images.to_input` knows, and save drawings and JSON files.

    Args:
        model: a config file, a loaded config, a file of ``mmdet export``, or None where the weights hold their config.
        weights: path or address of weights.
        device: by default the first GPU where there is one.
        scope: of the registries; ours is 'mmdet'.
        palette: colours of the classes in drawings, see `init_detector`.
        show_progress: a progress bar, on a terminal.
        tta: test-time augmentation, see `init_detector`.

    >>> DetInferencer('config.py', 'epoch_12.pth')('photo.jpg', out_dir='out')['predictions'][0]   # doctest: +SKIP
    {'labels': [0], 'scores': [0.93], 'bboxes': [[12.1, 30.0, 200.4, 311.9]]}
    """

    preprocess_kwargs: set = set()
    forward_kwargs: set = set()
    visualize_kwargs = {
        'return_vis', 'show', 'wait_time', 'draw_pred', 'pred_score_thr', 'img_out_dir', 'no_save_vis',
    }  # fmt: skip
    postprocess_kwargs = {'print_result', 'pred_out_dir', 'return_datasamples', 'no_save_pred'}

    def __init__(
        self,
        model: str | Path | Config | None = None,
        weights: str | None = None,
        device: str | None = None,
        scope: str | None = 'mmdet',
        palette: str | Sequence = 'none',
        show_progress: bool = True,
        tta: bool = False,
    ) -> None:
        self.palette = palette
        self.tta = tta
        self.device = device
        self._written: dict[str, set[Path]] = {}  # by their endings
        if model is None:
            if weights is None:
                raise UserError('DetInferencer needs a config (model=FILE), or weights that hold theirs')
            model = config_of(load_pretrained(weights))
        elif is_exported(model):
            model, weights = Config(), str(model)
        elif isinstance(model, (str, Path)):
            recipe = zoo_config(str(model))
            if recipe and weights is None:
                name = f'{Path(recipe).parent.name}/{Path(recipe).stem}'
                raise UserError(f"{model} is here as {name}, without mmdetection's weights: give weights=FILE, or its "
                                'address')
            model = load_config(model)
        super().__init__(model, weights, device, scope, show_progress)

    @staticmethod
    def list_models(scope: str | None = None, patterns: str = r'.*') -> list[str]:
        """Names of the recipes, without '.py', that match a regular expression."""
        return [name for name in shipped_names() if re.match(patterns, name)]

    def _init_model(self, cfg: Config, weights: str | None, device: str) -> nn.Module:
        if is_exported(weights):
            return init_detector(weights, palette=self.palette, device=self.device, tta=self.tta)
        cfg = cfg if isinstance(cfg, Config) else Config(cfg)
        return init_detector(cfg, weights, self.palette, self.device, tta=self.tta)

    def _init_pipeline(self, cfg: Config) -> Callable:
        return pipeline_of(self.model.cfg)

    def _init_visualizer(self, cfg: Config) -> DetVisualizer:
        kind = (cfg.get('visualizer') or {}).get('type', 'DetVisualizer')
        visualizer = VISUALIZERS.build(dict(type=kind, name=f'inferencer_{id(self)}'))
        visualizer.dataset_meta = self.model.dataset_meta
        return visualizer

    @staticmethod
    def _get_transform_idx(pipeline_cfg: Sequence[dict], name: str | type) -> int:
        """Where a step stands in a pipeline, -1 for nowhere; subclasses of other projects ask for it."""
        return next((i for i, step in enumerate(pipeline_cfg) if step['type'] == name), -1)

    def __call__(
        self,
        inputs: Any,
        batch_size: int = 1,
        return_vis: bool = False,
        show: bool = False,
        wait_time: float = 0,
        no_save_vis: bool = False,
        draw_pred: bool = True,
        pred_score_thr: float = 0.3,
        return_datasamples: bool = False,
        print_result: bool = False,
        no_save_pred: bool = True,
        out_dir: str = '',
        **kwargs,
    ) -> dict:
        """Detect in one image or many.

        Args:
            inputs: an image, a folder, or a list; see `to_input`.
            batch_size: images that go through the model at a time.
            return_vis: give the drawings, in the channel order of the input (RGB for a file, BGR for an array).
            show, wait_time: open a window, for so many seconds (0: until a key is pressed).
            no_save_vis, no_save_pred: write no drawing, no JSON file, into `out_dir`.
            draw_pred, pred_score_thr: draw detections, of at least this score.
            return_datasamples: give `DetResult` instead of dicts of lists.
            print_result: print the detections.
            out_dir: drawings go to ``vis/``, predictions to ``preds/`` in it; '' writes nothing.

        Returns:
            dict(predictions=[...], visualization=[...]), one entry an image.

        Raises:
            UserError: no readable image, or an option that nothing here has (`texts`).
        """
        images = self._inputs_to_list(inputs)
        self._written.clear()
        out = Path(out_dir) if out_dir else None
        about_text = ('texts', 'stuff_texts', 'custom_entities', 'tokens_positive')
        asked = {name: kwargs.pop(name, None) for name in about_text}
        if any(asked.values()):
            raise UserError(f'{", ".join(n for n, v in asked.items() if v)}: no model here reads text; leave it out')
        _, forward_options, *_ = self._dispatch_kwargs(**kwargs)
        batches = self.preprocess(images, batch_size=batch_size)
        results = dict(predictions=[], visualization=[])
        with ImageProgress(len(images), self.show_progress) as bar:
            for given, data in batches:
                samples = self.forward(data, **forward_options)
                for sample, image in zip(samples, given, strict=True):
                    sample.remember(image)
                drawings = self.visualize(
                    given, samples, return_vis=return_vis, show=show, wait_time=wait_time, draw_pred=draw_pred,
                    pred_score_thr=pred_score_thr, no_save_vis=no_save_vis, img_out_dir=str(out / 'vis') if out else '',
                )  # fmt: skip
                part = self.postprocess(
                    samples, drawings, return_datasamples=return_datasamples, print_result=print_result,
                    no_save_pred=no_save_pred, pred_out_dir=str(out / 'preds') if out else '',
                )  # fmt: skip
                results['predictions'] += part['predictions']
                results['visualization'] += part['visualization'] or []
                bar.advance(len(given))
        return results

    def _inputs_to_list(self, inputs: Any) -> list:
        return expand(inputs)[0]

    def preprocess(self, inputs: Sequence, batch_size: int = 1, **kwargs) -> Iterator[tuple[list, dict]]:
        """The images of a batch and what the model takes of them, batch after batch."""
        remaining = iter(inputs)
        while given := list(islice(remaining, batch_size)):
            plain = [to_input(image) for image in given]
            # a pipeline of another project's subclass takes paths and arrays
            yield given, self.collate_fn([self.pipeline(p if p.get('img_path') else p['img']) for p in plain])

    def forward(self, inputs: dict, **kwargs) -> list[DetResult]:
        """The data samples of a batch with `pred_instances`, on the CPU."""
        return [DetResult.of(sample, self.model.dataset_meta) for sample in detect(self.model, inputs)]

    def _init_collate(self, cfg: Config) -> Callable:
        return pseudo_collate

    def visualize(
        self,
        inputs: Sequence,
        preds: Sequence[DetResult],
        return_vis: bool = False,
        show: bool = False,
        wait_time: float = 0,
        draw_pred: bool = True,
        pred_score_thr: float = 0.3,
        no_save_vis: bool = False,
        img_out_dir: str = '',
        **kwargs,
    ) -> list[np.ndarray] | None:
        """The drawings of a batch, (H, W, 3) uint8 each; None where nobody wants them."""
        folder = None if no_save_vis or not img_out_dir else Path(img_out_dir)
        if not (show or return_vis or folder):
            return None
        drawings = []
        for given, sample in zip(inputs, preds, strict=True):
            loaded = to_input(given)
            image = loaded['img'][..., ::-1] if 'img' in loaded else read_image(loaded['img_path'])
            place = self._place(sample, folder, '.jpg') if folder else None
            self.visualizer.add_datasample(
                'inference' if place is None else place.name, np.ascontiguousarray(image), sample, draw_gt=False,
                draw_pred=draw_pred, show=show, wait_time=wait_time, pred_score_thr=pred_score_thr,
            )  # fmt: skip
            drawing = self.visualizer.get_image()
            if place:
                write_image(place, drawing)
            drawings.append(drawing[..., ::-1] if isinstance(given, np.ndarray) else drawing)
        return drawings

    def postprocess(
        self,
        preds: Sequence[DetResult],
        visualization: list[np.ndarray] | None = None,
        return_datasamples: bool = False,
        print_result: bool = False,
        no_save_pred: bool = False,
        pred_out_dir: str = '',
        **kwargs,
    ) -> dict:
        """dict(predictions, visualization) of a batch; predictions are dicts of labels, scores, bboxes and masks."""
        folder = None if no_save_pred or not pred_out_dir else Path(pred_out_dir)
        plain = [sample.to_dict_of_lists() for sample in preds] if folder or not return_datasamples else list(preds)
        for sample, lists in zip(preds, plain if folder else ()):
            place = self._place(sample, folder, '.json')
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(lists))
        predictions = list(preds) if return_datasamples else plain
        if print_result:
            print(predictions)
        return dict(predictions=predictions, visualization=visualization)

    def _place(self, sample: DetResult, folder: Path, suffix: str) -> Path:
        """A file of the image's name, or a number; images of one name do not overwrite one another."""
        written = self._written.setdefault(suffix, set())
        name = Path(sample.img_path).stem if sample.get('img_path') else f'{len(written):08}'
        place, number = folder / f'{name}{suffix}', 1
        while place in written:
            number += 1
            place = folder / f'{name}_{number}{suffix}'
        written.add(place)
        return place
