"""Whole detectors beside torchvision's, and mmdetection 3's where it is at hand: training steps and inference.

    python benchmarks/detectors.py [--models faster_rcnn mask_rcnn retinanet] [--device cpu|cuda] [--amp] [--json FILE]
    python benchmarks/detectors.py --parts whole --size 800 1216 --images 1 --repeats 5
    python benchmarks/detectors.py --parts detection --threads 1 --clock cpu     for a machine that others use too
    python benchmarks/detectors.py --mmdet3 PATHS      mmdetection 3 of that PYTHONPATH, in a process of its own

All sides take turns in each round; the figures are medians. They have the same weights (torchvision's, random, with
outputs spread so that dozens of objects are found), images and objects. Next to torchvision ours runs
configs/torchvision, with its rules and numbers; next to mmdetection the recipe of the same name.

- training: images in; preprocessing, losses, gradients, SGD step.
- memory: what the forward pass of a training step keeps for its backward pass, weights not counted.
- inference: images in; boxes, scores, labels and, of Mask R-CNN, what each library gives: torchvision float images
  (D, 1, H, W), mmdetection bool images, ours COCO run lengths. `+ RLE` brings the others' to run lengths too.

Two parts: `whole` is R-50-FPN; `detection` has given maps of 256 channels in the place of backbone and FPN, and heads
16 channels wide (the first convolution 1x1), so that anchors, assignment, sampling, losses, proposals, RoIAlign, NMS
and post-processing remain. Counted there are also the operators called (each is a launch on a GPU; views are not
counted), those that make the host wait for a GPU, and the tensors made from numbers on the host (each a copy to a GPU).

Where the sides differ: torchvision freezes its norms' scale and shift (`FrozenBatchNorm2d`), the others train them in
eval mode; torchvision gets float images and its resizing inside the model is taken out; mask targets come from
polygons here, from bitmaps in the others, as their pipelines give them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter, OrderedDict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVING = '--serve' in sys.argv  # the process of mmdetection 3, whose package has our name
if not SERVING:
    sys.path.insert(1, str(ROOT))

import numpy as np
import torch
import torch.nn.functional as F
from common import Clock, add_options, bitmaps, data_of, machine, made_up_batch, parser_of, polygon_data, table
from stages import Stopwatch
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


# -- the sides -------------------------------------------------------------------------------------------------------


class Side:
    """One library's model and what is measured of it: `run(job)` of the jobs 'training', 'inference', '+ RLE'.

    A subclass has `losses()` and `detections()`, `run_lengths(detections)`, which turns their masks into COCO run
    lengths, and `labels_of(detection)`.
    """

    def __init__(self, name: str, net: nn.Module, args: argparse.Namespace):
        self.name, self.net, self.args, self.clock = name, net.to(args.device), args, Clock(args)
        self.without_gradients = torch.inference_mode
        if args.channels_last:
            net.to(memory_format=torch.channels_last)
        trained = [p for key, p in net.named_parameters() if p.requires_grad and '.maps.' not in key]
        self.optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9, weight_decay=1e-4)

    def run(self, job: str):
        amp = torch.autocast(self.args.device, enabled=self.args.amp)
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

    def time(self, job: str) -> float:
        """Milliseconds of one run."""
        return self.clock.time(lambda: self.run(job))

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
        with Stopwatch(self.clock, self.net, self.name) as watch:
            watch.wrap(self, 'backward', 'backward')
            watch.wrap(self, 'update', 'SGD step')
            self.run(job)
        return watch.spent


class Ours(Side):
    """This project's; with SERVING mmdetection 3's, whose models are called alike."""

    def __init__(self, name: str, net: nn.Module, data: dict, args: argparse.Namespace):
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
    def __init__(self, net: nn.Module, batch: dict, args: argparse.Namespace):
        super().__init__('torchvision', net, args)
        self.images = [image.flip(0).float() / 255 for image in batch['images']]  # ours are BGR
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


def encode(masks: Tensor) -> list[dict]:
    from pycocotools import mask as coco_mask

    return [coco_mask.encode(np.asfortranarray(mask)) for mask in masks.cpu().numpy().view(np.uint8)]


class Calls(TorchDispatchMode):
    """Counts operators, those a GPU makes the host wait for, and tensors made of numbers on the host."""

    WAITING = {'nonzero', 'nonzero_numpy', '_local_scalar_dense', 'masked_select', '_unique2', 'unique_dim', 'equal',
               'unique_consecutive', 'nms', 'soft_nms', 'bincount'}  # fmt: skip
    NO_LAUNCH = {'lift_fresh', 'lift', 'detach', 'alias', '_local_scalar_dense', 'is_nonzero', 'promote_types', 'empty',
                 'empty_like', 'new_empty', 'empty_strided', 'new_empty_strided', '_unsafe_view'}  # fmt: skip

    def __init__(self):
        super().__init__()
        self.seen = Counter(operators=0, waits=0, host_tensors=0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        self.seen['host_tensors'] += name == 'lift_fresh'
        self.seen['operators'] += not is_view and name not in self.NO_LAUNCH
        self.seen['waits'] += name in self.WAITING or self._reads_mask(name, args)
        return out

    @staticmethod
    def _reads_mask(name: str, args) -> bool:
        """Whether a tensor is indexed with booleans: their number must be known (not to fill them with one value)."""
        if name not in ('index', 'index_put', 'index_put_', '_index_put_impl_'):
            return False
        masks = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        return masks and (name == 'index' or args[2].numel() != 1)


# -- the models ------------------------------------------------------------------------------------------------------


class Pyramid(nn.Module):
    """Maps of 256 channels in the place of backbone and FPN, learnable so that gradients reach them.

    With `names`, a dict of them, as torchvision's backbones give it.
    """

    out_channels = 256

    def __init__(self, args: argparse.Namespace, finest: int, names: list[str] | None = None):
        super().__init__()
        height, width = (-(-side // 32) * 32 for side in args.size)
        generator = torch.Generator().manual_seed(0)
        self.maps, self.names = nn.ParameterList(), names
        for level in range(5):
            size = [-(-side // (finest * 2**level)) for side in (height, width)]
            coarse = torch.randn(args.images, 256, *(-(-side // 3) for side in size), generator=generator)
            self.maps.append(F.interpolate(coarse, size, mode='bilinear'))

    def forward(self, images: Tensor) -> tuple[Tensor, ...] | OrderedDict:
        return OrderedDict(zip(self.names, self.maps)) if self.names else tuple(self.maps)


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


def build_ours(file: Path, part: str, state: dict, args: argparse.Namespace) -> nn.Module:
    """The model of a config of ours or, when SERVING, of mmdetection 3."""
    from mmengine.config import Config, ConfigDict

    from mmdet.registry import MODELS as REGISTRY

    cfg = thin(Config.fromfile(file, lazy_import=False).model.to_dict(), part)
    if 'eps' in cfg['backbone']['norm_cfg']:
        cfg['backbone']['norm_cfg']['eps'] = 1e-5
    net = REGISTRY.build(ConfigDict(cfg) if SERVING else cfg)
    if part == 'detection':
        net.backbone, net.neck = Pyramid(args, 8 if 'retina' in file.name else 4), None
        if 'retina' in file.name:
            for tower in (net.bbox_head.cls_convs, net.bbox_head.reg_convs):
                tower[0].conv = nn.Conv2d(256, 16, 1)
        else:
            net.rpn_head.rpn_conv = nn.Conv2d(256, 16, 1)
    missing, unexpected = net.load_state_dict(state, strict=False)
    missing = [key for key in missing if 'num_batches' not in key and '.maps.' not in key]  # equal maps everywhere
    assert not missing and not unexpected, (missing, unexpected)
    return net


def build_torchvision(name: str, part: str, batch: dict, args: argparse.Namespace) -> tuple[nn.Module, dict]:
    """torchvision's model, its outputs spread, its norms and first stage frozen as its recipe has them.

    Also its weights under our names.
    """
    from torchvision.models import detection
    from torchvision.models.detection import faster_rcnn, mask_rcnn, retinanet, rpn
    from torchvision.ops.misc import FrozenBatchNorm2d

    from mmdet.checkpoints import convert

    torch.manual_seed(0)
    net = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1)
    net.transform.resize = lambda image, target=None: (image, target)
    backbone = net.backbone
    if part == 'detection' and name.startswith('retinanet'):
        net.backbone = Pyramid(args, 8, ['0', '1', '2', 'p6', 'p7'])
        net.head = retinanet.RetinaNetHead(16, 9, NUM_CLASSES + 1)
        for tower in (net.head.classification_head, net.head.regression_head):
            tower.conv[0][0] = nn.Conv2d(256, 16, 1)
    elif part == 'detection':
        net.backbone = Pyramid(args, 4, ['0', '1', '2', '3', 'pool'])
        net.rpn.head = rpn.RPNHead(16, 3)
        net.rpn.head.conv[0][0] = nn.Conv2d(256, 16, 1)
        net.roi_heads.box_head = faster_rcnn.TwoMLPHead(256 * 49, 64)
        net.roi_heads.box_predictor = faster_rcnn.FastRCNNPredictor(64, NUM_CLASSES + 1)
        if name.startswith('mask'):
            net.roi_heads.mask_head = mask_rcnn.MaskRCNNHeads(256, [16] * 4, 1)
            net.roi_heads.mask_predictor = mask_rcnn.MaskRCNNPredictor(16, 16, NUM_CLASSES + 1)
    spread_outputs(net, [image.flip(0) / 255 for image in batch['images']])
    if part == 'whole':
        for parent in list(net.backbone.modules()):
            for key, child in list(parent.named_children()):
                if isinstance(child, nn.BatchNorm2d):
                    frozen = FrozenBatchNorm2d(child.num_features, child.eps)
                    frozen.load_state_dict(child.state_dict(), strict=False)
                    setattr(parent, key, frozen)
        for module in (net.backbone.body.conv1, net.backbone.body.layer1):
            module.requires_grad_(False)
    heads = {key: value for key, value in net.state_dict().items() if not key.startswith('backbone.')}
    state = {**heads, **{f'backbone.{key}': value for key, value in backbone.state_dict().items()}}
    state = convert(dict(state_dict=state), NUM_CLASSES).state_dict
    if part == 'detection':
        state = {key: value for key, value in state.items() if not key.startswith(('backbone.', 'neck.'))}
    return net, state


# Standard deviation of what an output layer of torchvision's models gives.
SPREAD = {'rpn.head.cls_logits': 2.0, 'rpn.head.bbox_pred': 0.2, 'roi_heads.box_predictor.cls_score': 2.5,
          'roi_heads.box_predictor.bbox_pred': 0.8, 'roi_heads.mask_predictor.mask_fcn_logits': 2.0,
          'head.classification_head.cls_logits': 2.0, 'head.regression_head.bbox_reg': 0.2}  # fmt: skip


@torch.no_grad()
def spread_outputs(net: nn.Module, images: list[Tensor]) -> None:
    """Let random weights find much: norms get the images' statistics, output layers a deviation of `SPREAD`."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)

    def spread_once(layer: nn.Module, deviation: float):
        called = []

        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            # A layer shared by the pyramid's levels is called on each; the one that spreads most decides.
            factor = deviation / output.std().clamp(min=1e-12)
            if not called or factor < 1:
                module.weight.mul_(factor)
            if not called:
                nn.init.normal_(module.bias, std=0.3 * deviation)
            called.append(True)
            return module.forward(*inputs)

        return layer.register_forward_hook(hook)

    modules = dict(net.named_modules())
    hooks = [spread_once(modules[name], deviation) for name, deviation in SPREAD.items() if name in modules]
    net.eval()
    for norm in norms:
        norm.train()
    net(images)
    for hook in hooks:
        hook.remove()
    if hasattr(net, 'head'):  # few objects, and never the background, which a trained RetinaNet does not predict
        bias = net.head.classification_head.cls_logits.bias
        bias -= 5.0
        bias.unflatten(0, (-1, NUM_CLASSES + 1))[:, 0] = -1e4
    net.eval()


