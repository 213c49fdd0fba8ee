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


def detectron2_backbone() -> list[str]:
    frozen = ('weight', 'bias', 'running_mean', 'running_var')
    keys = ['stem.conv1.weight', *(f'stem.conv1.norm.{p}' for p in frozen)]
    for stage, blocks in enumerate(BLOCKS[50], 2):
        for block in range(blocks):
            for name in ('conv1', 'conv2', 'conv3', *(['shortcut'] if block == 0 else [])):
                full = f'res{stage}.{block}.{name}'
                keys += [f'{full}.weight', *(f'{full}.norm.{p}' for p in frozen)]
    return [f'backbone.bottom_up.{key}' for key in keys]


def detectron2_rcnn(mask: bool) -> list[str]:
    keys = ['pixel_mean', 'pixel_std', *detectron2_backbone()]
    for level in (2, 3, 4, 5):
        keys += layer(f'backbone.fpn_lateral{level}') + layer(f'backbone.fpn_output{level}')
    keys += [f'proposal_generator.anchor_generator.cell_anchors.{i}' for i in range(5)]
    for name in ('conv', 'objectness_logits', 'anchor_deltas'):
        keys += layer(f'proposal_generator.rpn_head.{name}')
    for name in ('box_head.fc1', 'box_head.fc2', 'box_predictor.cls_score', 'box_predictor.bbox_pred'):
        keys += layer(f'roi_heads.{name}')
    if mask:
        for name in ('mask_fcn1', 'mask_fcn2', 'mask_fcn3', 'mask_fcn4', 'deconv', 'predictor'):
            keys += layer(f'roi_heads.mask_head.{name}')
    return keys


def detectron2_retinanet() -> list[str]:
    keys = ['pixel_mean', 'pixel_std', *detectron2_backbone()]
    for level in (3, 4, 5):
        keys += layer(f'backbone.fpn_lateral{level}') + layer(f'backbone.fpn_output{level}')
    keys += layer('backbone.top_block.p6') + layer('backbone.top_block.p7')
    keys += [f'anchor_generator.cell_anchors.{i}' for i in range(5)]
    for tower in ('cls_subnet', 'bbox_subnet'):
        for i in (0, 2, 4, 6):
            keys += layer(f'head.{tower}.{i}')
    return keys + layer('head.cls_score') + layer('head.bbox_pred')
