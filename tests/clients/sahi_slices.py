"""A large image in slices, with sahi: python sahi_slices.py IMAGE"""

import sys

from sahi import AutoDetectionModel
from sahi.predict import get_prediction, get_sliced_prediction

model = AutoDetectionModel.from_pretrained(
    model_type='mmdet', model_path='weights.pth', config_path='config.py', confidence_threshold=0.0, device='cpu'
)
print('masks' if model.has_mask else 'boxes', *model.category_names)
whole = get_prediction(sys.argv[1], model).object_prediction_list
print(f'whole: {len(whole)}')
for found in whole:
    x1, y1, x2, y2 = found.bbox.to_xyxy()
    print(f'{found.category.name} {found.score.value:.4f} {x1:.1f} {y1:.1f} {x2:.1f} {y2:.1f} {found.mask is not None}')
sliced = get_sliced_prediction(
    sys.argv[1], model, slice_height=64, slice_width=64, overlap_height_ratio=0.2, overlap_width_ratio=0.2, verbose=0
)
print(f'sliced: {len(sliced.object_prediction_list) > 0}')