class Mmdetection:
    """A `Side` in another process, whose `mmdet` is mmdetection 3."""

    def __init__(self, paths: str, args: argparse.Namespace):
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


def serve(args: argparse.Namespace) -> None:
    """Answer `Mmdetection`: questions and answers are lines of JSON."""
    out = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what the libraries print is not an answer
    from mmengine.registry import init_default_scope

    import mmdet.models  # noqa: F401 - registers
    from mmdet.structures.mask import BitmapMasks

    init_default_scope('mmdet')
    configs = Path(mmdet.__file__).parent / '.mim' / 'configs'
    batch = made_up_batch(args.images, *args.size, args.objects, NUM_CLASSES)
    data = data_of(batch, lambda outlines, h, w: BitmapMasks(bitmaps(outlines, h, w), h, w))
    data['data_samples'] = [sample.to(args.device) for sample in data['data_samples']]
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


def build_sides(model: str, part: str, peer: Mmdetection | None, args: argparse.Namespace) -> dict:
    theirs, recipe, their_config = MODELS[model]
    batch = made_up_batch(args.images, *args.size, args.objects, NUM_CLASSES)
    net, state = build_torchvision(theirs, part, batch, args)
    data, configs = polygon_data(batch), ROOT / 'configs'
    sides = {
        'ours': Ours('ours', build_ours(configs / 'torchvision' / f'{theirs}.py', part, state, args), data, args),
        'torchvision': Torchvision(net, batch, args),
    }
    if peer is not None:
        if model == 'retinanet' and part == 'whole':  # torchvision's P6 starts from P5, mmdetection's from C5
            state = {**state, 'neck.fpn_convs.3.conv.weight': torch.randn(256, 2048, 3, 3) * 0.01}
        net = build_ours(configs / f'{recipe}.py', part, state, args)
        sides['ours, recipe'] = Ours('ours', net, data, args)
        peer.build(their_config, part, state)
        sides['mmdetection'] = peer
    return sides


