"""State-dict keys of other projects' files, by pattern."""

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
BN = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
NORM = {'bn': BN, 'gn': ('weight', 'bias')}


def mmdet_backbone(depth: int = 50, norm: str = 'bn') -> list[str]:
    """ResNet and ResNeXt of any style."""
    keys = ['conv1.weight', *(f'{norm}1.{p}' for p in NORM[norm])]
    for layer, blocks in enumerate(BLOCKS[depth], 1):
        for block in range(blocks):
            name = f'layer{layer}.{block}'
            for i in (1, 2, 3):
                keys += [f'{name}.conv{i}.weight', *(f'{name}.{norm}{i}.{p}' for p in NORM[norm])]
            if block == 0:
                keys += [f'{name}.downsample.0.weight', *(f'{name}.downsample.1.{p}' for p in NORM[norm])]
    return [f'backbone.{key}' for key in keys]


def conv(name: str, norm: str | None = None) -> list[str]:
    """mmcv's ConvModule."""
    if norm:
        return [f'{name}.conv.weight', *(f'{name}.{norm}.{p}' for p in NORM[norm])]
    return layer(f'{name}.conv')


def layer(name: str) -> list[str]:
    return [f'{name}.weight', f'{name}.bias']


def mmdet_fpn(levels: int = 4, outputs: int = 4, norm: str | None = None) -> list[str]:
    keys = [k for i in range(levels) for k in conv(f'neck.lateral_convs.{i}', norm)]
    return keys + [k for i in range(outputs) for k in conv(f'neck.fpn_convs.{i}', norm)]


def mmdet_rpn() -> list[str]:
    return [k for name in ('rpn_conv', 'rpn_cls', 'rpn_reg') for k in layer(f'rpn_head.{name}')]


def mmdet_box_head(prefix: str = 'roi_head.bbox_head', convs: int = 0, fcs: int = 2, norm: str | None = None):
    keys = layer(f'{prefix}.fc_cls') + layer(f'{prefix}.fc_reg')
    keys += [k for i in range(convs) for k in conv(f'{prefix}.shared_convs.{i}', norm)]
    return keys + [k for i in range(fcs) for k in layer(f'{prefix}.shared_fcs.{i}')]


def mmdet_mask_head(prefix: str = 'roi_head.mask_head', norm: str | None = None) -> list[str]:
    keys = [k for i in range(4) for k in conv(f'{prefix}.convs.{i}', norm)]
    return keys + layer(f'{prefix}.upsample') + layer(f'{prefix}.conv_logits')


def mmdet_retina_head() -> list[str]:
    keys = [k for tower in ('cls', 'reg') for i in range(4) for k in conv(f'bbox_head.{tower}_convs.{i}')]
    return keys + layer('bbox_head.retina_cls') + layer('bbox_head.retina_reg')


# detectron2 0.6, as its modules name their parts (modeling/backbone/{resnet,fpn}.py, proposal_generator/rpn.py,
# roi_heads/{box_head,fast_rcnn,cascade_rcnn,mask_head}.py, meta_arch/retinanet.py) and as its logs list them, for
# instance in its issues 803, 5153 and 3292. Files from before version 0.4 also hold what is not a weight.
FROZEN_BN = ('weight', 'bias', 'running_mean', 'running_var')


def detectron2_conv(name: str, norm: str | None = None) -> list[str]:
    """detectron2's Conv2d: the norm inside."""
    return [f'{name}.weight', *(f'{name}.norm.{p}' for p in NORM[norm])] if norm else layer(name)


def detectron2_backbone(norm: str = 'frozen', levels: tuple[int, ...] = (2, 3, 4, 5)) -> list[str]:
    """ResNet-50 with FPN; of these, only a backbone with GN has norms in the FPN."""
    parts = FROZEN_BN if norm == 'frozen' else NORM[norm]
    keys = []
    for level in levels:
        for place in ('lateral', 'output'):
            keys += detectron2_conv(f'backbone.fpn_{place}{level}', 'gn' if norm == 'gn' else None)
    names = ['stem.conv1']
    for stage, blocks in enumerate(BLOCKS[50], 2):
        for block in range(blocks):
            convs = ('shortcut', 'conv1', 'conv2', 'conv3') if block == 0 else ('conv1', 'conv2', 'conv3')
            names += [f'res{stage}.{block}.{name}' for name in convs]
    for name in names:
        full = f'backbone.bottom_up.{name}'
        keys += [f'{full}.weight', *(f'{full}.norm.{p}' for p in parts)]
    return keys


