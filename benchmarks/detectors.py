"""Whole detectors beside torchvision's, and mmdetection 3's where it is at hand: training steps and inference.

    python benchmarks/detectors.py [--models faster_rcnn mask_rcnn retinanet] [--device cpu|cuda] [--amp] [--json FILE]
    python benchmarks/detectors.py --parts whole --size 800 1216 --pictures 1 --repeats 5
    python benchmarks/detectors.py --parts detection --threads 1 --clock cpu     for a machine that others use too
    python benchmarks/detectors.py --mmdet3 PATHS      mmdetection 3 of that PYTHONPATH, in a process of its own

All sides take turns in each round; the figures are medians. They have the same weights (torchvision's, random, with
outputs spread so that dozens of objects are found), pictures and objects. Next to torchvision ours runs
configs/torchvision, with its rules and numbers; next to mmdetection the recipe of the same name.

- training: pictures in; preprocessing, losses, gradients, SGD step.
- memory: what the forward pass of a training step keeps for its backward pass, weights not counted.
- inference: pictures in; boxes, scores, labels and, of Mask R-CNN, what each library gives: torchvision float pictures
  (D, 1, H, W), mmdetection bool pictures, ours COCO run lengths. `+ RLE` brings the others' to run lengths too.

Two parts: `whole` is R-50-FPN; `detection` has given maps of 256 channels in the place of backbone and FPN, and heads
16 channels wide (the first convolution 1x1), so that anchors, assignment, sampling, losses, proposals, RoIAlign, NMS
and post-processing remain. Of it are also counted the operators called (each is a launch on a GPU; views are not
counted), those that make the host wait for a GPU, and the tensors made from numbers on the host (each a copy to a GPU).

Where the sides differ: torchvision freezes its norms' scale and shift (`FrozenBatchNorm2d`), the others train them in
eval mode; torchvision gets float pictures and its resizing inside the model is taken out; mask targets come from
polygons here, from bitmaps in the others, as their pipelines give them.
"""

import argparse
import contextlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
ROOT = Path(__file__).resolve().parent.parent
SERVING = '--serve' in sys.argv  # the process of mmdetection 3, whose package has our name
if not SERVING:
    sys.path[1:1] = [str(ROOT), str(ROOT / 'tests')]

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