# -- the tables ------------------------------------------------------------------------------------------------------


def measure(model: str, part: str, peer: Mmdetection | None, args: argparse.Namespace) -> dict:
    sides = build_sides(model, part, peer, args)
    jobs = [job for job in ('training', 'inference', '+ RLE') if model == 'mask_rcnn' or job != '+ RLE']
    jobs = [job for job in jobs if job in args.jobs]
    report = dict(model=model, part=part, found={n: s.found() for n, s in sides.items()}, ms={})
    beside = {'torchvision': 'ours', 'mmdetection': 'ours, recipe'}
    rows = []
    for job in jobs:
        rounds = [{name: side.time(job) for name, side in sides.items()} for _ in range(args.repeats + 1)]
        report['ms'][job] = ms = {name: statistics.median(row[name] for row in rounds[1:]) for name in sides}
        ratios = [f'{ms[theirs] / ms[own]:.2f}' for theirs, own in beside.items() if theirs in ms]
        rows.append([f'{model} {part} {job}', *(f'{value:.0f}' for value in ms.values()), *ratios])
    if rows:
        table(['', *(f'{n} ms' for n in sides), *(f'{p} / {o}' for p, o in beside.items() if p in sides)], rows)
    if 'memory' in args.jobs:
        report['memory'] = by_side = {n: s.memory() for n, s in sides.items()}
        rows = [[kind, *(f'{megabytes[kind]:.0f}' for megabytes in by_side.values())] for kind in by_side['ours']]
        table([f'{model} {part} training, MB', *sides], rows)
    if part == 'detection':
        report['counts'] = {job: {n: s.count(job) for n, s in sides.items()} for job in jobs}
        rows = [[job, *(', '.join(map(str, c.values())) for c in by.values())] for job, by in report['counts'].items()]
        table([f'{model} {part}', *(f'{n}: operators, waits, host tensors' for n in sides)], rows)
        report['stages'] = {}
        for job in jobs:
            rounds = [{n: s.stages(job) for n, s in sides.items()} for _ in range(max(args.repeats, 1))]
            stages = list(dict.fromkeys(stage for r in rounds for by in r.values() for stage in by))
            report['stages'][job] = by_stage = {
                stage: {n: statistics.median(r[n].get(stage, 0.0) for r in rounds) for n in sides} for stage in stages
            }
            rows = [[stage, *(f'{ms:.1f}' for ms in by.values())] for stage, by in by_stage.items()]
            table([f'{model} {part} {job}, ms by stage', *sides], rows)
    print(f'detections found: {report["found"]}', flush=True)
    return report