def detectron2_rcnn(mask: bool = False, stages: int = 0, norm: str = 'frozen', old: bool = False) -> list[str]:
    """Faster, Mask and (with 3 stages) Cascade R-CNN; norm='gn': norms and four convolutions in the heads as well."""
    gn = 'gn' if norm == 'gn' else None
    keys = detectron2_backbone(norm)
    for name in ('conv', 'objectness_logits', 'anchor_deltas'):
        keys += layer(f'proposal_generator.rpn_head.{name}')
    for stage in [f'.{i}' for i in range(stages)] or ['']:
        if gn:
            keys += [k for i in (1, 2, 3, 4) for k in detectron2_conv(f'roi_heads.box_head{stage}.conv{i}', gn)]
        for name in ('fc1',) if gn else ('fc1', 'fc2'):
            keys += layer(f'roi_heads.box_head{stage}.{name}')
        for name in ('cls_score', 'bbox_pred'):
            keys += layer(f'roi_heads.box_predictor{stage}.{name}')
    if mask:
        keys += [k for i in (1, 2, 3, 4) for k in detectron2_conv(f'roi_heads.mask_head.mask_fcn{i}', gn)]
        keys += layer('roi_heads.mask_head.deconv') + layer('roi_heads.mask_head.predictor')
    return keys + (detectron2_old('proposal_generator.anchor_generator') if old else [])


def detectron2_retinanet(old: bool = False) -> list[str]:
    keys = detectron2_backbone(levels=(3, 4, 5))
    keys += layer('backbone.top_block.p6') + layer('backbone.top_block.p7')
    for tower in ('cls_subnet', 'bbox_subnet'):
        for i in (0, 2, 4, 6):
            keys += layer(f'head.{tower}.{i}')
    keys += layer('head.cls_score') + layer('head.bbox_pred')
    return keys + (detectron2_old('anchor_generator') if old else [])


def detectron2_old(anchor_generator: str) -> list[str]:
    """What files from before version 0.4 hold besides weights."""
    return ['pixel_mean', 'pixel_std', *(f'{anchor_generator}.cell_anchors.{i}' for i in range(5))]


# caffe2's backbones: (weight, bias, ...) of a norm. 'affine' is Detectron's, 'bn' what detectron2's log lists for
# R-50.pkl (its issues 1134, 1698 and 5412: "loaded from res2_0_branch2c_bn_gamma"), 'gn' that of R-50-GN.pkl.
CAFFE2_NORMS = dict(
    affine=('bn_s', 'bn_b'), bn=('bn_gamma', 'bn_beta', 'bn_running_mean', 'bn_running_var'), gn=('gn_s', 'gn_b')
)


def caffe2_backbone(norm: str) -> list[tuple[str, str]]:
    """Pairs of a caffe2 name and torchvision's name of the same array."""
    pairs = [('conv1_w', 'conv1.weight')]
    parts = [p for p in FROZEN_BN if norm == 'bn' or not p.startswith('running')]
    stem = 'res_conv1' if norm != 'gn' else 'conv1'
    kind = 'gn' if norm == 'gn' else 'bn'
    pairs += [(f'{stem}_{old}', f'{kind}1.{new}') for old, new in zip(CAFFE2_NORMS[norm], parts)]
    for stage, blocks in enumerate(BLOCKS[50], 2):
        for block in range(blocks):
            for branch in ('1', '2a', '2b', '2c') if block == 0 else ('2a', '2b', '2c'):
                ours, i = f'layer{stage - 1}.{block}', 'abc'.find(branch[-1]) + 1
                conv_name, norm_name = (f'conv{i}', f'{kind}{i}') if i else ('downsample.0', 'downsample.1')
                theirs = f'res{stage}_{block}_branch{branch}'
                pairs.append((f'{theirs}_w', f'{ours}.{conv_name}.weight'))
                pairs += [(f'{theirs}_{o}', f'{ours}.{norm_name}.{n}') for o, n in zip(CAFFE2_NORMS[norm], parts)]
    return pairs