NUM_CLASSES = 90
# name: (torchvision's, our config beside it, our recipe, mmdetection's config)
MODELS = {
    'faster_rcnn': ('fasterrcnn_resnet50_fpn', 'faster_rcnn/faster_rcnn_r50_fpn_1x',
                    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco'),
    'mask_rcnn': ('maskrcnn_resnet50_fpn', 'mask_rcnn/mask_rcnn_r50_fpn_1x',
                  'mask_rcnn/mask-rcnn_r50_fpn_1x_coco'),
    'retinanet': ('retinanet_resnet50_fpn', 'retinanet/retinanet_r50_fpn_1x',
                  'retinanet/retinanet_r50_fpn_1x_coco'),
}  # fmt: skip
# What is timed by itself: stage -> methods (from the model) and functions (module:name).
STAGES = {
    'ours': {
        'preprocessing': ['data_preprocessor.forward'],
        'anchors': ['rpn_head.anchor_generator.grid_priors', 'bbox_head.anchor_generator.grid_priors'],
        'assign, sample': ['rpn_head.sample', 'bbox_head.sample', 'roi_head.sample'],
        'losses': ['rpn_head.loss', 'bbox_head.loss', 'roi_head.bbox_head.loss', 'roi_head.mask_head.loss'],
        'mask targets': ['mmdet.models.roi_heads.common:mask_targets_of'],
        'proposals': ['rpn_head.predict'],
        'RoIAlign': ['roi_head.bbox_roi_extractor.forward', 'roi_head.mask_roi_extractor.forward'],
        'heads': ['rpn_head.forward', 'bbox_head.forward', 'roi_head.bbox_head.forward', 'roi_head.mask_head.forward'],
        'post-processing': ['roi_head.predict', 'bbox_head.predict'],
        'masks out': ['mmdet.models.roi_heads.standard_roi_head:masks_of'],
    },
    'torchvision': {
        'preprocessing': ['transform.forward'],
        'anchors': ['rpn.anchor_generator.forward', 'anchor_generator.forward'],
        'assign, sample': ['rpn.assign_targets_to_anchors', 'rpn.fg_bg_sampler', 'proposal_matcher',
                           'roi_heads.select_training_samples'],
        'losses': ['rpn.compute_loss', 'compute_loss', 'torchvision.models.detection.roi_heads:fastrcnn_loss',
                   'torchvision.models.detection.roi_heads:maskrcnn_loss'],
        'mask targets': ['torchvision.models.detection.roi_heads:project_masks_on_boxes'],
        'proposals': ['rpn.filter_proposals', 'rpn.box_coder.decode'],
        'RoIAlign': ['roi_heads.box_roi_pool.forward', 'roi_heads.mask_roi_pool.forward'],
        'heads': ['rpn.head.forward', 'head.forward', 'roi_heads.box_head.forward', 'roi_heads.box_predictor.forward',
                  'roi_heads.mask_head.forward', 'roi_heads.mask_predictor.forward'],
        'post-processing': ['roi_heads.postprocess_detections', 'postprocess_detections'],
        'masks out': ['transform.postprocess'],
    },
    'mmdetection': {
        'preprocessing': ['data_preprocessor.forward'],
        'anchors': ['rpn_head.get_anchors', 'rpn_head.prior_generator.grid_priors', 'bbox_head.get_anchors',
                    'bbox_head.prior_generator.grid_priors'],
        'assign, sample': ['rpn_head.get_targets', 'bbox_head.get_targets', 'roi_head.bbox_assigner.assign',
                           'roi_head.bbox_sampler.sample'],
        'losses': ['rpn_head.loss_by_feat', 'bbox_head.loss_by_feat', 'roi_head.bbox_head.loss_and_target',
                   'roi_head.mask_head.loss_and_target'],
        'mask targets': ['roi_head.mask_head.get_targets'],
        'proposals': ['rpn_head.predict_by_feat'],
        'RoIAlign': ['roi_head.bbox_roi_extractor.forward', 'roi_head.mask_roi_extractor.forward'],
        'heads': ['rpn_head.forward', 'bbox_head.forward', 'roi_head.bbox_head.forward', 'roi_head.mask_head.forward'],
        'post-processing': ['roi_head.bbox_head.predict_by_feat', 'bbox_head.predict_by_feat'],
        'masks out': ['roi_head.mask_head.predict_by_feat'],
    },
}  # fmt: skip


class Pyramid(nn.Module):
    """Maps of 256 channels in the place of backbone and FPN, learnable so that gradients reach them."""

    def __init__(self, args, finest: int):
        super().__init__()
        height, width = (-(-side // 32) * 32 for side in args.size)
        generator = torch.Generator().manual_seed(0)
        self.maps = nn.ParameterList()
        for level in range(5):
            size = [-(-side // (finest * 2**level)) for side in (height, width)]
            coarse = torch.randn(args.pictures, 256, *(-(-side // 3) for side in size), generator=generator)
            self.maps.append(F.interpolate(coarse, size, mode='bilinear'))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.maps)


class NamedPyramid(nn.Module):
    """The same as torchvision's backbones give it."""

    out_channels = 256

    def __init__(self, args, finest: int, names: list[str]):
        super().__init__()
        self.body = Pyramid(args, finest)
        self.names = names

    def forward(self, images: Tensor) -> OrderedDict:
        return OrderedDict(zip(self.names, self.body.maps))


def made_up_batch(args) -> dict:
    """Blurred noise, and boxes with elliptic outlines: what is seen changes nothing but how much is found."""
    random = np.random.default_rng(0)
    height, width = args.size
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(args.pictures, 3, height // 16, width // 16, generator=generator)
    images = (F.interpolate(coarse, (height, width), mode='bicubic').clamp(0, 1) * 255).to(torch.uint8)
    boxes, labels, outlines = [], [], []
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    for _ in range(args.pictures):
        centre, size = random.uniform(0.2, 0.8, (args.objects, 2)), random.uniform(0.05, 0.4, (args.objects, 2))
        corners = np.concatenate([centre - size / 2, centre + size / 2], 1) * ([width, height] * 2)
        boxes.append(corners.clip(0, [width, height] * 2).astype(np.float32))
        labels.append(random.integers(0, NUM_CLASSES, args.objects))
        outlines.append([
            np.stack([(a + c + (c - a) * np.cos(angle)) / 2, (b + d + (d - b) * np.sin(angle)) / 2], 1)
            for a, b, c, d in boxes[-1]
        ])
    return dict(images=images, boxes=boxes, labels=labels, outlines=outlines)


def bitmaps(outlines: list[np.ndarray], height: int, width: int) -> np.ndarray:
    from pycocotools import mask as coco_mask

    rles = [coco_mask.frPyObjects([outline.ravel().tolist()], height, width) for outline in outlines]
    return np.stack([coco_mask.decode(rle)[..., 0] for rle in rles])


def data_of(batch: dict, args, masks_of: Callable) -> dict:
    """The batch as the loader of ours and of mmdetection 3 gives it; `masks_of` makes their masks of outlines."""
    from mmengine.structures import InstanceData

    from mmdet.structures import DetDataSample

    size = tuple(args.size)
    samples = []
    for i, (boxes, labels, outlines) in enumerate(zip(batch['boxes'], batch['labels'], batch['outlines'])):
        sample = DetDataSample(metainfo=dict(img_id=i, img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
        sample.gt_instances = InstanceData(
            bboxes=torch.from_numpy(boxes), labels=torch.from_numpy(labels), masks=masks_of(outlines, *size)
        )
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
        samples.append(sample.to(args.device) if SERVING else sample)
    return dict(inputs=list(batch['images']), data_samples=samples)


def encode(masks: Tensor) -> list[dict]:
    from pycocotools import mask as coco_mask

    return [coco_mask.encode(np.asfortranarray(mask)) for mask in masks.cpu().numpy().view(np.uint8)]


class Side:
    """One library's model and what is measured of it; `run(name)` of the jobs 'training', 'inference', '+ RLE'."""

    def __init__(self, name: str, net: nn.Module, args):
        self.name, self.net, self.args = name, net.to(args.device), args
        self.without_gradients = torch.inference_mode
        if args.channels_last:
            net.to(memory_format=torch.channels_last)
        trained = [p for key, p in net.named_parameters() if p.requires_grad and '.maps.' not in key]
        self.optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9, weight_decay=1e-4)

    def losses(self) -> Tensor:
        raise NotImplementedError

    def detections(self) -> list:
        raise NotImplementedError

    def run_lengths(self, detections: list) -> None:
        """Bring the masks of `detections` to COCO run lengths."""
        raise NotImplementedError

    def run(self, job: str):
        device = self.args.device
        amp = torch.autocast(device, enabled=self.args.amp)
        torch.manual_seed(0)
        if job == 'training':
            self.net.train()
            with amp:
                loss = self.losses()
            self.backward(loss)
            self.update()
            return loss
        self.net.eval()
        with self.without_gradients(), amp:
            detections = self.detections()
            if job == '+ RLE':
                self.run_lengths(detections)
        return detections

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def update(self) -> None:
        self.optimizer.step()
        self.net.zero_grad()

    def wait(self) -> None:
        if self.args.device == 'cuda':
            torch.cuda.synchronize()

    def time(self, job: str) -> float:
        """Milliseconds of one run."""
        now = time.process_time if self.args.clock == 'cpu' else time.perf_counter
        self.wait()
        start = now()
        self.run(job)
        self.wait()
        return (now() - start) * 1e3

    def memory(self) -> dict[str, float]:
        """Megabytes (2**20 bytes) that a training step's forward pass keeps for its backward pass; on CUDA also what
        the whole step needs at its peak, beyond what it begins with."""
        own = {t.untyped_storage().data_ptr() for t in (*self.net.parameters(), *self.net.buffers())}
        kept = {}  # holding the tensors, so that no address is given out twice

        def note(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            self.run('training')
        megabytes = {'kept for the backward pass': sum(t.untyped_storage().nbytes() for t in kept.values()) / 2**20}
        if self.args.device == 'cuda':
            kept.clear()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.run('training')
            megabytes['peak of a step'] = (torch.cuda.max_memory_allocated() - before) / 2**20
        return megabytes

    def found(self) -> int:
        """How many detections inference gives."""
        return sum(len(self.labels_of(x)) for x in self.run('inference'))

    def count(self, job: str) -> dict[str, int]:
        """How many operators, waits and host tensors a run has; torchvision's NMS as it is on a GPU."""
        from torchvision.ops import boxes

        self.without_gradients = torch.no_grad  # inference_mode shows some operators whole, others by their parts
        self.run(job)
        each_class = boxes._batched_nms_vanilla
        boxes._batched_nms_vanilla = boxes._batched_nms_coordinate_trick
        try:
            with Calls() as calls:
                self.run(job)
        finally:
            boxes._batched_nms_vanilla = each_class
            self.without_gradients = torch.inference_mode
        return dict(calls.seen)

    def stages(self, job: str) -> dict[str, float]:
        """Milliseconds by stage of one run, each without the stages inside it."""
        watch = Stopwatch(self.wait, time.process_time if self.args.clock == 'cpu' else time.perf_counter)
        with contextlib.ExitStack() as stack:
            watch.wrap(stack, self, 'backward', 'backward')
            watch.wrap(stack, self, 'update', 'SGD step')
            for stage, paths in STAGES[self.name].items():
                for path in paths:
                    owner, attribute = self._place(path)
                    if owner is not None:
                        watch.wrap(stack, owner, attribute, stage)
            watch.start()
            self.run(job)
            return watch.stop()

    def _place(self, path: str):
        """The object that holds the method or function of a path; None where the model lacks the part."""
        if ':' in path:
            module, _, attribute = path.partition(':')
            return importlib.import_module(module), attribute
        *parents, attribute = path.split('.')
        owner = self.net
        for parent in parents:
            owner = getattr(owner, parent, None)
        return (owner if parents or hasattr(owner or self.net, attribute) else None), attribute


class Ours(Side):
    """This project's; with SERVING mmdetection 3's, whose models are called alike."""

    def __init__(self, name: str, net: nn.Module, data: dict, args):
        super().__init__(name, net, args)
        self.data = data

    def losses(self) -> Tensor:
        losses = self.net(**self.net.data_preprocessor(self.data, True), mode='loss')
        return self.net.parse_losses(losses)[0]

    def detections(self) -> list:
        return self.net(**self.net.data_preprocessor(self.data, False), mode='predict')

    def run_lengths(self, detections: list) -> None:
        for sample in detections if SERVING else ():  # ours are
            sample.pred_instances.masks = encode(sample.pred_instances.masks)

    @staticmethod
    def labels_of(sample) -> Tensor:
        return sample.pred_instances.labels


class Torchvision(Side):
    def __init__(self, net: nn.Module, batch: dict, args):
        super().__init__('torchvision', net, args)
        self.images = [image.float() / 255 for image in batch['images']]
        self.targets = [
            dict(
                boxes=torch.from_numpy(boxes).to(args.device),
                labels=torch.from_numpy(labels).to(args.device) + 1,
                masks=torch.from_numpy(bitmaps(outlines, *args.size)).to(args.device),
            )
            for boxes, labels, outlines in zip(batch['boxes'], batch['labels'], batch['outlines'])
        ]

    def losses(self) -> Tensor:
        return sum(self.net([image.to(self.args.device) for image in self.images], self.targets).values())

    def detections(self) -> list:
        return self.net([image.to(self.args.device) for image in self.images])

    def run_lengths(self, detections: list) -> None:
        for found in detections:
            found['masks'] = encode(found['masks'][:, 0] > 0.5)

    @staticmethod
    def labels_of(found: dict) -> Tensor:
        return found['labels']


class Calls(TorchDispatchMode):
    """Counts operators, those a GPU makes the host wait for, and tensors made of numbers on the host."""

    WAITING = {'nonzero', 'nonzero_numpy', '_local_scalar_dense', 'masked_select', '_unique2', 'unique_dim', 'equal',
               'unique_consecutive', 'nms', 'soft_nms', 'bincount'}  # fmt: skip
    NO_LAUNCH = {'lift_fresh', 'lift', 'detach', 'alias', '_local_scalar_dense', 'is_nonzero', 'promote_types', 'empty',
                 'empty_like', 'new_empty', 'empty_strided', 'new_empty_strided', '_unsafe_view'}  # fmt: skip

    def __init__(self):
        super().__init__()
        self.seen = Counter(operators=0, waits=0, host_tensors=0)
        self.names: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        self.seen['host_tensors'] += name == 'lift_fresh'
        if not is_view and name not in self.NO_LAUNCH:
            self.seen['operators'] += 1
            self.names[name] += 1
        self.seen['waits'] += name in self.WAITING or self._reads_mask(name, args)
        return out

    @staticmethod
    def _reads_mask(name: str, args) -> bool:
        """Whether a tensor is indexed with booleans: their number must be known (not to fill them with one value)."""
        if name not in ('index', 'index_put', 'index_put_', '_index_put_impl_'):
            return False
        masks = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        return masks and (name == 'index' or args[2].numel() != 1)


class Stopwatch:
    """Time spent in wrapped functions, each without those wrapped inside it."""

    def __init__(self, wait: Callable, now: Callable):
        self.wait, self.now = wait, now
        self.open: list[str] = []
        self.spent: dict[str, float] = defaultdict(float)

    def wrap(self, stack: contextlib.ExitStack, owner, attribute: str, stage: str) -> None:
        """Time `owner.attribute` as `stage` until `stack` is closed."""
        inside = vars(owner).get(attribute, stack)  # what to put back; the stack stands for nothing
        function = getattr(owner, attribute)

        def timed(*args, **kwargs):
            self._turn()
            self.open.append(stage)
            try:
                return function(*args, **kwargs)
            finally:
                self._turn()
                self.open.pop()

        if isinstance(function, nn.Module):  # a child must stay a module
            owner, attribute, function, inside = function, 'forward', function.forward, stack
        object.__setattr__(owner, attribute, timed)
        stack.callback(
            lambda: object.__delattr__(owner, attribute) if inside is stack else setattr(owner, attribute, inside)
        )

    def _turn(self) -> None:
        self.wait()
        now = self.now()
        self.spent[self.open[-1]] += (now - self.last) * 1e3
        self.last = now

    def start(self) -> None:
        self.open = ['the rest']
        self.wait()
        self.last = self.now()

    def stop(self) -> dict[str, float]:
        self._turn()
        return dict(self.spent)


def thin(cfg: dict, part: str) -> dict:
    """Of the config of ours or mmdetection 3: 90 classes, no pretrained file, and for 'detection' narrow heads."""
    cfg['backbone'].update(init_cfg=None)
    heads = [cfg.get('bbox_head'), *(cfg.get('roi_head', {}).get(key) for key in ('bbox_head', 'mask_head'))]
    for head in filter(None, heads):
        head['num_classes'] = NUM_CLASSES
    if part == 'detection':
        if 'rpn_head' in cfg:
            cfg['rpn_head']['feat_channels'] = 16
            cfg['roi_head']['bbox_head']['fc_out_channels'] = 64
        else:
            cfg['bbox_head']['feat_channels'] = 16
        if 'mask_head' in cfg.get('roi_head', {}):
            cfg['roi_head']['mask_head']['conv_out_channels'] = 16
    return cfg


def build_ours(file: Path, part: str, state: dict, args) -> nn.Module:
    """The model of a config of ours or, when SERVING, of mmdetection 3."""
    from mmengine.config import Config

    from mmdet.registry import MODELS as REGISTRY

    cfg = thin(Config.fromfile(file, lazy_import=False).model.to_dict(), part)
    if 'eps' in cfg['backbone']['norm_cfg']:
        cfg['backbone']['norm_cfg']['eps'] = 1e-5
    if SERVING:
        from mmengine.config import ConfigDict

        cfg = ConfigDict(cfg)
    net = REGISTRY.build(cfg)
    if part == 'detection':
        net.backbone, net.neck = Pyramid(args, 8 if 'retina' in file.name else 4), None
        if 'retina' in file.name:
            for tower in (net.bbox_head.cls_convs, net.bbox_head.reg_convs):
                tower[0].conv = nn.Conv2d(256, 16, 1)
        else:
            net.rpn_head.rpn_conv = nn.Conv2d(256, 16, 1)
    missing, unexpected = net.load_state_dict(state, strict=False)
    missing = [key for key in missing if 'num_batches' not in key]
    assert not missing and not unexpected, (missing, unexpected)
    return net


def build_torchvision(name: str, part: str, batch: dict, args) -> nn.Module:
    """torchvision's model, its outputs spread, its norms and first stage frozen as its recipe has them."""
    import lively
    from torchvision.models import detection
    from torchvision.models.detection import faster_rcnn, mask_rcnn, retinanet, rpn
    from torchvision.ops.misc import FrozenBatchNorm2d

    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = (batch['images'] / 255 - mean[:, None, None]) / std[:, None, None]
    height, width = (-(-side // 32) * 32 for side in args.size)
    images = F.pad(images, (0, width - args.size[1], 0, height - args.size[0]))
    sizes = [tuple(args.size)] * args.pictures
    if part == 'whole':
        net = lively.lively_model(name, images, sizes)
        for parent in list(net.backbone.modules()):
            for key, child in list(parent.named_children()):
                if isinstance(child, nn.BatchNorm2d):
                    frozen = FrozenBatchNorm2d(child.num_features, child.eps)
                    frozen.load_state_dict(child.state_dict(), strict=False)
                    setattr(parent, key, frozen)
        for module in (net.backbone.body.conv1, net.backbone.body.layer1):
            module.requires_grad_(False)
    else:
        torch.manual_seed(0)
        if name.startswith('retinanet'):
            names = ['0', '1', '2', 'p6', 'p7']
            head = retinanet.RetinaNetHead(16, 9, NUM_CLASSES + 1)
            for tower in (head.classification_head, head.regression_head):
                tower.conv[0][0] = nn.Conv2d(256, 16, 1)
            net = detection.RetinaNet(NamedPyramid(args, 8, names), NUM_CLASSES + 1, head=head,
                                      anchor_generator=retinanet._default_anchorgen())
        else:
            head = rpn.RPNHead(16, 3)
            head.conv[0][0] = nn.Conv2d(256, 16, 1)
            parts = dict(
                rpn_head=head, box_head=faster_rcnn.TwoMLPHead(256 * 49, 64),
                box_predictor=faster_rcnn.FastRCNNPredictor(64, NUM_CLASSES + 1),
            )  # fmt: skip
            if name.startswith('mask'):
                parts.update(mask_head=mask_rcnn.MaskRCNNHeads(256, [16] * 4, 1),
                             mask_predictor=mask_rcnn.MaskRCNNPredictor(16, 16, NUM_CLASSES + 1))
            kind = detection.MaskRCNN if name.startswith('mask') else detection.FasterRCNN
            net = kind(NamedPyramid(args, 4, ['0', '1', '2', '3', 'pool']), **parts)
        with torch.no_grad(), lively.spread_outputs(net.eval(), lively._SPREAD):
            lively.run(net, images, sizes)
        if hasattr(net, 'head'):  # as lively_model does: few objects, and never the background
            logits = net.head.classification_head.cls_logits
            logits.bias.data -= 5.0
            logits.bias.data.unflatten(0, (-1, NUM_CLASSES + 1))[:, 0] = -1e4
    net.transform.resize = lambda image, target=None: (image, target)
    return net


class Mmdetection:
    """A `Side` in another process, whose `mmdet` is mmdetection 3."""

    def __init__(self, paths: str, args):
        command = [sys.executable, __file__, '--serve', json.dumps(vars(args))]
        self.process = subprocess.Popen(
            command, env=dict(os.environ, PYTHONPATH=paths), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, *question):
        print(json.dumps(question), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit('the process of mmdetection 3 ended; its message stands above')
        return json.loads(answer)

    def build(self, config: str, part: str, state: dict) -> None:
        with tempfile.NamedTemporaryFile(suffix='.pth') as file:
            torch.save(state, file.name)
            self.ask('build', config, part, file.name)

    def __getattr__(self, name: str):
        return lambda *args: self.ask(name, *args)


def serve(args) -> None:
    """Answer `Mmdetection`: questions and answers are lines of JSON."""
    out = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # whatever the libraries print is no answer
    from mmdet.structures.mask import BitmapMasks
    from mmengine.registry import init_default_scope

    import mmdet.models  # noqa: F401 - registers

    init_default_scope('mmdet')
    configs = Path(mmdet.__file__).parent / '.mim' / 'configs'
    data = data_of(made_up_batch(args), args, lambda outlines, h, w: BitmapMasks(bitmaps(outlines, h, w), h, w))
    side = None
    for line in sys.stdin:
        verb, *rest = json.loads(line)
        if verb == 'build':
            config, part, weights = rest
            net = build_ours(configs / f'{config}.py', part, torch.load(weights, map_location='cpu'), args)
            side, answer = Ours('mmdetection', net, data, args), None
        else:
            answer = getattr(side, verb)(*rest)
        print(json.dumps(answer), file=out, flush=True)


def build_sides(model: str, part: str, batch: dict, peer: Mmdetection | None, args) -> dict:
    from mmdet.checkpoints import convert
    from mmdet.structures.masks import PolygonMasks

    theirs, recipe, their_config = MODELS[model]
    net = build_torchvision(theirs, part, batch, args)
    state = convert(dict(state_dict=net.state_dict()), NUM_CLASSES).state_dict
    data = data_of(batch, args, lambda outlines, h, w: PolygonMasks([[o.ravel()] for o in outlines], h, w))
    configs = ROOT / 'configs'
    sides = {
        'ours': Ours('ours', build_ours(configs / 'torchvision' / f'{theirs}.py', part, state, args), data, args),
        'torchvision': Torchvision(net, batch, args),
    }
    if peer is not None:
        extra = {}
        if model == 'retinanet':  # torchvision's P6 starts from P5, mmdetection's from C5
            shape = (256, 2048, 3, 3)
            extra = {} if part == 'detection' else {'neck.fpn_convs.3.conv.weight': torch.randn(shape) * 0.01}
        sides['ours, recipe'] = Ours(
            'ours', build_ours(configs / f'{recipe}.py', part, {**state, **extra}, args), data, args
        )
        peer.build(their_config, part, {**state, **extra})
        sides['mmdetection'] = peer
    return sides


def table(head: list[str], rows: list[list]) -> None:
    print('\n| ' + ' | '.join(head) + ' |\n|' + '---|' * len(head))
    for row in rows:
        print('| ' + ' | '.join(x if isinstance(x, str) else f'{x:.1f}' if x % 1 else f'{x:.0f}' for x in row) + ' |')
    print(flush=True)


def measure(model: str, part: str, peer: Mmdetection | None, args) -> dict:
    sides = build_sides(model, part, made_up_batch(args), peer, args)
    jobs = [job for job in ('training', 'inference', '+ RLE') if model == 'mask_rcnn' or job != '+ RLE']
    jobs = [job for job in jobs if job in args.jobs]
    times = {job: {name: [] for name in sides} for job in jobs}
    for job in jobs:
        for _ in range(args.repeats + 1):
            for name, side in sides.items():
                times[job][name].append(side.time(job))
    medians = {job: {name: statistics.median(ms[1:]) for name, ms in by.items()} for job, by in times.items()}
    report = dict(model=model, part=part, found={n: s.found() for n, s in sides.items()}, ms=medians)
    heads = {'torchvision': 'ours', 'mmdetection': 'ours, recipe'}
    rows = []
    for job, ms in medians.items():
        ratios = [f'{ms[peer] / ms[own]:.2f}' for peer, own in heads.items() if peer in ms]
        rows.append([f'{model} {part} {job}', *(f'{value:.0f}' for value in ms.values()), *ratios])
    if rows:
        table(['', *(f'{n} ms' for n in sides), *(f'{p} / {o}' for p, o in heads.items() if p in sides)], rows)
    if 'memory' in args.jobs:
        report['memory'] = by_side = {n: s.memory() for n, s in sides.items()}
        table(
            [f'{model} {part} training, MB', *sides],
            [[kind, *(f'{megabytes[kind]:.0f}' for megabytes in by_side.values())] for kind in by_side['ours']],
        )
    if part == 'detection':
        report['counts'] = {job: {n: s.count(job) for n, s in sides.items()} for job in jobs}
        table(
            [f'{model} {part}', *(f'{n}: operators, waits, host tensors' for n in sides)],
            [[job, *(', '.join(map(str, c.values())) for c in by.values())] for job, by in report['counts'].items()],
        )
        report['stages'] = {}
        for job in jobs:
            rounds = [{n: s.stages(job) for n, s in sides.items()} for _ in range(max(args.repeats, 1))]
            stages = list(dict.fromkeys(stage for r in rounds for by in r.values() for stage in by))
            report['stages'][job] = by_stage = {
                stage: {n: statistics.median(r[n].get(stage, 0.0) for r in rounds) for n in sides} for stage in stages
            }
            table([f'{model} {part} {job}, ms by stage', *sides],
                  [[stage, *(f'{ms:.1f}' for ms in by.values())] for stage, by in by_stage.items()])
    print(f'detections found: {report["found"]}', flush=True)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', default=list(MODELS), choices=list(MODELS))
    parser.add_argument('--parts', nargs='+', default=['whole', 'detection'], choices=['whole', 'detection'])
    parser.add_argument('--jobs', nargs='+', default=['training', 'inference', '+ RLE', 'memory'],
                        choices=['training', 'inference', '+ RLE', 'memory'])
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--amp', action='store_true', help='autocast: float16 on CUDA, bfloat16 on CPU')
    parser.add_argument('--channels-last', action='store_true', help='all models in channels_last')
    parser.add_argument('--pictures', type=int, default=2)
    parser.add_argument('--size', type=int, nargs=2, default=(800, 1216), metavar=('H', 'W'))
    parser.add_argument('--objects', type=int, default=10, help='of each picture')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--clock', choices=['wall', 'cpu'], default='wall')
    parser.add_argument('--mmdet3', metavar='PATHS', help='PYTHONPATH of an environment with mmdetection 3')
    parser.add_argument('--json', help='also write the figures to this file')
    parser.add_argument('--serve', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        args = argparse.Namespace(**json.loads(args.serve))
    torch.set_num_threads(args.threads)
    if SERVING:
        serve(args)
        return
    import torchvision

    from mmdet import ops

    machine = torch.cuda.get_device_name() if args.device == 'cuda' else f'CPU, {args.threads} threads'
    print(f'{machine}, {args.clock} time, torch {torch.__version__}, torchvision {torchvision.__version__}; '
          f'{args.pictures} x {args.size[0]}x{args.size[1]}, {args.objects} objects each, '
          f'{"autocast" if args.amp else "float32"}, medians of {args.repeats}\n{ops.describe()}')
    peer = Mmdetection(args.mmdet3, args) if args.mmdet3 else None
    reports = [measure(model, part, peer, args) for part in args.parts for model in args.models]
    if args.json:
        given = {key: value for key, value in vars(args).items() if key not in ('mmdet3', 'json', 'serve')}
        Path(args.json).write_text(json.dumps(dict(torch=torch.__version__, build=ops.BUILD, **given, rows=reports)))


if __name__ == '__main__':
    main()