def main() -> None:
    parser = parser_of(__doc__)
    add_options(parser, repeats=3)
    parser.add_argument('--models', nargs='+', default=list(MODELS), choices=list(MODELS))
    parser.add_argument('--parts', nargs='+', default=['whole', 'detection'], choices=['whole', 'detection'])
    parser.add_argument('--jobs', nargs='+', default=['training', 'inference', '+ RLE', 'memory'],
                        choices=['training', 'inference', '+ RLE', 'memory'])
    parser.add_argument('--amp', action='store_true', help='autocast: float16 on CUDA, bfloat16 on CPU')
    parser.add_argument('--channels-last', action='store_true', help='all models in channels_last')
    parser.add_argument('--images', type=int, default=2)
    parser.add_argument('--size', type=int, nargs=2, default=(800, 1216), metavar=('H', 'W'))
    parser.add_argument('--objects', type=int, default=10, help='of each image')
    parser.add_argument('--mmdet3', metavar='PATHS', help='PYTHONPATH of an environment with mmdetection 3')
    parser.add_argument('--json', help='also write the figures to this file')
    parser.add_argument('--serve', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if SERVING:
        serve(argparse.Namespace(**json.loads(args.serve)))
        return
    import torchvision

    from mmdet import ops

    print(f'{machine(args)}, torchvision {torchvision.__version__}; {args.images} x {args.size[0]}x{args.size[1]}, '
          f'{args.objects} objects each, {"autocast" if args.amp else "float32"}, medians of {args.repeats}\n'
          f'{ops.describe()}')
    peer = Mmdetection(args.mmdet3, args) if args.mmdet3 else None
    reports = [measure(model, part, peer, args) for part in args.parts for model in args.models]
    if args.json:
        given = {key: value for key, value in vars(args).items() if key not in ('mmdet3', 'json', 'serve')}
        Path(args.json).write_text(json.dumps(dict(torch=torch.__version__, build=ops.BUILD, **given, rows=reports)))


if __name__ == '__main__':
    main()
