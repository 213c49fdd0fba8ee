# Modulated deformable RoI pooling (arXiv 1811.11168)
_base_ = '../faster_rcnn_r50_fpn_1x.py'

model = dict(
    roi_head=dict(
        bbox_roi_extractor=dict(
            roi_layer=dict(
                _delete_=True,
                type='ModulatedDeformRoIPoolPack',
                output_size=7,
                output_channels=256,
                sampling_ratio=4,
                gamma=0.1,
            )
        )
    )
)
